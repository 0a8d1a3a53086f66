"""Every method on the quickstart's base in float32, 8-bit and 4-bit: the same seed, the same data, the same steps.

``python -m tests.helpers.quantised_grid [--seed 1] [--only NAME ...]`` prints a Markdown table of training losses. The
validation pass in the middle is there since an evaluation can leave a quantised layer untrainable.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from dataclasses import dataclass

import peft
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from adapters_pl import (
    IA3,
    CausalLMModule,
    LoRA,
    ParallelAdapter,
    PEFTAdapter,
    PrefixTuning,
    PromptTuning,
    PTuning,
    SeriesAdapter,
    WordProblems,
)

WIDTHS = (None, "8bit", "4bit")
#: How each is made, and its learning rate: that of the quickstart's comparison where it has the method, except that
#: plain prefixes learn too little at it in so few steps. Prompts learn in leaps, and runs that differ in a rounding
#: leap at different steps: they get a smaller rate and more steps (120 at 0.03 ended up to 0.15 below float32).
METHODS = {
    "LoRA": (lambda: LoRA(16, 32, 0.0), 5e-3),
    "LoRA, rsLoRA": (lambda: LoRA(16, 16, 0.0, rslora=True), 5e-3),
    "LoRA, DoRA": (lambda: LoRA(16, 32, 0.0, dora=True), 5e-3),
    "LoRA, PiSSA": (lambda: LoRA(16, 32, 0.0, init="pissa"), 1e-3),
    "LoRA, OLoRA": (lambda: LoRA(16, 32, 0.0, init="olora"), 1e-3),
    "SeriesAdapter": (lambda: SeriesAdapter(), 5e-3),
    "SeriesAdapter, linear": (lambda: SeriesAdapter(64, family="linear"), 5e-3),
    "ParallelAdapter": (lambda: ParallelAdapter(), 5e-3),
    "IA3": (lambda: IA3(), 3e-2),
    "PrefixTuning": (lambda: PrefixTuning(), 3e-1),
    "PrefixTuning, projection": (lambda: PrefixTuning(projection=512), 5e-3),
    "PromptTuning": (lambda: PromptTuning(), 1e-2),
    "PTuning": (lambda: PTuning(), 5e-3),
    "PEFTAdapter, VeRA": (lambda: PEFTAdapter(peft.VeraConfig(r=64, d_initial=0.1)), 3e-2),
    "PEFTAdapter, LoRA": (lambda: PEFTAdapter(peft.LoraConfig(r=16, lora_alpha=32)), 5e-3),
}
#: Short courses, which the tests run by default: method, width, steps.
SHORT = [("LoRA", "4bit", 30), ("SeriesAdapter", "8bit", 30), ("PrefixTuning", "4bit", 40)]
STEPS = {name: 300 if name == "PromptTuning" else 120 for name in METHODS}


class _Losses(Callback):
    """The training loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args) -> None:
        self.values.append(float(outputs["loss"]))


@dataclass
class Course:
    """Mean training losses, in nats: of the first step, of the tenth before the validation pass, of the last tenth."""

    start: float
    middle: float
    end: float


def train(name: str, width: str | None, steps: int | None = None, batch_size: int = 8, seed: int = 1) -> Course:
    """Train one method on the quickstart's base, with a validation pass in the middle."""
    make, lr = METHODS[name]
    steps = steps or STEPS[name]
    seed_everything(seed, verbose=False)
    module = CausalLMModule("quickstart", dtype="float32", quantization=width, lr=lr, warmup_steps=20, test_base=False)
    data = WordProblems(train_rows=steps * batch_size, seed=seed, batch_size=batch_size, val_size=8)
    losses = _Losses()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=100,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=steps // 2,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        callbacks=[make(), losses],
    )
    trainer.fit(module, data)
    tenth = steps // 10
    middle = losses.values[steps // 2 - tenth : steps // 2]
    return Course(losses.values[0], sum(middle) / tenth, sum(losses.values[-tenth:]) / tenth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| method | start | float32 | 8-bit: start, middle, end (from float32) | 4-bit: the same |")
    print("|---|---|---|---|---|")
    for name in options.only:
        with contextlib.redirect_stderr(io.StringIO()):
            plain, *quantised = (train(name, width, seed=options.seed) for width in WIDTHS)
        cells = [f"{c.start:.3f}, {c.middle:.3f}, {c.end:.3f} ({c.end - plain.end:+.3f})" for c in quantised]
        print(f"| {name} | {plain.start:.3f} | {plain.end:.3f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
