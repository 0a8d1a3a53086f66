"""Kill training at many moments, resume it, and compare what comes out with what an uninterrupted run gives.

``python tests/helpers/kill_resume.py [--moments 20] [--seed 0]`` prints a table. Every moment is a run of its own,
killed by SIGKILL from outside and resumed by a new process; the moments are drawn over everything that an uninterrupted
run reports of itself: batches, steps, validations, checkpoints. Some kills come while half of a checkpoint is written,
where the writer waits for them. Some runs have two processes, and one goes through the command line.

The processes are forked off one that has imported everything, so that a run takes seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from adapters_pl import CausalLMModule, InstructionJSON, LoRA
from adapters_pl.cli import main as cli
from adapters_pl.cli import training as lightning_cli
from adapters_pl.runs.run import Run
from adapters_pl.training import callbacks, checkpoint
from adapters_pl.training.metrics_file import MetricsFile
from adapters_pl.training.strategies import strategy_named
from tests.conftest import tiny_model, tiny_tokenizer
from tests.helpers.processes import free_port

#: What is trained: fifteen batches and eight steps an epoch, the last of them of one batch.
DATA: dict[str, Any] = {"batch_size": 2, "eval_batch_size": 2, "val_size": 3, "num_workers": 0}
TRAINER: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 5}
EVERY = 3


def prepare(folder: Path) -> None:
    """A tiny base with dropout, and 33 rows of different lengths."""
    tiny_model("opt", num_hidden_layers=1).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [
        {
            "instruction": f"What is {a} plus {a}?",
            "output": "well, " * (a % 5) + f"it is {2 * a}.",
            "answer": str(2 * a),
        }
        for a in range(33)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))


def train(
    folder: Path,
    run: Path,
    *more: Callback,
    every: int = EVERY,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    module: Callable[[CausalLMModule], Any] = lambda module: None,
    begin: str = "last",
) -> Trainer:
    """Train in ``run`` with what the command line trains with, from its checkpoint if it has one."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    seed_everything(7, verbose=False)
    before, callbacks.CHECKPOINT_EVERY = callbacks.CHECKPOINT_EVERY, every
    try:
        added = callbacks.checkpoint_callbacks(Run(run), "val_loss", validates=True)
    finally:
        callbacks.CHECKPOINT_EVERY = before
    lightning = Trainer(
        callbacks=[LoRA(rank=2, dropout=0.1), *added, *more],
        logger=MetricsFile(run),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        **{"accelerator": "cpu", **TRAINER, **(trainer or {})},
    )
    saved = run / "checkpoints" / f"{begin}.ckpt"
    model = CausalLMModule(str(folder / "base"), lr=0.01)
    module(model)
    rows = InstructionJSON(**{"path": str(folder / "rows.json"), **DATA, **(data or {})})
    lightning.fit(model, datamodule=rows, ckpt_path=str(saved) if saved.is_file() else None, weights_only=True)
    return lightning


# ---- processes that tell what they do, and can be killed


