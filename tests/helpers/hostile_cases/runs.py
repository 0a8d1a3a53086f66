"""Broken files of a finished run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.hostile_cases.common import (
    LAST,
    QUIET,
    RESUME,
    RUN,
    TEST,
    as_fifo,
    as_folder,
    as_link,
    both,
    cut,
    fit,
    json_with,
    place,
    put,
    remove,
    write,
)
from tests.helpers.hostile_inputs import Case


def run_folder_cases() -> Iterator[Case]:
    """What ``latest`` names, and links that lead out of a run."""
    latest: dict[str, str | bytes] = {
        "climbs": "../../x",
        "absolute": "/etc",
        "empty": "",
        "blank": "\n",
        "binary": b"\xff\xfe\0\1",
        "unknown": "lora-9",
        "dots": "..",
        "dot": ".",
        "two lines": "lora-1\nlora-2",
        "long": "a" * 5000,
        "NUL": b"lora-1\0x",
        "surrogate": "\ud800",
    }
    for what, content in latest.items():
        yield Case(f"run/latest {what}", TEST, put("runs/latest", content), "any", ("latest|runs",), how="runs/latest")
    yield Case("run/latest a folder", TEST, as_folder("runs/latest"), says=("runs",))
    yield Case("run/latest a pipe", TEST, as_fifo("runs/latest"), says=("runs",))
    yield Case("run/latest fit climbs", RESUME, put("runs/latest", "../../x"), says=("latest",))
    yield Case("run/latest export climbs", ["export", "--out", "out"], put("runs/latest", "../../x"), says=("latest",))
    outside = "../../../elsewhere"
    links = {
        "results": (RUN / "results.json", f"{outside}/r.json"),
        "predictions": (RUN / "predictions", f"{outside}/p"),
        "checkpoints": (RUN / "checkpoints", f"{outside}/c"),
        "metrics": (RUN / "metrics.csv", f"{outside}/m.csv"),
        "config": (RUN / "config.yaml", f"{outside}/c.yaml"),
        "environment": (RUN / "environment.json", f"{outside}/e.json"),
        "crash log": (RUN / "crash.log", f"{outside}/crash.log"),
        "predicted": (RUN / "predicted", f"{outside}/p"),
        "best": (RUN / "checkpoints" / "best.ckpt", f"../{outside}/b.ckpt"),
        "last": (LAST, f"../{outside}/last.ckpt"),
    }
    for what, (file, to) in links.items():
        for words in (TEST, RESUME):
            yield Case(f"run/{words[0]} link {what}", words, _moved_out(file, to), "any", how=f"{file} -> {to}")
    yield Case(
        "run/predict link predicted",
        ["predict", "--data.test_path", "sums.json", *QUIET],
        _moved_out(*links["predicted"]),
        "any",
    )
    yield Case("run/test link run", TEST, _moved_out(RUN, "../../elsewhere/run"), "any", how="the run a link")
    yield Case(
        "run/fit link runs",
        fit("LoRA", "--adapter.rank", "2"),
        both(remove("runs"), as_link("runs", "../elsewhere")),
        "fine",
        leads_out=True,
    )
    yield Case(
        "run/fit dangling runs", fit("LoRA", "--adapter.rank", "2"), as_link("runs", "nowhere"), "any", ("runs",)
    )
    yield Case(
        "run/fit runs a file",
        fit("LoRA", "--adapter.rank", "2"),
        both(remove("runs"), put("runs", "x")),
        says=("runs",),
    )
    yield Case("run/test no runs", TEST, remove("runs"), says=("runs",))
    yield Case("run/test no checkpoints", TEST, remove(RUN / "checkpoints"), says=("last.ckpt",))
    yield Case("run/test no config", TEST, remove(RUN / "config.yaml"), "any")


def _moved_out(file: Path, to: str) -> Callable[[], None]:
    """Move something out of a run and leave a link to it; what was not there is a link to nothing."""

    def work() -> None:
        target = file.parent / to
        Path("../elsewhere").mkdir(exist_ok=True)
        if file.exists():
            shutil.move(file, target)
        os.symlink(to, file)

    return work


def run_file_cases() -> Iterator[Case]:
    """Broken files of a finished run, and the commands that read them."""
    results, metrics = RUN / "results.json", RUN / "metrics.csv"
    config, environment = RUN / "config.yaml", RUN / "environment.json"
    copy = lambda: shutil.copytree(RUN, "runs/lora-2")  # noqa: E731
    compare = ["compare", "lora-1", "lora-2"]

    def sets(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        return json_with(results, lambda found: [change(found["sets"]), None])

    first = lambda found: found[next(iter(found))]  # noqa: E731
    kinds: dict[str, Callable[[], Any]] = {
        "missing": remove(results),
        "empty": put(results, ""),
        "no JSON": put(results, "x"),
        "cut": cut(results, 0.5),
        "null": put(results, "null"),
        "a list": put(results, "[]"),
        "a number": put(results, "3"),
        "an empty object": put(results, "{}"),
        "binary": put(results, os.urandom(300)),
        "deep": put(results, '{"sets": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "UTF-16": put(results, '{"sets": {}}'.encode("utf-16")),
        "a folder": as_folder(results),
        "a pipe": as_fifo(results),
        "a dangling link": as_link(results, "nowhere"),
        "sets null": json_with(results, place("sets", value=None)),
        "sets a list": json_with(results, place("sets", value=[1])),
        "sets a text": json_with(results, place("sets", value="x")),
        "sets empty": json_with(results, place("sets", value={})),
        "sets of texts": sets(lambda found: found.update(dict.fromkeys(found, "x"))),
        "sets of nulls": sets(lambda found: found.update(dict.fromkeys(found))),
        "sets of lists": sets(lambda found: found.update({key: [1] for key in found})),
        "a set that climbs": sets(lambda found: found.update({"../../../elsewhere/x": first(found)})),
        "a set that is absolute": sets(lambda found: found.update({"/etc/passwd": first(found)})),
        "a set of no name": sets(lambda found: found.update({"": first(found)})),
        "a set of a long name": sets(lambda found: found.update({"a" * 5000: first(found)})),
        "n missing": sets(lambda found: first(found).pop("n")),
        "n text": sets(lambda found: first(found).update(n="x")),
        "n null": sets(lambda found: first(found).update(n=None)),
        "n huge": sets(lambda found: first(found).update(n=10**30)),
        "settings text": sets(lambda found: first(found).update(settings="x")),
        "settings null": sets(lambda found: first(found).update(settings=None)),
        "digest number": sets(lambda found: first(found).update(predictions_sha256=3)),
        "digest null": sets(lambda found: first(found).update(predictions_sha256=None)),
        "digest another": sets(lambda found: first(found).update(predictions_sha256="0" * 64)),
        "digest that climbs": sets(lambda found: first(found).update(predictions_sha256="../../x", n=1)),
        "protocol that climbs": sets(
            lambda found: first(found).update(settings={"protocol": "../../../../elsewhere/x"}, n=1)
        ),
        "model a list": sets(lambda found: first(found).update(model=[1])),
        "accuracy text": sets(lambda found: first(found).update(accuracy="x")),
        "accuracy nan": sets(lambda found: first(found).update(accuracy=float("nan"))),
        "others a list": json_with(results, place("others", value=[1])),
        "others null": json_with(results, place("others", value=None)),
        "data a list": json_with(results, place("data", value=[1])),
        "protocol a list": json_with(results, place("protocol", value=[1])),
        "average text": json_with(results, place("average", value="x")),
    }
    for what, spoil in kinds.items():
        yield Case(f"results/test {what}", TEST, spoil, "any", ("results.json",), how=f"results.json: {what}")
        yield Case(
            f"results/compare {what}", compare, both(copy, spoil), "any", ("results|run",), how=f"results.json: {what}"
        )
    yield Case("results/test n 1", [*TEST, "--overwrite"], sets(lambda found: first(found).update(n=1)), "any")
    for what in ("no JSON", "a list", "sets of texts", "a pipe"):
        words = ["predict", "--data.test_path", "sums.json", *QUIET]
        yield Case(f"results/predict {what}", words, kinds[what], "any", how=f"results.json: {what}")
        yield Case(f"results/validate {what}", ["validate", *QUIET], kinds[what], "any", how=f"results.json: {what}")

    def predictions(work: Callable[[Path], Any]) -> Callable[[], None]:
        return lambda: [work(file) for file in sorted((RUN / "predictions").glob("*.jsonl"))] and None

    def lines_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        def work(file: Path) -> None:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                change(row)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            from adapters_pl.evaluation.results import digest

            sets(lambda found: found[file.stem].update(predictions_sha256=digest(file.read_bytes())))()

        return predictions(work)

    broken = {
        "missing": predictions(lambda file: file.unlink()),
        "empty": predictions(lambda file: file.write_text("")),
        "blank": predictions(lambda file: file.write_text("\n\n")),
        "no JSON": predictions(lambda file: file.write_text("x\n")),
        "cut": predictions(lambda file: os.truncate(file, file.stat().st_size // 2)),
        "a folder": predictions(lambda file: as_folder(file)()),
        "a pipe": predictions(lambda file: as_fifo(file)()),
        "numbers": predictions(lambda file: file.write_text("1\n2\n")),
        "binary": predictions(lambda file: file.write_bytes(os.urandom(500))),
        "deep": predictions(lambda file: file.write_text("[" * 100_000 + "\n")),
        "id missing": lines_with(lambda row: row.pop("id")),
        "id list": lines_with(lambda row: row.update(id=[1])),
        "ids the same": lines_with(lambda row: row.update(id="x")),
        "correct text": lines_with(lambda row: row.update(correct="x")),
        "correct missing": lines_with(lambda row: row.pop("correct")),
        "output missing": lines_with(lambda row: row.pop("output")),
        "gold nan": lines_with(lambda row: row.update(gold=float("nan"))),
        "row text": lines_with(lambda row: row.update(row="x")),
    }
    for what, spoil in broken.items():
        yield Case(f"predictions/compare {what}", compare, both(copy, spoil), "any", ("run|lora-1",), how=what)
        if what in (
            "empty",
            "no JSON",
            "cut",
            "a folder",
            "a pipe",
            "numbers",
            "deep",
            "correct missing",
            "output missing",
        ):
            words = [*TEST, "--data.eval_batch_size", "1"]
            # The figures are another test's of the same rows, so that the two are compared.
            spoil = both(spoil, sets(lambda found: first(found).update(predictions_sha256="0" * 64)))
            yield Case(f"predictions/test {what}", words, spoil, "any", how=f"predictions: {what}")

    def partial(content: str | bytes) -> Callable[[], None]:
        return lambda: (
            [write(file.with_suffix(".partial.jsonl"), content) for file in (RUN / "predictions").glob("*.jsonl")]
            and None
        )

    for what, content in {
        "empty": "",
        "no JSON": "x",
        "list": "[]\n",
        "other settings": '{"settings": {"a": 1}}\n{"row": 0}\n',
        "binary": os.urandom(300),
        "deep": "[" * 100_000,
    }.items():
        yield Case(f"predictions/test partial {what}", TEST, partial(content), "any", how=f"partial.jsonl: {what}")
    for what, spoil in {
        "missing": remove(metrics),
        "empty": put(metrics, ""),
        "binary": put(metrics, os.urandom(300)),
        "no steps": put(metrics, "a,b\n1,2\n"),
        "steps of text": put(metrics, "step,val_loss\nx,y\n"),
        "short rows": put(metrics, "step,val_loss\n1\n"),
        "cut": cut(metrics, 0.6),
        "NUL": put(metrics, "step,\0\n1,2\n"),
        "a folder": as_folder(metrics),
        "a pipe": as_fifo(metrics),
        "long field": put(metrics, "step,x\n1," + "a" * 500_000 + "\n"),
        "open quote": put(metrics, 'step,x\n1,"a\n'),
    }.items():
        yield Case(f"metrics/fit {what}", RESUME, spoil, "any", ("metrics.csv",), how=f"metrics.csv: {what}")
    for file, name in ((config, "config.yaml"), (environment, "environment.json")):
        for what, spoil in {
            "missing": remove(file),
            "empty": put(file, ""),
            "broken": put(file, "{[x"),
            "a list": put(file, "[1]"),
            "binary": put(file, os.urandom(300)),
            "a folder": as_folder(file),
            "a pipe": as_fifo(file),
            "a dangling link": as_link(file, "nowhere"),
        }.items():
            yield Case(f"about/test {name} {what}", TEST, spoil, "any", how=f"{name}: {what}")
            yield Case(f"about/fit {name} {what}", RESUME, spoil, "any", how=f"{name}: {what}")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}
    for what, content in {"broken": "{[x", "a list": "[1]", "binary": b"\xff\xfe", "deep": "[" * 100_000}.items():
        words = fit("LoRA", "--adapter.rank", "2")
        yield Case(
            f"about/requeued environment {what}", words, put(environment, content), "any", how=what, environment=slurm
        )
    words = fit("LoRA", "--adapter.rank", "2")
    yield Case("about/restart count text", words, None, "any", environment={**slurm, "SLURM_RESTART_COUNT": "x"})
    for what, folder in {"checkpoints": RUN / "checkpoints", "predictions": RUN / "predictions"}.items():
        spoil = both(remove(folder), put(folder, "x"))
        yield Case(f"about/test {what} a file", TEST, spoil, "any", (what,), how=f"{what} a file")
        yield Case(f"about/fit {what} a file", RESUME, spoil, "any", how=f"{what} a file")
    yield Case("about/fit disk full", RESUME, _small_files, "any", how="no file may be larger than 4 KiB")
    yield Case(
        "about/export disk full", ["export", "--out", "out"], _small_files, "any", how="no file larger than 4 KiB"
    )
    yield Case("about/test disk full", TEST, _small_files, "any", how="no file may be larger than 4 KiB")


def _small_files() -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    resource.setrlimit = lambda *_: None  # type: ignore[assignment]
