"""DDP and FSDP2 end where one process ends, for every adapter method."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from transformers import AutoTokenizer

from adapters_pl import CausalLMModule, UserError, load_adapter
from adapters_pl.compat.dcp import load
from adapters_pl.data.sampler import StepSampler
from adapters_pl.training.checkpoint import read_checkpoint
from tests.helpers import warm
from tests.helpers.processes import ENVIRONMENT, launch

METHODS = ["lora", "lora-dora", "lora-pissa", "series", "parallel", "ia3", "prefix", "prompt", "ptuning", "peft-loha"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twenty-one rows, a third of them with a response thirteen times as long as the others'."""
    rows = [
        {
            "instruction": f"What is {a} plus {a}?",
            "output": "well, " * (14 * (a % 3 == 0)) + f"it is {2 * a}.",
            "answer": str(2 * a),
        }
        for a in range(21)
    ]
    path = tmp_path_factory.mktemp("rows") / "uneven.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory, make_base, rows):
    """What one process makes of every method."""
    folder = tmp_path_factory.mktemp("one")
    launch(
        "distributed/equality.py",
        1,
        folder=str(folder),
        base=str(make_base()),
        rows=str(rows),
        strategy="one",
        methods=METHODS,
    )
    return folder


def test_the_processes_of_a_step_hold_label_counts_that_differ_threefold(make_base, rows):
    tokenizer = AutoTokenizer.from_pretrained(make_base())
    outputs = [row["output"] for row in json.loads(rows.read_text())]
    counts = [len(ids) + 1 for ids in tokenizer(outputs, add_special_tokens=False)["input_ids"]]
    ratios = []
    for epoch in range(7):
        totals = []
        for rank in range(2):
            sampler = StepSampler(counts, 2, rank, 2, 2, seed=42)
            sampler.set_epoch(epoch)
            batches = [0 if batch.empty else sum(counts[row] for row in batch) for batch in sampler]
            totals.append([sum(batches[i : i + 2]) for i in range(0, len(batches), 2)])
        ratios += [max(pair) / max(1, min(pair)) for pair in zip(*totals, strict=True)]
    assert sum(ratio >= 3 for ratio in ratios[:10]) >= 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_end_where_one_ends(tmp_path, make_base, rows, one, strategy):
    launch(
        "distributed/equality.py",
        2,
        folder=str(tmp_path),
        base=str(make_base()),
        rows=str(rows),
        strategy=strategy,
        methods=METHODS,
    )
    for method in METHODS:
        first = torch.load(one / method / "first.pt", weights_only=True)
        alone = torch.load(one / method / "last.ckpt", weights_only=True)
        two = torch.load(tmp_path / method / "last.ckpt", weights_only=True)
        assert alone["global_step"] == two["global_step"] == 10
        assert alone["state_dict"].keys() == two["state_dict"].keys() == first.keys()
        start, moved = (
            torch.cat([value.flatten() for value in values])
            for values in (first.values(), [alone["state_dict"][name] - first[name] for name in first])
        )
        assert moved.norm() >= 0.01 * start.norm(), method
        logged = [json.loads((folder / method / "losses.json").read_text()) for folder in (one, tmp_path)]
        assert len(logged[0]) == 10
        assert logged[1] == pytest.approx(logged[0], rel=1e-4), method
        for name, value in alone["state_dict"].items():
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-6, rtol=0, msg=f"{method} {name}")
        held = [*two["state_dict"].values(), *(s["momentum_buffer"] for s in _states(two).values())]
        payload = sum(tensor.numel() * tensor.element_size() for tensor in held)
        assert (tmp_path / method / "last.ckpt").stat().st_size <= 1.05 * payload + 64 * 1024, method
        # One process goes on from it: the optimizer's state has the same order and the same values.
        momenta = [_states(checkpoint) for checkpoint in (alone, two)]
        assert momenta[0].keys() == momenta[1].keys()
        for key, state in momenta[0].items():
            torch.testing.assert_close(
                momenta[1][key]["momentum_buffer"], state["momentum_buffer"], atol=1e-5, rtol=0, msg=f"{method} {key}"
            )


def _states(checkpoint):
    return checkpoint["optimizer_states"][0]["state"]


def test_a_sharded_checkpoint_loads_on_one_process(tmp_path, make_base, rows, one):
    methods = ["lora", "prefix"]
    settings = {"base": str(make_base()), "rows": str(rows), "strategy": "fsdp-sharded", "checkpointing": True}
    launch("distributed/equality.py", 2, folder=str(tmp_path), methods=methods, **settings)
    ids = torch.arange(3, 40)[None]
    for method in methods:
        sharded = tmp_path / method / "last.ckpt"
        assert len(list(sharded.glob("part-*.pt"))) == 2
        logits = []
        for path in (sharded, one / method / "last.ckpt"):
            model = CausalLMModule(str(make_base())).build_base()
            plain = model(input_ids=ids).logits
            load_adapter(model, path)
            logits.append(model(input_ids=ids).logits)
            assert (logits[-1] - plain).abs().max() > 0.01
        torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    read_checkpoint(sharded)
    os.remove(sharded / "part-1.pt")
    with pytest.raises(UserError, match="not whole"):
        read_checkpoint(sharded)


def test_a_sharded_run_is_tested_and_goes_on_without_shards(tmp_path, make_base, rows):
    sharded = ["--trainer.strategy.class_path", "adapters_pl.training.strategies.FullyShardedStrategy"]
    sharded += ["--trainer.strategy.init_args.save_distributed_checkpoint", "true", "--trainer.devices", "2"]
    alone = ["--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows), "--adapter", "LoRA"]
    own += ["--data.val_size", "0", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]

    def command(*words):
        program = [sys.executable, "-m", "adapters_pl", *words]
        done = warm.run(program, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    command("fit", *own, *sharded, "--trainer.max_epochs", "1")
    last = tmp_path / "runs/lora-1/checkpoints/last.ckpt"
    assert len(list(last.glob("part-*.pt"))) == 2
    command("test", "--data.test_path", str(rows), "--data.max_new_tokens", "4", *alone)
    assert json.loads((tmp_path / "runs/lora-1/results.json").read_text())["sets"]["uneven"]["n"] == 21
    steps = load(last)["global_step"]
    command("fit", "--ckpt_path", "last", "--trainer.strategy", "auto", *alone, "--trainer.max_epochs", "2")
    assert torch.load(last, weights_only=True)["global_step"] > steps
