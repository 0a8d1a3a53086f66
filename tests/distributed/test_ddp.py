"""Two processes do what one does: the same training, and every test row exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import warm
from tests.helpers.processes import ENVIRONMENT, free_port


def run(folder, command, processes, *arguments):
    """What the first of so many CPU processes prints; ``fit`` lets Lightning start the others, as a user does."""
    strategy = ["--trainer.strategy", "ddp", "--trainer.devices", str(processes)] if processes > 1 else []
    words = [command, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *strategy, *arguments]
    environment, count = dict(ENVIRONMENT), 1
    if processes > 1 and command != "fit":
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        environment["NODE_RANK"], count = "0", processes
    started = [
        warm.Process(
            [sys.executable, "-m", "adapters_pl", *words],
            cwd=folder,
            env={**environment, **({"LOCAL_RANK": str(rank)} if count > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(240) for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs[0][1][-3000:]
    return outputs[0][0]


@pytest.fixture
def uneven(tmp_path):
    """Twenty-one rows whose responses differ in length more than threefold."""
    rows = [
        {
            "instruction": f"What is {a} plus {a}?",
            "output": "well, " * (a % 5) + f"it is {2 * a}.",
            "answer": str(2 * a),
        }
        for a in range(21)
    ]
    path = tmp_path / "uneven.json"
    path.write_text(json.dumps(rows))
    return path


def test_two_processes_train_and_test_like_one(tmp_path, make_base, uneven):
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(uneven)]
    own += ["--data.val_size", "0", "--adapter", "LoRA", "--adapter.rank", "4", "--adapter.dropout", "0"]
    # Adam divides by the size of a gradient, and so makes rounding visible where one is almost zero.
    own += ["--optimizer", "SGD", "--optimizer.lr", "0.05"]
    own += ["--trainer.max_epochs", "4", "--trainer.accumulate_grad_batches", "2"]
    test = ["--data.test_path", str(uneven), "--data.max_new_tokens", "8", "--data.eval_batch_size", "4"]
    states, records = [], []
    for processes, batch_size in ((1, 4), (2, 2)):
        folder = tmp_path / f"{processes}-processes"
        folder.mkdir()
        run(folder, "fit", processes, *own, "--data.batch_size", str(batch_size))
        assert [path.name for path in (folder / "runs").iterdir() if path.is_dir()] == ["lora-1"]
        states.append(torch.load(folder / "runs/lora-1/checkpoints/last.ckpt", weights_only=True))
        out = run(folder, "test", processes, *test)
        assert out.count("results: ") == 1
        lines = (folder / "runs/lora-1/predictions/uneven.jsonl").read_text().splitlines()
        records.append([json.loads(line) for line in lines])
        results = json.loads((folder / "runs/lora-1/results.json").read_text())
        assert results["sets"]["uneven"]["n"] == 21
    one, two = states
    # 21 rows in steps of 8: the last step leaves one process with an empty batch.
    assert one["global_step"] == two["global_step"] == 4 * 3
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, two["state_dict"][name], atol=1e-6), name
    assert all(value.any() for name, value in one["state_dict"].items() if name.endswith("lora_B"))
    assert [record["row"] for record in records[0]] == list(range(21))
    assert records[0] == records[1]


def test_accuracy_is_exact_across_processes(tmp_path):
    program = tmp_path / "count.py"
    program.write_text(
        "import os, sys, torch, torch.distributed as dist\n"
        "from adapters_pl.evaluation.metrics import AnswerAccuracy\n"
        "dist.init_process_group('gloo')\n"
        "metric = AnswerAccuracy()\n"
        "metric.update([True] * 3 if dist.get_rank() else [False, True, True, False, False])\n"
        "assert metric.compute().item() == 5 / 8, metric.compute()\n"
        "dist.destroy_process_group()\n"
    )
    environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"}
    environment |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [
        warm.Process([sys.executable, program], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
