"""Answer sets on however many processes this was launched on, and leave what each process has answered.

``answering.py SETTINGS`` writes ``FOLDER/<job>-<rank>.json`` for every job: the records of this process, and how many
rows it asked its engine for. The processes are given by torchrun's environment, if there is more than one.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from adapters_pl import CausalLMModule, InstructionJSON
from adapters_pl.adapters.base import Adapter
from adapters_pl.training.strategies import FullyShardedStrategy
from tests.helpers.methods import METHODS, perturb


class Asked(CausalLMModule):
    """Counts the rows that its engine is asked for."""

    rows = 0

    def engine(self, batch_size: int = 8) -> Any:
        engine = super().engine(batch_size)
        for verb in ("generate", "score"):
            setattr(engine, verb, self._counted(getattr(engine, verb)))
        return engine

    def _counted(self, verb: Any) -> Any:
        def counted(rows: Sequence[Any], *how: Any) -> Any:
            self.rows += len(rows)
            return verb(rows, *how)

        return counted


class Trained(Callback):
    """Gives the adapter other values than it begins with, before it is divided."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        perturb(pl_module.model, self.adapter)


def answer(
    folder: Path,
    devices: int,
    name: str,
    base: str,
    rows: str,
    method: str = "lora",
    known: Sequence[int] = (),
    **options: Any,
) -> None:
    """Test one base with one adapter; the first process knows the rows ``known`` beforehand."""
    seed_everything(3, verbose=False)
    module, adapter = Asked(base, dtype="float32"), METHODS[method]()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=FullyShardedStrategy() if devices > 1 else "auto",
        callbacks=[adapter, Trained(adapter)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    if trainer.is_global_zero:
        module.known_answers = {
            Path(rows).stem: {row: {"row": row, "output": "known", "correct": False, "tokens": 0} for row in known}
        }
    trainer.test(module, InstructionJSON(test_path=rows, **options), verbose=False)
    (records,) = module.records.values()
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps({"asked": module.rows, "records": records}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    for job in settings["jobs"]:
        answer(Path(settings["folder"]), settings["devices"], **job)
