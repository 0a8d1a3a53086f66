"""The creed: no answer depends on the batch size, nor on the number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from adapters_pl import CausalLMModule, InstructionJSON
from tests.conftest import tiny_model, tiny_tokenizer
from tests.helpers import warm
from tests.helpers.processes import free_port

ARCHITECTURES = ("llama", "bloom", "opt", "gptj")
SIZES = (1, 7, 32)
ROWS = 200
TIE = 1e-5
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Two hundred rows whose prompts are 24 to 96 and more tokens long, no two alike, in no order of length."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(ROWS):
        length = 12 + int(torch.randint(0, 84, (1,), generator=generator))
        letters = torch.randint(97, 123, (length,), generator=generator).tolist()
        rows.append({"instruction": f"{number} " + "".join(map(chr, letters)), "answer": str(number % 7)})
    path = tmp_path_factory.mktemp("data") / "questions.json"
    path.write_text(json.dumps(rows))
    return path


def varied_model(name):
    """A tiny model whose attention is sharp enough that most prompts have an answer of their own."""
    model = tiny_model(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base of every architecture."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ARCHITECTURES}
    for name, folder in folders.items():
        varied_model(name).save_pretrained(folder)
        # Padding is the end token, as with LLaMA: only the attention mask tells which ids are padding.
        tiny_tokenizer(pad_token="<eos>").save_pretrained(folder)
    return folders


def answer(base, questions, size, **options):
    """The outputs of a test in this process, by row."""
    module = CausalLMModule(str(base), dtype="float32")
    data = InstructionJSON(
        test_path=str(questions), template="plain", eval_batch_size=size, max_new_tokens=NEW_TOKENS, **options
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=questions.parent,
    )
    trainer.test(module, datamodule=data, verbose=False)
    records = sorted(module.records["questions"], key=lambda record: record["row"])
    assert [record["row"] for record in records] == list(range(ROWS))
    lengths = [len(row.prompt) for row in data.questions("questions").rows]
    assert max(lengths) >= 4 * min(lengths)
    return [record["output"] for record in records], [record["prediction"] for record in records], data


def ties(name, data, first, second):
    """The rows that differ, each with how far apart the two largest logits were where they part; none may be far."""
    model, tokenizer = varied_model(name), data.reader.tokenizer
    listed = {}
    for row, (one, two) in enumerate(zip(first, second, strict=True)):
        if one == two:
            continue
        ids = list(data.questions("questions").rows[row].prompt)
        gaps = []
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                top = model(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append((top.values[0] - top.values[1]).item())
            ids.append(int(top.indices[0]))
        assert tokenizer.decode(ids[-NEW_TOKENS:]) in (one, two) or min(gaps) <= TIE
        listed[row] = min(gaps)
    print(f"{name}: {len(listed)} rows differ: {listed}")
    assert all(gap <= TIE for gap in listed.values()), listed
    return listed


@pytest.fixture(scope="module")
def alone(bases, questions):
    """The answers of every architecture, one row at a time."""
    found = {}

    def alone(name):
        if name not in found:
            found[name] = answer(bases[name], questions, 1)
        return found[name]

    return alone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_answer_depends_on_the_batch_size(bases, questions, alone, name):
    outputs, predictions, data = alone(name)
    assert len(set(outputs)) >= 0.8 * ROWS, len(set(outputs))
    for size in SIZES[1:]:
        others, read, _ = answer(bases[name], questions, size)
        differing = ties(name, data, outputs, others)
        assert [p for row, p in enumerate(read) if row not in differing] == [
            p for row, p in enumerate(predictions) if row not in differing
        ]


@pytest.mark.parametrize("options", [{"protocol": "llm_adapters"}, {"samples": 2}], ids=["beams", "samples"])
def test_beams_and_samples_do_not_depend_on_it_either(bases, questions, options):
    limited = {**options, "limit_test": 40}
    outputs = []
    for size in SIZES[1:]:
        module = CausalLMModule(str(bases["llama"]), dtype="float32")
        data = InstructionJSON(test_path=str(questions), eval_batch_size=size, max_new_tokens=6, **limited)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            default_root_dir=questions.parent,
        )
        trainer.test(module, datamodule=data, verbose=False)
        outputs.append(
            {record["row"]: record.get("samples", record["output"]) for record in module.records["questions"]}
        )
    assert outputs[0] == outputs[1]
    assert len({str(output) for output in outputs[0].values()}) >= 32  # of 40


PROGRAM = textwrap.dedent("""
    import json, sys
    import torch
    from lightning.pytorch import Trainer
    from adapters_pl import CausalLMModule, InstructionJSON
    from adapters_pl.training.callbacks import RunRecorder
    from adapters_pl.runs.run import Run
    from pathlib import Path

    questions, new_tokens, size, out, *bases = sys.argv[1:]
    for place, base in enumerate(bases):
        run = Run(Path(out) / f"test-{place}")
        trainer = Trainer(
            accelerator="cpu", devices=1, num_nodes=2, strategy="ddp", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
            default_root_dir=out, callbacks=[RunRecorder(run, "{}", None)],
        )
        data = InstructionJSON(test_path=questions, template="plain", eval_batch_size=int(size),
                               max_new_tokens=int(new_tokens))
        trainer.test(CausalLMModule(base, dtype="float32"), datamodule=data, verbose=False)
""")


def on_two_processes(tmp_path, questions, size, bases):
    """The outputs of each base on two processes, by row; every row exactly once."""
    out = tmp_path / f"two-{size}"
    out.mkdir()
    port = str(free_port())
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    words = [sys.executable, "-c", PROGRAM, str(questions), str(NEW_TOKENS), str(size), str(out), *map(str, bases)]
    processes = [
        warm.Process(words, env={**environment, "NODE_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    found = []
    for place in range(len(bases)):
        lines = (out / f"test-{place}" / "predictions" / "questions.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["row"] for record in records] == list(range(ROWS))
        results = json.loads((out / f"test-{place}" / "results.json").read_text())
        assert results["sets"]["questions"]["n"] == ROWS
        assert results["sets"]["questions"]["accuracy"] == sum(record["correct"] for record in records) / ROWS
        found.append([record["output"] for record in records])
    return found


@pytest.mark.parametrize("size", [7, pytest.param(1, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)])
def test_no_answer_depends_on_the_number_of_processes(tmp_path, bases, questions, alone, size):
    found = on_two_processes(tmp_path, questions, size, bases.values())
    for name, others in zip(ARCHITECTURES, found, strict=True):
        outputs, _, data = alone(name)
        ties(name, data, outputs, others)
