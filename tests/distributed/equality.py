"""Train every method on however many processes this was launched on, and leave what came out.

``equality.py FOLDER STRATEGY DEVICES METHOD...`` writes ``FOLDER/<method>/last.ckpt`` and, beside it, the first
values. The processes are given by torchrun's environment, if there is more than one.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from adapters_pl import CausalLMModule, InstructionJSON, PEFTAdapter
from adapters_pl.training.strategies import FullyShardedStrategy, full_value
from tests.helpers.methods import METHODS

STEPS, ACCUMULATE = 10, 2
#: Large enough that an adapter moves, small enough that training is no chaos, which makes rounding grow.
RATES = {"prefix": 0.15, "prompt": 0.5, "ptuning": 0.5, "lora-": 0.01}
STRATEGIES = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp": FullyShardedStrategy,
    "fsdp-sharded": lambda: FullyShardedStrategy(save_distributed_checkpoint=True),
    "fsdp-offload": lambda: FullyShardedStrategy(cpu_offload=True),
}


class First(Callback):
    """Keeps the values that training began with, and the loss that was logged of every step."""

    def on_train_start(self, trainer, pl_module):
        state = pl_module.state_dict()  # sharded parameters are whole while the model computes, and shards here
        self.state = {name: full_value(value).clone() for name, value in state.items()}
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.losses) < trainer.global_step:
            self.losses.append(trainer.callback_metrics["train_loss"].item())


def without_dropout(method):
    adapter = PEFTAdapter(peft.LoHaConfig(r=4)) if method == "peft-loha" else METHODS[method]()
    if getattr(adapter, "dropout", 0.0):
        adapter.dropout = 0.0
    return adapter


def train(folder: Path, base: str, rows: str, strategy: str, devices: int, method: str, checkpointing: bool) -> None:
    """Ten steps of two accumulated batches; a step holds the same eight rows whatever the number of processes."""
    seed_everything(3, verbose=False)
    module = CausalLMModule(base, activation_checkpointing=checkpointing)
    # Adam divides by the size of a gradient, and so makes rounding visible where one is almost zero.
    rate = next((rate for name, rate in RATES.items() if method.startswith(name)), 0.02)
    module.optimizer_factory = lambda groups: torch.optim.SGD(groups, lr=rate, momentum=0.9)
    first = First()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=STRATEGIES[strategy](),
        max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=1.0,
        callbacks=[without_dropout(method), first],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    world = devices
    trainer.fit(module, InstructionJSON(path=rows, batch_size=4 // world, val_size=0, cutoff=256))
    path = folder / method / "last.ckpt"
    trainer.save_checkpoint(path)
    if trainer.is_global_zero:
        torch.save(first.state, folder / method / "first.pt")
        (folder / method / "losses.json").write_text(json.dumps(first.losses))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    for name in settings.pop("methods"):
        train(
            Path(settings["folder"]),
            *(settings[key] for key in ("base", "rows", "strategy", "devices")),
            name,
            settings.get("checkpointing", False),
        )
