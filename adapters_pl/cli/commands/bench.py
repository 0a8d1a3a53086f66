"""``bench``: how long a training step of a configuration takes on this machine, and beside what."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table

from adapters_pl.cli.command_line import CommandLine, Option
from adapters_pl.cli.commands.plan import PlanCLI
from adapters_pl.cli.configuration import find_own_modules
from adapters_pl.cli.key_help import OWN
from adapters_pl.cli.main import DONE
from adapters_pl.cli.parser import attempt, refuse_saved_adapter
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import AtLeast1
from adapters_pl.inputs.tables import print_table
from adapters_pl.runs.at_once import replacing
from adapters_pl.training.adapter_files import read_adapter
from adapters_pl.training.benchmark import answering, fitting
from adapters_pl.training.benchmark.measure import measure, measure_answers
from adapters_pl.training.benchmark.pace import Job
from adapters_pl.training.planning.memory_advice import amount

_LIBRARIES = ("torch", "lightning", "transformers", "peft")


class BenchCLI(PlanCLI):
    """The configuration of a training run, of which module, data and adapters are built, and what is measured."""

    needs_data = True
    built = ("model", "adapter", "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is measured, and how often."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--eval", action="store_true", help=f"{OWN['eval'].line}.")
        parser.add_argument("--against", type=str | None, default=None, help=f"{OWN['against'].line}.")
        parser.add_argument("--rounds", type=AtLeast1, default=5, help=f"{OWN['rounds'].line}.")
        parser.add_argument("--steps", type=AtLeast1, default=5, help=f"{OWN['steps'].line}.")
        parser.add_argument("--scaling", type=str | None, default=None, help=f"{OWN['scaling'].line}.")
        parser.add_argument("--json", type=str | None, default=None, help=f"{OWN['json'].line}.")


def _job(cli: BenchCLI, steps: int) -> Job:
    """What ``cli`` has configured, to be trained for ``steps`` optimizer steps."""
    trainer, seed = cli.config.trainer.as_dict(), cli.config.seed_everything
    path = cli.line.get("adapter_path")
    saved = read_adapter(path, cli.model.config) if path else None
    seed = 42 if isinstance(seed, bool) else seed
    return Job(cli.model, cli.config_init.data, cli.adapters, trainer, steps, seed, saved)


def _build(line: CommandLine, steps: int) -> Job:
    """The job of an arm; called in its process."""
    find_own_modules(line)
    return _job(BenchCLI(line), steps)


def _scaled(line: CommandLine, scaling: str | None) -> list[tuple[str, CommandLine]]:
    """The command line once for each value of ``KEY=A,B``, and what to call each."""
    if scaling is None:
        return [("", line)]
    key, _, values = scaling.partition("=")
    if not (key and values):
        raise UserError(f"--scaling {scaling}: give a key and its values, as in --scaling data.batch_size=2,4,8")
    return [
        (f"{key} {value}", replace(line, options=(*line.options, Option(key, value, (f"--{key}", value)))))
        for value in values.split(",")
    ]


def _machine() -> dict[str, Any]:
    """What the figures belong to."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version(name)
        except ImportError:
            libraries[name] = "missing"
    return {"device": device, "threads": torch.get_num_threads(), "libraries": libraries}


