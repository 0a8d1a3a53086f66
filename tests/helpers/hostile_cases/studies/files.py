"""Files of studies, and what is typed. No trial is trained: a stand-in leaves what one would."""

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
    as_fifo,
    as_folder,
    both,
    put,
    shortened,
)

FOLDER = Path("studies/grid")
ABOUT, STORED, TRIAL = FOLDER / "study.yaml", FOLDER / "study.db", FOLDER / "trial-0"
_OTHERS = ["--trainer.default_root_dir", "studies"]
AGAIN = ["study", "--config", "grid.yaml", *_OTHERS]
NEW = ["study", "--config", "new.yaml", *_OTHERS]
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


def stand_in() -> None:
    """Let trials be done by :class:`_Child`, and nobody wait for others."""
    from adapters_pl.cli.commands import study
    from adapters_pl.studies import worker

    study.start = _Child  # type: ignore[assignment]
    worker.PATIENCE = 0.05


def prepare_study() -> None:
    """A study whose two trials are done, one that is half done beside it, and the file that both are of."""
    from adapters_pl.cli.main import main

    stand_in()
    _write_file(axes={"adapter.rank": [2, 3]}, path="grid.yaml")
    assert main(AGAIN) == 0
    shutil.copytree(FOLDER, "studies/open")
    for table, change in (("studies", "study_name = 'open'"), ("trials", "state = 'WAITING'")):
        sql(f"UPDATE {table} SET {change}", path=Path("studies/open/study.db"))()
    for number in (0, 1):
        shutil.rmtree(f"studies/open/trial-{number}")


def _write_file(path: str = "new.yaml", **content: Any) -> None:
    Path(path).write_text(yaml.safe_dump({"set": _SET, "axes": {"adapter.rank": [2, 3]}, **content}))


def study_file(**content: Any) -> Callable[[], None]:
    return both(stand_in, lambda: _write_file(**content))


def sql(*statements: str, path: Path = STORED) -> Callable[[], None]:
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
        yield Case(f"study/file {what}", NEW, study_file(**content), "any", how=what)
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
        yield Case(f"study/sampler {what}", NEW, study_file(sampler=sampler, axes=axes), "any", how=f"sampler {what}")
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
        yield Case(f"study/file {what}", NEW, put("new.yaml", text), says=("new.yaml",), how=what)
    for what, spoil in {"a pipe": as_fifo("new.yaml"), "a folder": as_folder("new.yaml")}.items():
        yield Case(f"study/file {what}", NEW, spoil, says=("new.yaml",), how=what)
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
        yield Case(f"study/{' '.join(words) or 'nothing'}", ["study", *words], stand_in, says=("study|config|form",))
    for name in (
        *("", ".", "..", "../x", "/tmp/x", ".hidden", "a" * 300, "a\nb", "\x1b[31mred", "\udcff"),
        *("a?b", "a#b", "a%20b", "{x}", "{SCHEMA_VERSION.__class__}", "a{", "é ☃", "a b", "*", "[x]", "-x", "latest"),
        *("a:b@c", "a&b=c", "grid", "open", "$HOME", "~"),
    ):
        words = [*NEW, f"--name={name}"]
        yield Case(f"study/name {shortened(name)}", words, study_file(), "any", ("name|--name",))
        if name in ("a?b", "{x}", "é ☃", "*", "a%20b"):
            yield Case(
                f"study/name {name} of no slash", words, both(study_file(), _twice(words)), "fine", how="begun twice"
            )
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
        yield Case(f"study/new {' '.join(words)}", [*NEW, *words], study_file(), "any")
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
        yield Case(f"study/root {shortened(root)}", words, study_file(), "any", leads_out=root.startswith("/"))
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
        words = [*NEW, f"--storage={url}"]
        yield Case(f"study/storage {shortened(url)}", words, study_file(), "any", ("storage|--storage",), within=15)


def _twice(words: list[str]) -> Callable[[], None]:
    def work() -> None:
        from adapters_pl.cli.main import main

        assert main(words) == 0

    return work
