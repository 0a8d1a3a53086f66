"""What the tests of a run found: figures in ``results.json``, and the predictions that they were counted from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from adapters_pl.evaluation.report import Results, macro_average
from adapters_pl.inputs.terminal import to_look_at
from adapters_pl.runs.run import Run, as_text

#: The key by which figures say which predictions they were counted from.
DIGEST = "predictions_sha256"


def digest(predictions: bytes) -> str:
    """What stands for a file of predictions."""
    return hashlib.sha256(predictions).hexdigest()


def keep_test(
    run: Run, results: Results, records: dict[str, list[dict[str, Any]]], overwrite: bool = False, **about: Any
) -> list[str]:
    """Write what a test found; what an earlier test found is lost only where ``overwrite`` says so.

    Of the tests of a set, the one on the most rows stands in ``results.json`` under ``sets``, with
    ``predictions/<set>.jsonl``; of those on as many rows by the same settings, the newest. The others stand under
    ``others`` by a name made of set, protocol and rows, with ``predictions/others/<name>.jsonl``.

    Args:
        run: whose test it was.
        results: the figures by set, with ``n`` and ``settings``.
        records: the predictions by set.
        overwrite: put this test in the place of an earlier one, whatever that was.
        about: what ``results.json`` says of the test as a whole; it stays as it is where every set keeps an earlier
            test.

    Returns:
        A line for every set that keeps an earlier test, and for every test that repeats one with other answers.
    """
    known = run.results()
    others: Results = dict(known.get("others", {}))
    placed: Results = {}
    said = []
    for name, figures in results.items():
        new = {**figures, DIGEST: digest(as_text(".jsonl", records[name]))}
        old = None if overwrite else known.get("sets", {}).get(name)
        key = _key(name, new)
        if old is not None and not _takes_the_place(new, old):
            run.write(_beside(key), records[name])
            others[key] = new
            said.append(
                f"{name}: results.json keeps the test of {old['n']} rows; this one of {new['n']} stands beside it as "
                f"'{key}' (--overwrite puts it in its place)"
            )
            continue
        if old is not None and old.get(DIGEST) != new[DIGEST]:
            if found := _changed(run, name, old, new, records[name]):
                new["repeated"] = found
                said.append(
                    f"{name}: of {new['n']} rows {found['texts_changed']} texts and {found['verdicts_changed']} "
                    f"verdicts differ from the same test at batch size {found['eval_batch_size']}"
                )
            _set_aside(run, name, old, others)
        run.write(f"predictions/{name}.jsonl", records[name])
        others.pop(key, None)
        (run.path / _beside(key)).unlink(missing_ok=True)
        placed[name] = new
    if placed:
        about["average"] = macro_average(placed)
    run.merge_results(placed, others=others, **(about if placed else {}))
    return said


def by_protocol(results: dict[str, Any], protocol: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run's tests found by one protocol, and where their predictions lie.

    Args:
        results: what ``results.json`` holds.
        protocol: by which; as the tests stand, if not given.

    Returns:
        ``results`` with the figures of those tests alone under ``sets``, and by set the file of predictions below the
        run's directory. Where the test that stands is by another protocol, the one beside it on the most rows is
        taken, and of equal ones the newest.
    """
    sets, files = {}, {}
    others = [(key, figures) for key, figures in results.get("others", {}).items() if _protocol(figures) == protocol]
    for key, figures in sorted(others, key=lambda other: (other[1]["n"], str(other[1].get("date")))):
        name = key.removesuffix(_key("", figures))
        sets[name], files[name] = figures, _beside(key)
    for name, figures in results.get("sets", {}).items():
        own = figures.get("settings", {}).get(
            "protocol", results.get("protocol")
        )  # an earlier version named one for all
        if protocol in (None, own):
            sets[name], files[name] = figures, f"predictions/{name}.jsonl"
    # A stranger's name may lead out of the run, or be no name of a file.
    named = {name: file for name, file in files.items() if Path(name).name == name == to_look_at(name)}
    return {**results, "sets": sets}, named


def _takes_the_place(new: dict[str, Any], old: dict[str, Any]) -> bool:
    return new["n"] > old["n"] or (new["n"] == old["n"] and new["settings"] == old.get("settings"))


def _changed(
    run: Run, name: str, old: dict[str, Any], new: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """How many rows a test of the same model by the same settings answered otherwise: what rounding alone does."""
    file = run.path / "predictions" / f"{name}.jsonl"
    if not file.is_file() or old.get("model") is None or old["model"] != new.get("model") or old["n"] != new["n"]:
        return None
    try:
        earlier = [json.loads(line) for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        pairs = list(zip(earlier, records, strict=True))
        return {
            "eval_batch_size": old.get("eval_batch_size"),
            "texts_changed": sum(one["output"] != other["output"] for one, other in pairs),
            "verdicts_changed": sum(one["correct"] != other["correct"] for one, other in pairs),
        }
    except (ValueError, KeyError, TypeError, RecursionError):  # not what a test wrote, so there is nothing to compare
        return None


def _set_aside(run: Run, name: str, old: dict[str, Any], others: Results) -> None:
    """Let a test that loses its place stand beside the one that takes it."""
    file = run.path / "predictions" / f"{name}.jsonl"
    found = digest(file.read_bytes()) if file.is_file() else None
    old = {DIGEST: found, **old}  # an earlier version named no predictions
    key = _key(name, old)
    if found == old[DIGEST]:  # else it was moved already, by a test that was killed before it wrote its own figures
        aside = run.path / _beside(key)
        with run.writing(_beside(key)):
            aside.parent.mkdir(exist_ok=True)
            file.replace(aside)
    others[key] = old


def _key(name: str, figures: dict[str, Any]) -> str:
    return f"{name}.{_protocol(figures)}.{figures['n']}.{str(figures.get(DIGEST))[:8]}"


def _protocol(figures: dict[str, Any]) -> Any:
    return figures.get("settings", {}).get("protocol", "unknown")


def _beside(key: str) -> str:
    return f"predictions/others/{key}.jsonl"