def training_table(title: str, result: dict[str, Any]) -> Table:
    """One line an arm, with the medians of its steps."""
    table = Table(title=f"medians of one optimizer step{title and f', {title}'}", title_justify="left")
    parts = ("data", "forward", "backward", "optimizer")
    for column in ("", "step", "tokens/s", "padding", *parts, "memory", "loss"):
        table.add_column(column, justify="right" if column else "left")
    for arm, row in result["arms"].items():
        table.add_row(
            arm,
            _seconds(row["step_seconds"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['padding']:.0%}",
            *(_seconds(row["parts"][part]) if part in row["parts"] else "" for part in parts),
            amount(row["peak_bytes"]),
            f"{row['loss']:.4f}",
        )
    return table


def answers_table(title: str, result: dict[str, Any]) -> Table:
    """One line an arm, with the median time of a row."""
    table = Table(title=f"answers{title and f', {title}'}", title_justify="left")
    for column in ("", "rows", "a row", "tokens/s", "memory", "same answers"):
        table.add_column(column, justify="right" if column else "left")
    for arm, row in result["arms"].items():
        same = result["ratios"].get(arm, {}).get("same")
        table.add_row(
            arm,
            f"{row['rows']:,}",
            _seconds(row["row_seconds"]),
            f"{row['tokens_per_second']:,.0f}" if row["tokens_per_second"] else "",
            amount(row["peak_bytes"]),
            "" if same is None else f"{same:.1%}",
        )
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def main(line: CommandLine, debug: bool = False) -> int:
    """Measure, and print a table and the ratios; nothing is written but what ``--json`` names."""
    return attempt("bench", partial(_bench, line), debug)


def _bench(line: CommandLine) -> int:
    answers = line.has("eval")
    refuse_saved_adapter(line, "it measures a new training", but=("adapter_path",) if answers else ())
    find_own_modules(line)
    cli = BenchCLI(line)
    config = cli.config
    if not cli.adapters and not answers:
        raise UserError("Nothing to measure: there is no adapter. Pass --adapter LoRA.")
    if cli.adapters and line.get("adapter_path"):
        raise UserError("--adapter_path says which adapter it holds; leave out --adapter (or pass --adapter null).")
    if config.json and not Path(config.json).absolute().parent.is_dir():
        raise UserError(f"--json {config.json}: there is no such folder; make it first.")
    if config.json and Path(config.json).is_dir():
        raise UserError(f"--json {config.json}: this is a folder; name a file in it.")
    kind = _kind(cli, answers)
    arms, unit = _arms(kind, config.against), "row" if answers else "real token"
    lines = _scaled(line, config.scaling)
    for title, scaled in lines:  # the last value may be wrong, and each takes minutes
        job = _job(BenchCLI(scaled) if title else cli, 1)
        (answering if answers else fitting).refuse(job, arms)
    results: list[tuple[str, dict[str, Any]]] = []
    for title, scaled in lines:
        build = partial(_build, scaled)
        if answers:
            results.append((title, measure_answers(build, kind, arms, config.rounds)))
            print_table(answers_table(*results[-1]))
        else:
            results.append((title, measure(build, arms, config.rounds, config.steps)))
            print_table(training_table(*results[-1]))
        for arm, ratio in results[-1][1]["ratios"].items():
            middle, low, high = ratio["seconds"]
            print(
                f"adapters-pl over {arm}: {middle:.2f} of the time for a {unit} ({low:.2f} to {high:.2f} in "
                f"{config.rounds} rounds), {ratio['memory']:.2f} of the memory"
            )
        if config.json:
            found = {"machine": _machine(), "results": [{"scaling": value, **result} for value, result in results]}
            with replacing(Path(config.json)) as file:
                file.write((json.dumps(found, indent=1) + "\n").encode())
    if config.json:
        print(f"written: {config.json}")
    return DONE


def _kind(cli: BenchCLI, answers: bool) -> str:
    if not answers:
        return "training"
    return "writing" if cli.config_init.data.asking.protocol.generates else "scoring"


def _arms(kind: str, against: str | None) -> list[str]:
    """What takes turns.

    Raises:
        UserError: there is nothing of that name to measure against.
    """
    always, more = {
        "training": (["floor", "adapters-pl"], {"peft": "with the Trainer of transformers"}),
        "writing": (["generate", "adapters-pl"], {"reference": "the paper's way: row by row, four beams, no cache"}),
        "scoring": (["lm-eval", "adapters-pl"], {}),
    }[kind]
    if against is not None and against not in more:
        known = "; ".join(f"there is only {name}, {what}" for name, what in more.items()) or "there is nothing more"
        raise UserError(f"--against {against}: {known}.")
    return [*always, *([against] if against else [])]
