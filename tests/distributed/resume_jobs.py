"""What ends or moves a run of two processes: prints ``kill_resume``'s table, and one line of JSON with what happened.

Its processes are forked off one that has imported everything, which a test's own process might not survive.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from lightning.pytorch import Callback

from adapters_pl.inputs.errors import UserError
from adapters_pl.training import checkpoint
from tests.helpers import kill_resume
from tests.helpers.kill_resume import fork, load, train

TWO = {"strategy": "ddp", "devices": 2}
USER_ERROR, STOPPED = 3, 4


class Rows(Callback):
    """Keeps what this process trains on, each batch's rows that count, and acts on a batch."""

    def __init__(self, act=lambda trainer: None, at=0):
        self.rows: list[list[int]] = []
        self.act = act
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        counted = (batch["labels"] != -100).any(1)
        self.rows.append(batch["row_ids"][counted].tolist())
        if len(self.rows) == self.at:
            self.act(trainer)


class Spoil(Callback):
    """Makes the loss of one batch no number."""

    def __init__(self, rows):
        self.rows = rows

    def setup(self, trainer, pl_module, stage):
        own = pl_module.loss
        pl_module.loss = lambda hidden, batch: own(hidden, batch) * (math.nan if len(self.rows.rows) == 5 else 1)


class FullLater:
    """PyTorch on a disk that is full after one checkpoint."""

    written = 0

    def save(self, checkpoint, file):
        self.written += 1
        if self.written > 1:
            raise OSError(28, "No space left on device")
        torch.save(checkpoint, file)

    def __getattr__(self, name):
        return getattr(torch, name)


def run(folder: Path, name: str, processes: int, per_rank: Any, **settings: Any) -> dict[str, Any]:
    """Train in ``folder/name``; ``per_rank(rank, rows)`` gives further callbacks."""
    where = folder / name
    trainer = {"max_epochs": 1, **(TWO if processes > 1 else {}), **settings.pop("trainer", {})}
    codes = {UserError: USER_ERROR, SystemExit: STOPPED}

    def job(rank: int, pipe: int) -> int:
        rows = Rows()
        try:
            train(folder, where, rows, *per_rank(rank, rows), trainer=trainer, **settings)
            code = 0
        except (UserError, SystemExit) as error:
            print(f"<<{error}>>")
            code = codes[type(error)]
        (where / f"rows-{rank}.json").write_text(json.dumps(rows.rows))
        return code

    done = fork(processes, where, job).wait()
    logs = [(where / f"run-{rank}.log").read_text() for rank in range(processes)]
    last = where / "checkpoints" / "last.ckpt"
    return {
        "codes": done,
        "said": [log[log.rfind("<<") + 2 : log.rfind(">>")] if "<<" in log else "" for log in logs],
        "logs": logs,
        "rows": [json.loads((where / f"rows-{rank}.json").read_text()) for rank in range(processes)],
        "step": load(last)["global_step"] if last.is_file() else None,
        "left": sorted(path.name for path in last.parent.glob("*")),
    }


def stop(at):
    """Ask this process, as SLURM or a person would, to end."""

    def act(trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    return lambda rank, rows: (setattr(rows, "at", at if rank == 1 else 0), setattr(rows, "act", act))[:0]


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    wrong = kill_resume.main(["--moments", sys.argv[1]])
    nothing = lambda rank, rows: ()  # noqa: E731
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kill_resume.prepare(folder)
        found = {"nan": run(folder, "nan", 2, lambda rank, rows: (Spoil(rows),) if rank == 1 else (), every=1)}
        checkpoint.torch = FullLater()
        found["full"] = run(folder, "full", 2, nothing, every=1)
        checkpoint.torch = torch
        # Whole steps: eight rows on two processes, four on one.
        found["stopped"] = run(folder, "fewer", 2, stop(3), every=100)
        found["fewer"] = run(folder, "fewer", 1, nothing)
        found["one"] = run(folder, "more", 1, nothing, trainer={"max_epochs": -1, "max_steps": 3})
        found["more"] = run(folder, "more", 2, nothing)
    print(json.dumps({"wrong": wrong, **found}))


if __name__ == "__main__":
    main()