class Report(Callback):
    """Tells what training does, an event a line, and waits to be killed at one of them if it is told to."""

    def __init__(self, pipe: int, halt: int | None = None) -> None:
        self.pipe = pipe
        self.halt = halt
        self.count = 0

    def tell(self, event: str) -> None:
        os.write(self.pipe, f"{event}\n".encode())
        self.count += 1
        if self.halt == self.count:
            while True:
                signal.pause()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.tell(f"batch {trainer.global_step}")

    def on_before_backward(self, trainer, pl_module, loss):
        self.tell(f"backward {trainer.global_step}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.tell(f"batch done {trainer.global_step}")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.tell(f"validation {trainer.global_step}")

    def on_train_epoch_end(self, trainer, pl_module):
        self.tell(f"epoch end {trainer.global_step}")

    def writing(self, checkpoint: dict[str, Any], file: BinaryIO) -> None:
        """Stands in for ``torch.save``, with a stop half way."""
        buffer = io.BytesIO()
        SAVE(checkpoint, buffer)
        content = buffer.getvalue()
        file.write(content[: len(content) // 2])
        file.flush()
        self.tell(f"writing {checkpoint['global_step']}")
        file.write(content[len(content) // 2 :])


SAVE = torch.save


@dataclass(frozen=True)
class Kind:
    """A way to train: how many processes, loader processes, and whether the command line is what runs."""

    name: str
    processes: int = 1
    workers: int = 0
    strategy: str = "auto"
    cli: bool = False


ONE, WORKERS = Kind("one process"), Kind("2 loader workers", workers=2)
TWO, SHARDED = Kind("2 processes", 2, strategy="ddp"), Kind("2 processes, fsdp", 2, strategy="fsdp")
CLI = Kind("command line", cli=True)


@dataclass
class Process:
    """Training on all its processes, forked off this one."""

    pids: list[int]
    reports: int

    def events(self):
        """The events as they come."""
        with os.fdopen(self.reports, "rb") as lines:
            for line in lines:
                yield line.decode().strip()

    def kill(self) -> None:
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> list[int]:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]
        self.pids = []
        return codes


def fork(processes: int, run: Path, job: Callable[[int, int], int]) -> Process:
    """Run ``job(rank, pipe)`` in so many new processes; what is printed goes to ``run-<rank>.log``."""
    reports, pipe = os.pipe()
    port = free_port() if processes > 1 else 0
    run.mkdir(parents=True, exist_ok=True)
    pids = []
    for rank in range(processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 99
        try:
            os.setsid()
            os.close(reports)
            log = os.open(run / f"run-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
            code = job(rank, pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # whatever became of the log: this process must not go on with the tests of the first
                os._exit(code)
    os.close(pipe)
    return Process(pids, reports)


def start(kind: Kind, folder: Path, run: Path, halt: int | None = None) -> Process:
    """Begin training in ``run``, or go on with it."""

    def job(rank: int, pipe: int) -> int:
        report = Report(pipe, halt) if rank == 0 else Report(os.open(os.devnull, os.O_WRONLY))
        checkpoint.torch = Half(report)
        if kind.cli:
            return by_command_line(folder, run, report)
        strategy = {"strategy": strategy_named(kind.strategy), "devices": kind.processes}
        train(folder, run, report, data={"num_workers": kind.workers}, trainer=strategy)
        return 0

    return fork(kind.processes, run, job)


class Half:
    """PyTorch for the module that writes checkpoints, but with a writer that stops half way."""

    def __init__(self, report: Report) -> None:
        self.save = report.writing

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def by_command_line(folder: Path, run: Path, report: Report) -> int:
    """What ``adapters-pl fit`` does, with a checkpoint every few steps."""
    callbacks.CHECKPOINT_EVERY = EVERY
    added = callbacks.checkpoint_callbacks
    lightning_cli.checkpoint_callbacks = lambda *arguments: [report, *added(*arguments)]
    os.chdir(run)
    if (run / "runs" / "latest").is_file() and list(run.glob("runs/*/checkpoints/last.ckpt")):
        return cli.main(["fit", "--ckpt_path", "last"])
    shutil.rmtree(run / "runs", ignore_errors=True)
    settings = {"data": "InstructionJSON", "data.path": folder / "rows.json", "adapter": "LoRA", "adapter.rank": 2}
    settings |= {"adapter.dropout": 0.1, "model.base": folder / "base", "model.lr": 0.01, "trainer.accelerator": "cpu"}
    settings |= {"trainer.enable_progress_bar": "false", "trainer.log_every_n_steps": 1}
    settings |= {f"data.{key}": value for key, value in DATA.items()}
    settings |= {f"trainer.{key}": value for key, value in TRAINER.items()}
    return cli.main(["fit", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])


# ---- comparing


def run_of(kind: Kind, run: Path) -> Path:
    """Where the run's files are."""
    return run / "runs" / "lora-1" if kind.cli else run


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ in a single bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if one == other else [where]


def outcome(run: Path) -> dict[str, Any]:
    """What two runs must agree on: parameters, optimizer, schedule, position, random state, the best, metrics."""
    last = load(run / "checkpoints" / "last.ckpt")
    best = run / "checkpoints" / "best.ckpt"
    found = {key: last[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "resume", "global_step")}
    scores = [state["best_model_score"] for key, state in last["callbacks"].items() if "ModelCheckpoint" in key]
    return {
        **found,
        "best": load(best)["state_dict"] if best.is_file() else None,
        "scores": scores,
        "metrics": (run / "metrics.csv").read_text(),
    }


# ---- the table


@dataclass
class Moment:
    """What came of one kill."""

    kind: Kind
    event: int
    of: int
    what: str
    on_disk: list[str] = field(default_factory=list)
    resumed_from: int | None = None
    problems: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        start = "the beginning" if self.resumed_from is None else f"step {self.resumed_from}"
        equal = "yes" if not self.problems else "NO: " + ", ".join(self.problems[:3])
        what, step = self.what.rsplit(" ", 1)
        return [self.kind.name, f"{self.event}/{self.of} {what}", step, " ".join(self.on_disk) or "-", start, equal]


def on_disk(run: Path, moment: Moment) -> None:
    """Note which checkpoints a killed run left, all of which must be readable."""
    for path in sorted((run / "checkpoints").glob("*") if (run / "checkpoints").is_dir() else []):
        if path.suffix != ".ckpt":
            moment.on_disk.append(f"half a {path.name.split('.')[1]}.ckpt")
            continue
        try:
            step = load(path)["global_step"]
        except Exception as error:
            moment.problems.append(f"{path.name} unreadable: {error}")
            continue
        moment.on_disk.append(f"{path.stem}@{step}")
        if path.stem == "last":
            moment.resumed_from = step


def kill_and_resume(kind: Kind, folder: Path, run: Path, moment: Moment, expected: dict[str, Any]) -> None:
    """Kill a run at ``moment``, let another process go on, and compare."""
    # Writing waits for its end; the others go on while the signal is on its way.
    killed = start(kind, folder, run, moment.event if moment.what.startswith("writing") else None)
    for count, event in enumerate(killed.events(), start=1):
        if count == moment.event:
            assert event == moment.what, f"{event} where {moment.what} had been"
            break
    killed.kill()
    on_disk(run_of(kind, run), moment)
    resumed = start(kind, folder, run)
    for _ in resumed.events():
        pass
    if any(resumed.wait()):
        moment.problems.append(f"failed, see {run}/run-0.log")
    else:
        moment.problems += differences(expected, outcome(run_of(kind, run)))
        if left := list((run_of(kind, run) / "checkpoints").glob(".*")):
            moment.problems.append(f"left {left}")


def uninterrupted(kind: Kind, folder: Path, run: Path) -> tuple[list[str], dict[str, Any]]:
    """An uninterrupted run: its events and what came out."""
    process = start(kind, folder, run)
    events = list(process.events())
    if any(process.wait()):
        raise RuntimeError((run / "run-0.log").read_text()[-3000:])
    return events, outcome(run_of(kind, run))


def draw(events: list[str], when: str, chance: random.Random) -> int:
    """The number of an event before the first checkpoint is there, after it, or of a later one half written."""
    first = next(i for i, event in enumerate(events, start=1) if event.startswith("writing"))
    writing = [i for i, event in enumerate(events, start=1) if event.startswith("writing") and i > first]
    choices = {"before": range(1, first + 1), "after": range(first + 1, len(events) + 1), "writing": writing}
    return chance.choice(choices[when])


#: Of twenty moments, seventeen after the first checkpoint, six of them within the writing of another.
PLAN = [
    *[(ONE, "writing"), (TWO, "after"), (CLI, "after"), (WORKERS, "after"), (ONE, "after"), (ONE, "before")],
    *[(WORKERS, "writing"), (TWO, "writing"), (CLI, "writing"), (ONE, "writing")],
    *[(ONE, "after"), (WORKERS, "after"), (TWO, "after"), (SHARDED, "after"), (SHARDED, "writing")],
    *[(ONE, "after"), (ONE, "after"), (WORKERS, "after"), (WORKERS, "before"), (TWO, "before")],
]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns how many moments went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=len(PLAN))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    chance = random.Random(chosen.seed)
    done: list[Moment] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        known: dict[Kind, tuple[list[str], dict[str, Any]]] = {}
        for number, (kind, when) in enumerate(PLAN[: chosen.moments], start=1):
            if kind not in known:
                known[kind] = uninterrupted(kind, folder, folder / kind.name)
            events, expected = known[kind]
            event = draw(events, when, chance)
            moment = Moment(kind, event, len(events), events[event - 1])
            kill_and_resume(kind, folder, folder / f"moment-{number}", moment, expected)
            done.append(moment)
            if number == 1:
                print(row(HEAD), flush=True)
            print(row(moment.row()), flush=True)
    good = sum(not moment.problems for moment in done)
    later = sum(moment.resumed_from is not None for moment in done)
    torn = sum("half" in " ".join(moment.on_disk) for moment in done)
    print(f"\n{good} of {len(done)} equal; {later} killed after the first checkpoint, {torn} within the writing of one")
    return len(done) - good


HEAD = ["kind", "killed at event", "step", "on disk", "resumed from", "equal"]


def row(cells: list[str]) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, (17, 22, 4, 40, 13, 5), strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sys.exit(bool(main()))
