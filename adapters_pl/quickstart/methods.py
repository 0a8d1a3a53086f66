"""Every adapter method on the quickstart base, for the same computing time, over several seeds.

``python -m adapters_pl.quickstart.methods [--seconds 120] [--seeds 1 2 3] [--only NAME ...] [--out DIR]`` trains each
method for ``--seconds`` of processor time of one core, tests it, and writes ``methods.json`` and ``methods.md``.
Processor time is what a busy machine leaves comparable; the steps that fit are measured first, so that the learning
rate falls to zero where training ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from adapters_pl import (
    IA3,
    Adapter,
    CausalLMModule,
    LoRA,
    ParallelAdapter,
    PrefixTuning,
    PromptTuning,
    PTuning,
    SeriesAdapter,
    WordProblems,
)

_MEASURED_FROM, _MEASURED_TO = 10, 30
TEST_ROWS = 200


#: How each method is made, and its learning rate.
METHODS: dict[str, tuple[Callable[[], Adapter], float]] = {
    "LoRA": (lambda: LoRA(16, 32, 0.0), 5e-3),
    "LoRA, DoRA": (lambda: LoRA(16, 32, 0.0, dora=True), 5e-3),
    "SeriesAdapter": (SeriesAdapter, 5e-3),
    "ParallelAdapter": (ParallelAdapter, 5e-3),
    "IA3": (IA3, 3e-2),
    "PrefixTuning, projection 512": (lambda: PrefixTuning(projection=512), 5e-3),
    "PrefixTuning": (PrefixTuning, 5e-2),
    "PTuning": (PTuning, 5e-3),
    "PromptTuning": (PromptTuning, 3e-2),
}


class _Clock(Callback):
    """Notes the processor time of a step, past the first ones, in which things are set up."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.times.append(time.process_time())

    def seconds_a_step(self) -> float:
        """Their mean over the steps that count."""
        return (self.times[_MEASURED_TO - 1] - self.times[_MEASURED_FROM - 1]) / (_MEASURED_TO - _MEASURED_FROM)


def train(name: str, seed: int, steps: int, *callbacks: Callback) -> tuple[Trainer, CausalLMModule, WordProblems]:
    """Train the method ``name`` for ``steps`` optimizer steps."""
    make, lr = METHODS[name]
    seed_everything(seed, verbose=False)
    module = CausalLMModule("quickstart", dtype="float32", lr=lr, warmup_steps=20, test_base=False)
    sizes = {"batch_size": 16, "eval_batch_size": 64, "val_size": 0, "max_new_tokens": 48, "limit_test": TEST_ROWS}
    data = WordProblems(train_rows=3300, seed=seed, **sizes)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=1000,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        callbacks=[make(), *callbacks],
    )
    trainer.fit(module, data)
    return trainer, module, data


def compare(name: str, seed: int, seconds: float) -> dict[str, Any]:
    """Train for ``seconds`` of processor time and test; accuracies in percent by set."""
    clock = _Clock()
    train(name, seed, _MEASURED_TO, clock)
    steps = int(seconds / clock.seconds_a_step())
    began = time.process_time()
    trainer, module, data = train(name, seed, steps)
    took = time.process_time() - began
    parameters = sum(p.numel() for p in module.adapter_parameters().values())
    trainer.test(module, data, verbose=False)
    found = {name: 100 * float(trainer.callback_metrics[f"accuracy/{name}"]) for name in data.eval_sets}
    return {"seed": seed, "steps": steps, "seconds": round(took, 1), "parameters": parameters, "accuracy": found}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: mean accuracy and the range over seeds."""
    sets = list(next(iter(results.values()))[0]["accuracy"])
    rows = [["method", "parameters", "lr", "steps", *sets], ["---"] * (4 + len(sets))]
    for name, runs in results.items():
        steps = round(statistics.mean(run["steps"] for run in runs))
        rows.append([name, f"{runs[0]['parameters']:,}", f"{METHODS[name][1]:g}", str(steps)])
        for chosen in sets:
            values = [run["accuracy"][chosen] for run in runs]
            rows[-1].append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run the comparison; what is there already is not run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("methods"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "methods.json"
    results: dict[str, list[dict[str, Any]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in options.seeds:
        for name in options.only:
            if any(run["seed"] == seed for run in results.get(name, [])):
                continue
            run = compare(name, seed, options.seconds)
            results.setdefault(name, []).append(run)
            kept.write_text(json.dumps(results, indent=1))
            (options.out / "methods.md").write_text(table(results) + "\n")
            print(name, run, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
