"""Runs and studies as commands leave them, made by the package's own writers without training anything."""

from __future__ import annotations

from typing import Any

import yaml

from adapters_pl.evaluation.report import summarize
from adapters_pl.evaluation.results import keep_test
from adapters_pl.runs.effort import Effort
from adapters_pl.runs.run import Run


def config(method="LoRA", base="quickstart", seed=42, **arguments):
    arguments = arguments or {"rank": 8}
    return {
        "seed_everything": seed,
        "model": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": base, "lr": 1e-3}},
        "data": {"class_path": "adapters_pl.WordProblems", "init_args": {"seed": seed}},
        "adapter": {"class_path": f"adapters_pl.{method}", "init_args": arguments},
    }


def records(marks: str, name="sums", output="The answer is {}.", base=None) -> list[dict[str, Any]]:
    """A record a row: right or wrong by a letter (``+`` and ``-``)."""
    found = []
    for row, mark in enumerate(marks):
        said = str(row) if mark == "+" else "?"
        record = {"row": row, "id": f"{name}-{row}", "output": output.replace("{}", said), "prediction": said}
        record |= {"gold": str(row), "correct": mark == "+", "finish": "stop", "tokens": 4}
        if base is not None:
            record |= {"base_prediction": "0", "base_correct": base[row] == "+"}
        found.append(record)
    return found


def write_run(folder, sets, *, about=None, parameters=1000, state="complete", losses=(), distribution=None, **more):
    """A fitted and tested run at ``folder``.

    Args:
        folder: of the run.
        sets: records by set.
        about: its configuration.
        parameters: what ``fit.json`` says was trained.
        state: how training stands.
        losses: (step, training loss, validation loss or nothing).
        distribution: ``in`` or ``out`` by set.
        more: what ``results.json`` says besides.
    """
    run, about = Run(folder), about or config()
    run.path.mkdir(parents=True)
    run.write("config.yaml", yaml.safe_dump(about))
    (run.path / "checkpoints").mkdir()
    effort = Effort(run)
    effort.begin({"default": parameters})
    effort.write(state, None, 2**30, steps=len(losses), epochs=1, device="a CPU", processes=1)
    if losses:
        rows = [f"0,{step},{train},{'' if held is None else held}\n" for step, train, held in losses]
        (run.path / "metrics.csv").write_text("epoch,step,train_loss,val_loss\n" + "".join(rows))
    results = {
        name: {
            **summarize(found, 1.5, 100),
            "settings": {"protocol": more.get("protocol", "strict")},
            "distribution": (distribution or {}).get(name),
            "date": "2026-11-29T10:11:06+00:00",
        }
        for name, found in sets.items()
    }
    if results:
        keep_test(run, results, sets, **{"protocol": "strict", "config": about, **more})
    return run


def write_study(folder, axes, trials):
    """A study with an ordinary run for each of ``trials``: (values, state, sets)."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": folder.name, "axes": axes}, sort_keys=False))
    for number, (values, state, sets) in enumerate(trials):
        run = write_run(folder / f"trial-{number}", sets, about=config(**{"seed": values.get("seed_everything", 0)}))
        trial = {"study": folder.name, "number": number, "values": values, "state": state, "error": None}
        run.write("trial.json", trial)
