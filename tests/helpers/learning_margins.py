"""How far trainings come on which tests rest: every one by ten seeds, threads and matrix kernels.

A test that asks how much was learnt has to hold on every CPU. ``python -m tests.helpers.learning_margins`` prints the
worst result of each training beside the bound that its test asks for, on one and two threads, with the kernels that
this CPU chooses and with those held to AVX2.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import nbformat
import torch

from adapters_pl.cli import main as adapters_pl
from tests.helpers import quantised_grid

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
KERNELS = {"default": {}, "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}

#: What a training on the sums is given beside its rows: sixteen of them are learnt by heart, and tested.
SUMS = [
    *("--model.base", "quickstart", "--model.dtype", "float32", "--model.lr", "0.005"),
    *("--adapter", "LoRA", "--adapter.dropout", "0", "--trainer.max_epochs", "60"),
    *("--data.batch_size", "8", "--data.val_size", "0", "--data.limit_train", "16", "--data.limit_test", "16"),
    *("--data.max_new_tokens", "24", "--data.contamination", "allow"),
]
#: By result: whether it is to be above the bound, and the bound.
BOUNDS = {
    "sums": (True, 0.6),
    "sums, base alone": (False, 0.2),
    "notebook 01": (True, 0.75),
    "notebook 01, base alone": (False, 0.1),
    "notebook 02": (True, 0.4),
    "notebook 02, base alone": (False, 0.1),
    "notebook 02, focal less cross-entropy certainty": (False, 0.0),
    **{f"{method} {width}, fall": (True, 0.5) for method, width, _ in quantised_grid.SHORT},
    **{f"{method} {width}, fall over float32's": (True, 0.5) for method, width, _ in quantised_grid.SHORT},
    **{f"{method} {width}, fall behind the middle": (True, 0.0) for method, width, _ in quantised_grid.SHORT},
}


def sums(seed: int) -> dict[str, float]:
    """Learn sixteen sums by the command line."""
    rows = [
        {"instruction": f"What is {a} plus {b}?", "output": f"It is {c}. The answer is {c}.", "answer": str(c)}
        for a, b, c in ((a, b, a + b) for a in range(5) for b in range(8))
    ]
    Path("sums.json").write_text(json.dumps(rows))
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    data = ["--data", "InstructionJSON", "--data.path", "sums.json", "--data.test_path", "sums.json"]
    assert adapters_pl(["fit", *data, *SUMS, *quiet, "--seed_everything", str(seed), "--data.seed", str(seed)]) == 0
    assert adapters_pl(["test", *quiet]) == 0
    found = json.loads(Path("runs/lora-1/results.json").read_text())["sets"]["sums"]
    return {"sums": found["accuracy"], "sums, base alone": found["base_accuracy"]}


def notebook(name: str, seed: int, until: str) -> dict[str, Any]:
    """The variables of a notebook, run with another seed as far as the first cell that holds ``until``."""
    variables: dict[str, Any] = {"__name__": "notebook"}
    for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells:
        if cell.cell_type == "code":
            seeded = cell.source.replace("seed_everything(42", f"seed_everything({seed}")
            exec(seeded.replace("WordProblems(", f"WordProblems(seed={seed}, "), variables)
            if until in cell.source:
                break
    return variables


def notebook_01(seed: int) -> dict[str, float]:
    """The quickstart in a notebook."""
    base, adapted = notebook("01_quickstart.ipynb", seed, "accuracies =")["accuracies"]["word_problems"]
    return {"notebook 01": adapted, "notebook 01, base alone": base}


def notebook_02(seed: int) -> dict[str, float]:
    """An adapter of one's own, trained by two losses."""
    found = notebook("02_write_your_own_adapter.ipynb", seed, "compared =")
    (_, plain, _), (_, focal, _) = found["compared"]["cross-entropy"], found["compared"]["focal loss"]
    return {
        "notebook 02": found["accuracy"],
        "notebook 02, base alone": found["base_accuracy"],
        "notebook 02, focal less cross-entropy certainty": focal - plain,
    }


def quantised(seed: int) -> dict[str, float]:
    """Short courses on quantised bases: how far the loss falls, beside float32's, and whether it still falls."""
    found: dict[str, float] = {}
    for method, width, steps in quantised_grid.SHORT:
        plain, course = (quantised_grid.train(method, kind, steps, batch_size=4, seed=seed) for kind in (None, width))
        found[f"{method} {width}, fall"] = course.start - course.end
        found[f"{method} {width}, fall over float32's"] = (course.start - course.end) / (plain.start - plain.end)
        found[f"{method} {width}, fall behind the middle"] = course.middle - course.end
    return found


TRAININGS: dict[str, Callable[[int], dict[str, float]]] = {
    "sums": sums,
    "notebook 01": notebook_01,
    "notebook 02": notebook_02,
    "quantised": quantised,
}


def measure(training: str, seeds: int) -> None:
    """Print a JSON line with the results of every seed."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for seed in range(1, seeds + 1):
        with ExitStack() as stack:
            stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
            found = TRAININGS[training](seed)
        print(json.dumps(found), flush=True)


def main() -> None:
    """Every training under every setting, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainings", nargs="*", default=list(TRAININGS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--here", action="store_true", help="measure in this process, under its settings")
    given = parser.parse_args()
    if given.here:
        measure(given.trainings[0], given.seeds)
        return
    for training in given.trainings:
        for kernels, variables in KERNELS.items():
            for threads in ("1", "2"):
                command = [sys.executable, "-m", "tests.helpers.learning_margins", training, "--here", "--seeds"]
                environment = {**os.environ, **variables, "OMP_NUM_THREADS": threads}
                done = subprocess.run(
                    [*command, str(given.seeds)], env=environment, text=True, stdout=subprocess.PIPE, check=True
                )
                found = [json.loads(line) for line in done.stdout.splitlines()]
                for name in found[0]:
                    above, bound = BOUNDS[name]
                    worst = (min if above else max)(row[name] for row in found)
                    print(
                        f"{name:48} {kernels:8} {threads} threads: worst of {len(found)} {worst:6.3f}, "
                        f"asked {'>=' if above else '<='} {bound}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
