"""Studies: their files, their directories, their storage. No trial is trained: a stand-in leaves what one would."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import hostile_inputs
from tests.helpers.hostile_cases.common import (
    CANARY,
    DATA,
    QUIET,
    RUN,
    SHORT,
    Canary,
    as_fifo,
    as_folder,
    as_link,
    both,
    cut,
    flip,
    json_with,
    pickled,
    place,
    put,
    remove,
    shortened,
)

_FOLDER = Path("studies/grid")
_ABOUT, _STORED, _TRIAL = _FOLDER / "study.yaml", _FOLDER / "study.db", _FOLDER / "trial-0"
_OTHERS = ["--trainer.default_root_dir", "studies"]
_AGAIN = ["study", "--config", "grid.yaml", *_OTHERS]
_NEW = ["study", "--config", "new.yaml", *_OTHERS]
_WORDS = [word.removeprefix("--") for word in [*DATA, *SHORT, *QUIET]]
_SET = {"model.base": "base", "adapter": "LoRA", **dict(zip(_WORDS[::2], _WORDS[1::2], strict=True))}


Case = partial(hostile_inputs.Case, books="studies/")


class _Child:
    """A process that has trained and tested at once, and left what one leaves."""

    def __init__(self, words: Sequence[str], log: Any, lock: int) -> None:
        named = next(word for word in ("--run_dir", "--ckpt_path") if word in words)
        folder = Path(words[list(words).index(named) + 1])
        for name in ("results.json", "config.yaml", "fit.json", "metrics.csv"):
            shutil.copy(RUN / name, folder / name)

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def terminate(self) -> None: ...

    kill = terminate


def _stand_in() -> None:
    """Let trials be done by :class:`_Child`, and nobody wait for others."""
    from adapters_pl.cli.commands import study
    from adapters_pl.studies import worker

    study.start = _Child  # type: ignore[assignment]
    worker.PATIENCE = 0.05


def prepare_study() -> None:
    """A study whose two trials are done, one that is half done beside it, and the file that both are of."""
    from adapters_pl.cli.main import main

    _stand_in()
    _write_file(axes={"adapter.rank": [2, 3]}, path="grid.yaml")
    assert main(_AGAIN) == 0
    shutil.copytree(_FOLDER, "studies/open")
    for table, change in (("studies", "study_name = 'open'"), ("trials", "state = 'WAITING'")):
        _sql(f"UPDATE {table} SET {change}", path=Path("studies/open/study.db"))()
    for number in (0, 1):
        shutil.rmtree(f"studies/open/trial-{number}")


def _write_file(path: str = "new.yaml", **content: Any) -> None:
    Path(path).write_text(yaml.safe_dump({"set": _SET, "axes": {"adapter.rank": [2, 3]}, **content}))


def _file(**content: Any) -> Callable[[], None]:
    return both(_stand_in, lambda: _write_file(**content))


def _sql(*statements: str, path: Path = _STORED) -> Callable[[], None]:
    def work() -> None:
        stored = sqlite3.connect(path)
        for statement in statements:
            stored.execute(statement)
        stored.commit()
        stored.close()

    return work


def study_file_cases() -> Iterator[hostile_inputs.Case]:
    """The file of a study with nonsense in it."""
    wrong: dict[str, dict[str, Any]] = {
        "nothing wrong": {},
        "axes null": {"axes": None},
        "axes empty": {"axes": {}},
        "axes a text": {"axes": "x"},
        "axes a list": {"axes": [1]},
        "axes of nothing": {"axes": {"adapter.rank": []}},
        "axes of null": {"axes": {"adapter.rank": None}},
        "axes of lists": {"axes": {"adapter.rank": [[2], [[3]]]}},
        "axes of mappings": {"axes": {"adapter.rank": [{"a": 1}]}},
        "axes NaN": {"axes": {"model.lr": [float("nan"), float("inf")]}},
        "axes huge number": {"axes": {"adapter.rank": [10**400, 10**5]}},
        "axes of numbers": {"axes": {3: [1]}},
        "axes of an empty key": {"axes": {"": [1]}},
        "axes of a key with blanks": {"axes": {"a b": [1]}},
        "axes of a key with an equals sign": {"axes": {"a=b": [1]}},
        "axes of another option": {"axes": {"print_config": [True], "config": ["grid.yaml"]}},
        "axes of the run's directory": {"axes": {"run_dir": ["../elsewhere/x", "y"]}},
        "axes of the folder of runs": {"axes": {"trainer.default_root_dir": ["../elsewhere", "../elsewhere/x"]}},
        "axes of checkpoints": {"axes": {"ckpt_path": ["last", "best"]}},
        "axes of trust": {"axes": {"model.trust_remote_code": [True, False]}},
        "axes of callbacks": {"axes": {"trainer.callbacks": [[{"class_path": "os.system"}], []]}},
        "axes of configurations that are not there": {"axes": {"config": ["nowhere.yaml", "base"]}},
        "axes of configurations that are none": {"axes": {"config": [3, {"a": 1}]}},
        "axes that grow": {"axes": {f"k{n}": list(range(100)) for n in range(20)}},
        "several axes that grow": {"axes": [{f"k{n}": list(range(100)) for n in range(9)}, {"model.lr": [0.1]}]},
        "many grids": {"axes": [{"adapter.rank": list(range(1, 200))} for _ in range(200)]},
        "a value twice": {"axes": {"adapter.rank": [2, 2]}},
        "a number and a text": {"axes": {"adapter.rank": [2, "2"]}},
        "a number and true": {"axes": {"adapter.rank": [1, True]}},
        "one number in two ways": {"axes": {"model.lr": [1, 1.0]}},
        "a range": {"axes": {"model.lr": {"low": 1, "high": 2}}},
        "set a list": {"set": [1]},
        "set null": {"set": None},
        "set of an unknown key": {"set": {**_SET, "no.such": 3}},
        "set a deep value": {"set": {**_SET, "data.columns": {"a": {"b": [{}]}}}},
        "configs a number": {"configs": 3},
        "configs null": {"configs": None},
        "configs itself": {"configs": ["new.yaml"]},
        "configs climbs": {"configs": ["../../../etc/passwd"]},
        "forms a list": {"forms": [1]},
        "forms null": {"forms": None},
        "forms of numbers": {"forms": {1: {"set": {}}}},
        "forms of texts": {"forms": {"a": "x"}},
        "forms without axes": {"forms": {"a": {"axes": None}}},
        "an unknown key": {"sampelr": "tpe"},
        "a callback": {"trainer": {"callbacks": [{"class_path": "os.system"}]}},
        "pruner unknown": {"pruner": "no-such"},
        "pruner a class": {"pruner": {"name": "os.system"}},
        "pruner a number": {"pruner": 3},
        "pruner a list": {"pruner": [1]},
        "pruner without a name": {"pruner": {"n_min_trials": 1}},
        "pruner of no trials": {"pruner": {"name": "median", "n_min_trials": 0}},
        "pruner of a factor of nothing": {"pruner": {"name": "halving", "reduction_factor": 0}},
        "pruner of a resource of nothing": {"pruner": {"name": "halving", "min_resource": 0}},
        "pruner of no brackets": {"pruner": {"name": "hyperband", "min_resource": 0, "reduction_factor": 1}},
        "pruner of huge numbers": {"pruner": {"name": "hyperband", "max_resource": 10**400}},
    }
    for what, content in wrong.items():
        yield Case(f"study/file {what}", _NEW, _file(**content), "any", how=what)
    one = {"model.lr": {"low": 1.0e-3, "high": 1.0e-2}}
    samplers: dict[str, tuple[Any, Any]] = {
        "random": ({"name": "random", "trials": 2}, one),
        "tpe": ({"name": "tpe", "trials": 2}, {**one, "adapter.rank": [2, 3]}),
        "alone": ("tpe", one),
        "unknown": ({"name": "x", "trials": 2}, one),
        "a list": ([1], one),
        "of no trials": ({"name": "tpe", "trials": 0}, one),
        "of a text of trials": ({"name": "tpe", "trials": "x"}, one),
        "of true trials": ({"name": "tpe", "trials": True}, one),
        "of very many trials": ({"name": "tpe", "trials": 10**12}, one),
        "of a huge seed": ({"name": "tpe", "trials": 2, "seed": 2**80}, one),
        "of a large seed": ({"name": "random", "trials": 2, "seed": 2**32 - 1}, one),
        "of a negative seed": ({"name": "tpe", "trials": 2, "seed": -3}, one),
        "of a class": ({"name": "os.system", "trials": 2}, one),
        "over several grids": ({"name": "tpe", "trials": 2}, [one, one]),
        "of a range without an end": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": 1.0e-3}}),
        "of a range backwards": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": 2, "high": 1}}),
        "of a range of texts": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": "a", "high": "b"}}),
        "of an infinite range": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": 1.0, "high": float("inf")}}),
        "of a range of NaN": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": float("nan"), "high": 1.0}}),
        "of a huge range": ({"name": "tpe", "trials": 2}, {"adapter.rank": {"low": 1, "high": 10**400}}),
        "of a wide range": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": -1.7e308, "high": 1.7e308}}),
        "of a step of nothing": ({"name": "tpe", "trials": 2}, {"adapter.rank": {"low": 1, "high": 4, "step": 0}}),
        "of a step back": ({"name": "tpe", "trials": 2}, {"adapter.rank": {"low": 1, "high": 4, "step": -1}}),
        "of a step of text": ({"name": "tpe", "trials": 2}, {"adapter.rank": {"low": 1, "high": 4, "step": "x"}}),
        "of a broken step": ({"name": "tpe", "trials": 2}, {"adapter.rank": {"low": 1, "high": 4, "step": 0.5}}),
        "of a step and log": (
            {"name": "tpe", "trials": 2},
            {"adapter.rank": {"low": 1, "high": 4, "step": 2, "log": True}},
        ),
        "of log a text": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": 0.1, "high": 0.4, "log": "x"}}),
        "of log from nothing": ({"name": "tpe", "trials": 2}, {"model.lr": {"low": 0, "high": 1, "log": True}}),
    }
    for what, (sampler, axes) in samplers.items():
        yield Case(f"study/sampler {what}", _NEW, _file(sampler=sampler, axes=axes), "any", how=f"sampler {what}")
    for what, text in {
        "empty": "",
        "a list": "- 1\n",
        "deep": "axes: " + "[" * 100_000,
        "binary": b"\xff\xfe[",
        "python tag": f"axes: !!python/object/apply:os.mkdir ['{CANARY}']\n",
        "aliases that grow": "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9)
        ),
        "axes twice": "axes: {a: [1]}\naxes: {b: [1]}\n",
        "5 MB": "axes: {a: [" + "1, " * 1_700_000 + "]}\n",
    }.items():
        yield Case(f"study/file {what}", _NEW, put("new.yaml", text), says=("new.yaml",), how=what)
    for what, spoil in {"a pipe": as_fifo("new.yaml"), "a folder": as_folder("new.yaml")}.items():
        yield Case(f"study/file {what}", _NEW, spoil, says=("new.yaml",), how=what)
    for what, spoil in {
        "a pipe": lambda: (Path("configs/study").mkdir(parents=True), os.mkfifo("configs/study/mine.yaml")),
        "a list": put("configs/study/mine.yaml", "[1]"),
        "a folder": lambda: Path("configs/study/mine.yaml").mkdir(parents=True),
    }.items():
        yield Case(f"study/recipe {what}", ["study", "--config", "study/mine.yaml"], spoil, says=("mine.yaml",))
        yield Case(f"study/recipes {what}", ["recipes"], spoil, "any", ("mine.yaml",))
    common = put("configs/study/_forms.yaml", "quick: [1]\npaper: 3\n")
    yield Case("study/forms of one's own", ["study", "--config", "study/lr.yaml"], common, "any", ("form",))


def study_word_cases() -> Iterator[hostile_inputs.Case]:
    """What is typed behind ``study``."""
    for words in (
        [],
        ["--config"],
        ["--config", ""],
        ["--config", "nowhere"],
        ["--config", "base/config.json"],
        ["--config", "study/no-such.yaml"],
        ["--config", "study/_forms.yaml"],
        ["--config", "study/lr.yaml", "--config", "study/seeds.yaml"],
        ["--config", "quickstart.yaml"],
        ["--config", "study/lr.yaml", "--form", "no-such"],
        ["--config", "study/lr.yaml", "--form", ""],
        ["--config", "study/lr.yaml", "--form", "[]"],
    ):
        yield Case(f"study/{' '.join(words) or 'nothing'}", ["study", *words], _stand_in, says=("study|config|form",))
    for name in (
        *("", ".", "..", "../x", "/tmp/x", ".hidden", "a" * 300, "a\nb", "\x1b[31mred", "\udcff"),
        *("a?b", "a#b", "a%20b", "{x}", "{SCHEMA_VERSION.__class__}", "a{", "é ☃", "a b", "*", "[x]", "-x", "latest"),
        *("a:b@c", "a&b=c", "grid", "open", "$HOME", "~"),
    ):
        words = [*_NEW, f"--name={name}"]
        yield Case(f"study/name {shortened(name)}", words, _file(), "any", ("name|--name",))
        if name in ("a?b", "{x}", "é ☃", "*", "a%20b"):
            yield Case(f"study/name {name} of no slash", words, both(_file(), _twice(words)), "fine", how="begun twice")
    for words in (
        ["--axes", "x"],
        ["--run_dir", "x"],
        ["--ckpt_path", "last"],
        ["--print_config"],
        ["--help_all"],
        ["--adapter_path", "adapter"],
        ["--adapter.no_such", "1"],
        ["--adapter.rank", "x"],
        ["--model.lr="],
        ["--=3"],
        ["--"],
        ["stray"],
        ["--no_such"],
        ["--trust_checkpoint"],
        ["--overwrite"],
        ["--retry_failed"],
        ["--retry_failed=maybe"],
        ["--data.path", "nowhere.json"],
        ["--adapter", "os.system"],
        ["--model.base", "nobody-here/nothing"],
    ):
        yield Case(f"study/new {' '.join(words)}", [*_NEW, *words], _file(), "any")
    for root in (
        "",
        "nowhere/x",
        "sums.json",
        "sums.json/x",
        "/proc/x",
        "a" * 300,
        "a?b",
        "{x}",
        "~nobody-of-this-name/x",
    ):
        words = ["study", "--config", "new.yaml", "--trainer.default_root_dir", root]
        yield Case(f"study/root {shortened(root)}", words, _file(), "any", leads_out=root.startswith("/"))
    for url in (
        *("", "x", "sqlite", "sqlite:", "sqlite://", "sqlite:///", "sqlite:///nowhere/x.db", "sqlite:////proc/x.db"),
        *("sqlite:///sums.json", "sqlite:///base", "sqlite:///:memory:", "sqlite:///x.db?mode=ro", "sqlite:///x{y}.db"),
        *("sqlite+no_such:///x.db", "sqlite+aiosqlite:///x.db", "sqlite://host/x.db", "sqlite:///a\nb.db"),
        *("postgresql://", "postgresql://127.0.0.1:1/x", "postgresql+psycopg://u:secret-word@127.0.0.1:1/x"),
        *(
            "postgresql+psycopg://127.0.0.1:x/y",
            "postgresql+psycopg2://127.0.0.1:1/x",
            "postgresql+psycopg:///x?host=/no",
        ),
        *("postgresql+psycopg://127.0.0.1:1/x?passfile=/dev/zero", "mysql://127.0.0.1:1/x", "oracle://x", "mssql://x"),
        *("redis://127.0.0.1", "journal://x", "file:///etc/passwd", "http://127.0.0.1/x", "os.system://x", "://", "[]"),
        *("sqlite:///" + "a" * 5000, "\udcff", "sqlite:///\x1b[31m.db", "postgresql+os://x", "evil+evil://x"),
    ):
        words = [*_NEW, f"--storage={url}"]
        yield Case(f"study/storage {shortened(url)}", words, _file(), "any", ("storage|--storage",), within=15)


def _twice(words: list[str]) -> Callable[[], None]:
    def work() -> None:
        from adapters_pl.cli.main import main

        assert main(words) == 0

    return work


def study_folder_cases() -> Iterator[hostile_inputs.Case]:
    """The directory of a study that comes from a stranger, gone on with."""
    yield Case("study/again nothing wrong", _AGAIN, _stand_in, "fine")
    yield Case("study/open nothing wrong", [*_AGAIN, "--name", "open"], _stand_in, "fine")
    abouts: dict[str, str | bytes] = {
        "empty": "",
        "a list": "[1]",
        "a text": "x",
        "deep": "axes: " + "[" * 100_000,
        "binary": b"\xff\xfe[",
        "70 KB": "axes: {}\n" + " " * 70_000,
        "nothing of a study": "model: {}",
        "axes a list": "axes: [1]",
        "axes a text": "axes: x",
        "axes null": "axes: null",
        "set a list": "axes: {adapter.rank: [2, 3]}\nset: [1]",
        "set a text": "set: x",
        "grids a text": "axes: {adapter.rank: [2, 3]}\ngrids: x",
        "configs a mapping": "configs: {a: 1}",
        "python tag": f"axes: !!python/object/apply:os.mkdir ['{CANARY}']",
        "escapes": 'axes: {"\\e[31mred": ["\\e]0;x\\a"]}',
        "another": "axes: {adapter.rank: [2, 4]}",
        "long values": f"axes: {{adapter.rank: [{'x' * 50_000}]}}",
        "a secret": "set: {data.token: hf_abcdefghijklmnopqrstuvwxyzabcdef}",
    }
    for what, content in abouts.items():
        yield Case(
            f"study/about {what}", _AGAIN, both(_stand_in, put(_ABOUT, content)), "any", ("study|config",), how=what
        )
    paths = {"study.yaml": _ABOUT, "study.db": _STORED, "trial": _TRIAL, "trial.json": _TRIAL / "trial.json"}
    paths |= {
        "results.json": _TRIAL / "results.json",
        "lock": _TRIAL / ".trial.lock",
        "study's lock": _FOLDER / ".study.lock",
    }
    paths |= {"log": _TRIAL / "output.log", "metrics": _TRIAL / "metrics.csv", "config.yaml": _TRIAL / "config.yaml"}
    for folder in ("grid", "open"):
        words = _AGAIN if folder == "grid" else [*_AGAIN, "--name", "open"]
        for name, path in paths.items():
            if path == _STORED and folder == "open":
                continue
            path = Path("studies") / folder / path.relative_to(_FOLDER)
            out = "../" * len(path.parts) + "elsewhere/out"
            for what, spoil in {
                "missing": lambda path=path: remove(path)() if path.exists() else None,
                "a folder": both(_gone(path), as_folder(path)),
                "a pipe": both(_gone(path), lambda path=path: (path.parent.mkdir(exist_ok=True), os.mkfifo(path))),
                "a file": both(_gone(path), put(path, "x")),
                "a link out": both(_gone(path), as_link(path, out)),
                "a link to a file out": both(put("../elsewhere/out", "x"), _gone(path), as_link(path, out)),
                "a link to a folder out": both(
                    lambda: Path("../elsewhere/out").mkdir(), _gone(path), as_link(path, out)
                ),
                "a link to itself": both(_gone(path), as_link(path, path.name)),
            }.items():
                if (name, what) in (("study.yaml", "a file"), ("study.yaml", "a folder")) and folder == "open":
                    continue
                yield Case(f"study/{folder} {name} {what}", words, both(_stand_in, spoil), "any", how=f"{path}: {what}")
    yield Case("study/folder a link", _AGAIN, both(_stand_in, _elsewhere), "any", how="the study is a link")
    yield Case(
        "study/of a folder of something else", [*_NEW, "--name", "x"], both(_file(), put("studies/x/a.txt", "x"))
    )
    results: dict[str, Callable[[dict[str, Any]], Any]] = {
        "accuracy NaN": lambda r: next(iter(r["sets"].values())).update(accuracy=float("nan")),
        "accuracy infinite": lambda r: next(iter(r["sets"].values())).update(accuracy=float("inf")),
        "accuracy huge": lambda r: next(iter(r["sets"].values())).update(accuracy=10**400),
        "accuracy negative": lambda r: next(iter(r["sets"].values())).update(accuracy=-7),
        "accuracy a text": lambda r: next(iter(r["sets"].values())).update(accuracy="x"),
        "accuracy true": lambda r: next(iter(r["sets"].values())).update(accuracy=True),
        "distribution a list": lambda r: next(iter(r["sets"].values())).update(distribution=[1]),
        "sets a list": lambda r: r.update(sets=[1]),
        "sets empty": lambda r: r.update(sets={}),
        "sets of escapes": lambda r: r.update(sets={"\x1b[31m[bold]x[/]": next(iter(r["sets"].values()))}),
        "sets of markup": lambda r: r.update(
            sets={n: next(iter(r["sets"].values())) for n in ("[/no]", "[bold]", "\ud800")}
        ),
    }
    for what, change in results.items():
        spoil = both(_stand_in, json_with(_TRIAL / "results.json", change))
        yield Case(f"study/results {what}", _AGAIN, spoil, "any", how=f"results.json of a complete trial: {what}")

        def of_open(change: Callable[[dict[str, Any]], Any] = change) -> None:
            shutil.copytree(_TRIAL, "studies/open/trial-0")
            json_with("studies/open/trial-0/results.json", change)()

        words = [*_AGAIN, "--name", "open"]
        yield Case(
            f"study/open results {what}", words, both(_stand_in, of_open), "any", how=f"of an open trial: {what}"
        )
    for what, value in {"text": "x", "null": None, "list": [1], "huge": "x" * 10**6}.items():
        spoil = json_with(_TRIAL / "trial.json", place("state", value=value))
        yield Case(f"study/trial.json state {what}", _AGAIN, both(_stand_in, spoil), "any")


def _gone(path: Path) -> Callable[[], None]:
    def work() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)

    return work


def _elsewhere() -> None:
    shutil.move(_FOLDER, "../elsewhere/grid")
    _FOLDER.symlink_to("../../elsewhere/grid")


def study_storage_cases() -> Iterator[hostile_inputs.Case]:
    """A ``study.db`` that comes from a stranger."""
    files: dict[str, Callable[[], Any]] = {
        "empty": put(_STORED, b""),
        "text": put(_STORED, "hello"),
        "garbage": put(_STORED, os.urandom(5000)),
        "header alone": put(_STORED, b"SQLite format 3\0"),
        "a pickle": pickled(_STORED, Canary),
        "another database": both(remove(_STORED), _sql("CREATE TABLE x (y)")),
        **{f"cut at {share:.0%}": cut(_STORED, share) for share in (0.05, 0.5, 0.95)},
        **{f"overwritten at {share:.0%}": flip(_STORED, share, 400) for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)},
        "journal of garbage": put(_STORED.with_name("study.db-journal"), os.urandom(900)),
        "journal a pipe": lambda: os.mkfifo(_STORED.with_name("study.db-journal")),
        "journal a link out": as_link(_STORED.with_name("study.db-journal"), "../../../elsewhere/j"),
        "write-ahead log": both(_sql("PRAGMA journal_mode=WAL"), put(_STORED.with_name("study.db-wal"), b"x" * 900)),
    }
    for what, spoil in files.items():
        yield Case(f"study/db {what}", _AGAIN, both(_stand_in, spoil), "any", ("study.db",), how=f"study.db: {what}")
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    statements: dict[str, tuple[str, ...]] = {
        "no tables": tuple(f"DROP TABLE {table}" for table in ("trials", "studies", "trial_user_attributes")),
        "no trials": ("DELETE FROM trials",),
        "no version": ("DELETE FROM version_info",),
        "another version": ("UPDATE version_info SET schema_version = 99",),
        "version a text": ("UPDATE version_info SET schema_version = 'x'",),
        "library another": ("UPDATE version_info SET library_version = 'x'",),
        "revision unknown": ("UPDATE alembic_version SET version_num = 'no.such'",),
        "revision old": ("UPDATE alembic_version SET version_num = 'v0.9.0.a'",),
        "no revision": ("DELETE FROM alembic_version",),
        "direction unknown": ("UPDATE study_directions SET direction = 'x'",),
        "direction missing": ("DELETE FROM study_directions",),
        "directions two": ("INSERT INTO study_directions (direction, study_id, objective) VALUES ('MAXIMIZE', 1, 1)",),
        "direction the other": ("UPDATE study_directions SET direction = 'MINIMIZE'",),
        "name another": ("UPDATE studies SET study_name = 'x'",),
        "asked missing": ("DELETE FROM study_user_attributes",),
        "asked no JSON": ("UPDATE study_user_attributes SET value_json = '{[x'",),
        "asked a list": ("UPDATE study_user_attributes SET value_json = '[1]'",),
        "asked a number": ("UPDATE study_user_attributes SET value_json = '3'",),
        "asked axes a list": ("""UPDATE study_user_attributes SET value_json = '{"axes": [1], "set": 3}'""",),
        "asked deep": (f"UPDATE study_user_attributes SET value_json = '{'[' * 100_000}'",),
        "asked a blob": ("UPDATE study_user_attributes SET value_json = x'80049500'",),
        "state unknown": ("UPDATE trials SET state = 'x'",),
        "state running": ("UPDATE trials SET state = 'RUNNING'",),
        "state waiting": ("UPDATE trials SET state = 'WAITING'",),
        "state failed": ("UPDATE trials SET state = 'FAIL'",),
        "number null": ("UPDATE trials SET number = NULL",),
        "number a text": ("UPDATE trials SET number = 'x'",),
        "number the same": ("UPDATE trials SET number = 0",),
        "number huge": ("UPDATE trials SET number = 9223372036854775807",),
        "dates of text": ("UPDATE trials SET datetime_start = 'x', datetime_complete = 'y'",),
        "dates missing": ("UPDATE trials SET datetime_start = NULL, datetime_complete = NULL",),
        "slot missing": ("DELETE FROM trial_user_attributes",),
        "slot a list": ("UPDATE trial_user_attributes SET value_json = '[1]' WHERE key = 'slot'",),
        "slot a text": ("""UPDATE trial_user_attributes SET value_json = '"x"' WHERE key = 'slot'""",),
        "slot negative": ("UPDATE trial_user_attributes SET value_json = '-1' WHERE key = 'slot'",),
        "slot a float": ("UPDATE trial_user_attributes SET value_json = '0.0' WHERE key = 'slot'",),
        "slot true": ("UPDATE trial_user_attributes SET value_json = 'true' WHERE key = 'slot'",),
        "slot no JSON": ("UPDATE trial_user_attributes SET value_json = 'x' WHERE key = 'slot'",),
        "slot a huge number": (f"UPDATE trial_user_attributes SET value_json = '{'9' * 5000}' WHERE key = 'slot'",),
        "error a list": (
            "UPDATE trial_user_attributes SET value_json = '[1]', key = 'error' WHERE key = 'host'",
            "UPDATE trials SET state = 'FAIL'",
        ),
        "error of escapes": (
            """UPDATE trial_user_attributes SET value_json = '"\\u001b[31m[bold]x\\n\\ny"', key = 'error' """
            "WHERE key = 'host'",
            "UPDATE trials SET state = 'FAIL'",
        ),
        "fixed values a list": (
            "UPDATE trial_system_attributes SET value_json = '[1]' WHERE key = 'fixed_params'",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "fixed values of another key": (
            """UPDATE trial_system_attributes SET value_json = '{"x": [1]}' WHERE key = 'fixed_params'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "fixed values that are none": (
            """UPDATE trial_system_attributes SET value_json = '{"adapter.rank": [1]}' WHERE key = 'fixed_params'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "value NaN": ("UPDATE trial_values SET value_type = 'x'",),
        "value infinite": ("UPDATE trial_values SET value_type = 'INF_POS'",),
        "value null": ("UPDATE trial_values SET value = NULL",),
        "value a text": ("UPDATE trial_values SET value = 'x'",),
        "value missing": ("DELETE FROM trial_values",),
        "value huge": ("UPDATE trial_values SET value = 1e300",),
        "distribution no JSON": ("UPDATE trial_params SET distribution_json = 'x'",),
        "distribution a list": ("UPDATE trial_params SET distribution_json = '[1]'",),
        "distribution unknown": ("""UPDATE trial_params SET distribution_json = '{"name": "os.system"}'""",),
        "distribution empty": (
            """UPDATE trial_params SET distribution_json = '{"name": "CategoricalDistribution", """
            """"attributes": {"choices": []}}'""",
        ),
        "distribution another": (
            """UPDATE trial_params SET distribution_json = '{"name": "FloatDistribution", "attributes": """
            """{"low": 1.0, "high": 2.0, "log": false, "step": null}}'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "parameter beyond": ("UPDATE trial_params SET param_value = 99",),
        "parameter negative": ("UPDATE trial_params SET param_value = -1",),
        "parameter a text": ("UPDATE trial_params SET param_value = 'x'",),
        "parameter null": ("UPDATE trial_params SET param_value = NULL",),
        "parameter of another name": ("UPDATE trial_params SET param_name = 'x'",),
        "heartbeat a text": ("UPDATE trial_heartbeats SET heartbeat = 'x'", "UPDATE trials SET state = 'RUNNING'"),
        "heartbeat of the future": (
            "UPDATE trial_heartbeats SET heartbeat = '9999-01-01 00:00:00'",
            "UPDATE trials SET state = 'RUNNING'",
        ),
        "a trigger that fails": (
            "CREATE TRIGGER t BEFORE UPDATE ON trials BEGIN SELECT RAISE(ABORT, 'no'); END",
            "CREATE TRIGGER u BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'no'); END",
        ),
        "a trigger without an end": (
            f"CREATE TRIGGER t AFTER INSERT ON trial_heartbeats BEGIN SELECT count(*) FROM ({endless}); END",
            "UPDATE trials SET state = 'WAITING'",
            "DELETE FROM trial_heartbeats",
        ),
        "a view without an end": ("DROP TABLE trial_values", f"CREATE VIEW trial_values AS {endless}"),
        "a view of the version": (
            "DROP TABLE version_info",
            f"CREATE VIEW version_info AS SELECT x AS version_info_id, 12 AS schema_version, 'x' AS library_version "
            f"FROM ({endless})",
        ),
        "a table of functions": ("CREATE VIRTUAL TABLE t USING fts5(x)",),
        "many trials": (
            "WITH RECURSIVE c(x) AS (SELECT 9 UNION ALL SELECT x + 1 FROM c LIMIT 30000) INSERT INTO trials "
            "(number, study_id, state) SELECT x, 1, 'WAITING' FROM c",
        ),
    }
    for what, changes in statements.items():
        spoil = both(_stand_in, _sql(*changes))
        yield Case(f"study/db {what}", _AGAIN, spoil, "any", ("study|storage|trial",), how=f"study.db: {what}")


__all__ = [
    "prepare_study",
    "study_file_cases",
    "study_folder_cases",
    "study_storage_cases",
    "study_word_cases",
]
