"""Who runs what: every trial once, whoever is killed, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import optuna

from adapters_pl.inputs.errors import UserError
from adapters_pl.studies import ledger as module
from adapters_pl.studies.asked import Asked
from adapters_pl.studies.folder import TrialFolder
from adapters_pl.studies.ledger import COMPLETE, FAILED, PRUNED, RUNNING, WAITING, Ledger
from adapters_pl.studies.trial import Failed, Pruned
from adapters_pl.studies.worker import work

PROCESSES = multiprocessing.get_context("fork")


def asked(name="s", sampler=None, pruner=None, **axes):
    return Asked(name, (), {}, (axes or {"a": [1, 2, 3], "b": ["x", "y"]},), sampler, pruner)


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A storage with nothing in it: making its tables takes longer than a test."""
    file = tmp_path_factory.mktemp("storage") / "empty.db"
    optuna.storages.RDBStorage(f"sqlite:///{file}")
    return file


@pytest.fixture
def opened(tmp_path, tables):
    """Open a ledger on a study."""

    def opened(study=None, url=None, folder=None):
        study = study or asked()
        folder = folder or tmp_path / study.name
        ledger = Ledger(study, folder, url or beside(folder, tables))
        ledger.open()
        return ledger

    return opened


def beside(folder, tables):
    """The URL of a file beside the folder of a study, with tables in it."""
    file = folder.with_suffix(".db")
    if not file.exists():
        shutil.copy(tables, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A storage."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    return f"sqlite:///{shutil.copy(request.getfixturevalue('tables'), tmp_path / 'storage.db')}"


def run_trial(values, folder, look):
    """A trial that says when another one runs in the same directory, and how often it has ended."""
    busy = folder.path / "busy"
    if busy.exists():
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(busy.read_text()), 0)
            if int(busy.read_text()) != os.getpid():
                (folder.path / "twice").touch()
    busy.write_text(str(os.getpid()))
    look([])
    with (folder.path / "ended").open("a") as file:
        file.write("x")
    busy.unlink()
    return float(values["a"]) / 10


def states(ledger):
    return [slot.state for slot in ledger.slots()]


def finish(ledger, run=run_trial):
    """Work to the end; what is shown."""
    lines = []
    work(ledger, run, lines.append, wait=lambda: None)
    return lines


# ---- one worker


def test_every_cell_is_run_once_and_never_again(opened, tmp_path, url):
    study = asked(f"once-{os.path.basename(tmp_path)}")
    ledger = opened(study, url)
    finish(ledger)
    assert [(slot.values, slot.accuracy) for slot in ledger.slots()] == [
        (cell, cell["a"] / 10) for cell in study.cells()
    ]
    again = opened(study, url)
    assert finish(again) == []
    folders = [TrialFolder(ledger.folder, number) for number in range(6)]
    assert [(folder.path / "ended").read_text() for folder in folders] == ["x"] * 6
    assert [folder.written() for folder in folders] == [
        {"study": study.name, "number": n, "values": cell, "state": "complete", "error": None}
        for n, cell in enumerate(study.cells())
    ]


def test_optuna_knows_the_values_of_every_trial(opened):
    ledger = opened(asked(a=[1, 2], c=[["q", "v"], None]))
    finish(ledger)
    study = optuna.load_study(study_name="s", storage=ledger.url)
    assert [trial.params for trial in study.trials][:2] == [{"a": 1, "c": '["q", "v"]'}, {"a": 1, "c": None}]
    assert study.best_value == 0.2


def test_a_failed_trial_keeps_its_error_and_ends_nothing(opened):
    ledger = opened(asked(a=[1, 2, 3, 4]))

    def run(values, folder, look):
        if values["a"] == 2:
            raise Failed("fit: no such thing")
        if values["a"] == 3:
            raise ZeroDivisionError("of ours")
        if values["a"] == 4:
            raise UserError("token=hf_abcdefghijklmnopqrstuvwxyz012345 is refused")
        return 0.5

    lines = finish(ledger, run)
    assert states(ledger) == [COMPLETE, FAILED, FAILED, FAILED]
    errors = [slot.error for slot in ledger.slots()][1:]
    assert errors == ["fit: no such thing", "ZeroDivisionError: of ours", "token=*** is refused"]
    assert TrialFolder(ledger.folder, 1).written()["error"] == "fit: no such thing"
    assert TrialFolder(ledger.folder, 1).written()["state"] == "failed"
    assert any(line.endswith("failed: fit: no such thing  [2 of 4]") for line in lines)
    assert finish(opened(ledger.asked)) == []  # it is not tried again by itself
    again = opened(ledger.asked)
    assert again.retry_failed() == 3
    finish(again)
    assert states(again) == [COMPLETE] * 4
    assert again.retry_failed() == 0


def test_an_interrupted_trial_is_open_again_at_once(opened):
    ledger = opened(asked(a=[1]))

    def interrupted(values, folder, look):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(ledger, interrupted)
    assert states(ledger) == [WAITING]
    assert ledger.claim() is not None


def test_a_pruned_trial_is_done(opened):
    ledger = opened(asked(pruner={"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0}, a=[2, 1]))

    def run(values, folder, look):
        for step in range(3):
            if look([(step, float(values["a"]))]):
                raise Pruned
        return 0.5

    finish(ledger, run)
    assert states(ledger) == [COMPLETE, PRUNED]
    assert TrialFolder(ledger.folder, 1).written()["state"] == "pruned"


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_sampled_study_draws_so_many_and_keeps_what_a_killed_trial_had_drawn(opened, name):
    axes = {"a": {"low": 0.001, "high": 1.0, "log": True}, "n": {"low": 1, "high": 9}, "c": [["q"], "v"]}
    ledger = opened(asked(sampler={"name": name, "trials": 5, "seed": 3}, **axes))
    claim = ledger.claim()
    claim.folder.release()  # as if it were killed
    drawn = dict(claim.values)
    assert list(drawn) == ["a", "n", "c"]
    assert 0.001 <= drawn["a"] <= 1
    assert drawn["n"] in range(1, 10)
    assert drawn["c"] in (["q"], "v")
    ledger = opened(ledger.asked)
    finish(ledger)
    values = [slot.values for slot in ledger.slots()]
    assert values[0] == drawn
    assert len({str(each) for each in values}) == 5
    assert states(ledger) == [COMPLETE] * 5


# ---- workers that die


def test_a_slot_whose_child_still_runs_is_left_alone(opened):
    ledger = opened(asked(a=[1, 2]))
    claim = ledger.claim()
    orphan = os.dup(claim.folder.descriptor)
    claim.folder.release()
    assert ledger.claim().number == 1
    assert ledger.claim() is None
    os.close(orphan)
    assert ledger.claim().number == 0


def calls(patched, at=None):
    """Count what changes a storage or a directory, before and after each; die at one of them."""
    count = [0]

    def point():
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*arguments, **named):
            point()
            found = function(*arguments, **named)
            point()
            return found

        return call

    storage = optuna.storages.RDBStorage
    for owner, name in (
        *((storage, name) for name in ("create_new_study", "create_new_trial", "set_trial_state_values")),
        *((storage, name) for name in ("set_trial_user_attr", "set_study_user_attr", "set_trial_param")),
        (storage, "record_heartbeat"),
        (TrialFolder, "write"),
    ):
        patched.setattr(owner, name, counted(getattr(owner, name)))
    return count


def begin(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def worker(study, folder, url, at=None, failing=False):
    """A worker in a process of its own, which dies at a point."""

    def run(values, folder, look):
        if failing and values["a"] == 2 and not (folder.path / "ended").exists():
            run_trial(values, folder, look)
            raise Failed("once")
        return run_trial(values, folder, look)

    with pytest.MonkeyPatch.context() as patched:
        if at is not None:
            calls(patched, at)
        ledger = Ledger(study, folder, url)
        ledger.open()
        work(ledger, run, lambda line: None, wait=lambda: None)
    os._exit(0)


def check_every_trial_ran_once(ledger, most=1):
    assert states(ledger) == [COMPLETE] * ledger.asked.trials
    for number in range(ledger.asked.trials):
        path = TrialFolder(ledger.folder, number).path
        assert not (path / "twice").exists()
        assert 1 <= len((path / "ended").read_text()) <= most


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_killed_at_any_point_loses_nothing_and_repeats_nothing(opened, tmp_path, tables, monkeypatch, every):
    study = asked(a=[1, 2])
    with monkeypatch.context() as patched:
        count = calls(patched)
        finish(opened(study, folder=tmp_path / "counted"))
    assert count[0] > 30
    for at in range(1, count[0] + 1, every):
        folder = tmp_path / f"killed-{at}"
        process = begin(worker, study, folder, beside(folder, tables), at)
        process.join()
        assert process.exitcode == -signal.SIGKILL, at
        ledger = opened(study, folder=folder)
        finish(ledger)
        # A trial may have ended when its worker was killed; these leave no results that could be read again.
        check_every_trial_ran_once(ledger, most=2)
        assert sum(len((folder / f"trial-{n}" / "ended").read_text()) for n in range(2)) <= 3


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 2), ("postgresql", 4)])
def test_workers_that_begin_together_run_no_trial_twice(opened, tmp_path, request, kind, workers):
    url = f"sqlite:///{tmp_path}/new.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    study = asked(f"together-{kind}", a=list(range(1, 9)), b=["x", "y"])
    folder = tmp_path / study.name
    processes = [begin(worker, study, folder, url) for _ in range(workers)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * workers
    ledger = opened(study, url, folder)
    check_every_trial_ran_once(ledger)
    # Nobody else's was taken over, and every slot had one trial.
    assert len(ledger.study.trials) == study.trials


def test_of_workers_that_share_no_folder_the_database_lets_one_have_a_trial(opened, tmp_path, postgresql):
    study = asked("apart", a=list(range(1, 9)))
    folders = [tmp_path / f"machine-{n}" / study.name for n in range(3)]
    for folder in folders:
        folder.parent.mkdir()
    processes = [begin(worker, study, folder, postgresql) for folder in folders]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    ledger = opened(study, postgresql, folders[0])
    assert states(ledger) == [COMPLETE] * 8
    ended = sorted(path.parent.name for folder in folders for path in folder.glob("trial-*/ended"))
    assert ended == [f"trial-{n}" for n in range(8)]


def test_workers_go_on_where_one_of_them_is_killed(opened, tmp_path, url):
    study = asked(f"killed-{os.path.basename(tmp_path)}", a=[1, 2, 3, 4])
    folder = tmp_path / study.name
    opened(study, url, folder)
    killed = begin(worker, study, folder, url, 25)
    other = begin(worker, study, folder, url)
    killed.join()
    other.join()
    assert other.exitcode == 0
    ledger = opened(study, url, folder)
    finish(ledger)
    check_every_trial_ran_once(ledger, most=2)


def test_a_worker_of_another_machine_is_dead_only_when_its_heartbeat_stops(opened, tmp_path, postgresql, monkeypatch):
    study = asked("far", a=[1, 2])
    with monkeypatch.context() as patched:
        patched.setattr(module, "HOST", "elsewhere")
        there = opened(study, postgresql, tmp_path / "there" / "far")
        theirs = there.claim()
    here = opened(study, postgresql, tmp_path / "here" / "far")
    mine = here.claim()
    assert (theirs.number, mine.number) == (0, 1)
    here.finish(mine, 0.5)
    assert here.claim() is None
    assert states(here) == [RUNNING, COMPLETE]
    with here.storage.engine.begin() as connection:
        import sqlalchemy

        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour'"))
    taken = here.claim()
    assert taken.number == 0
    # The one that was taken for dead still ends; what counts is the trial that took its place.
    there.finish(theirs, 0.1)
    here.finish(taken, 0.9)
    assert [slot.accuracy for slot in here.slots()] == [0.9, 0.5]


def test_of_two_trials_of_a_slot_the_lower_number_counts(opened):
    ledger = opened(asked(a=[1]))
    ledger._enqueue(0, {"a": 1})  # as two workers do that repair the same thing at once
    claim = ledger.claim()
    assert claim.trial.number == 0
    assert ledger.claim() is None
    ledger.finish(claim, 0.5)
    assert finish(ledger) == []
    assert states(ledger) == [COMPLETE]


# ---- studies that are there, and storages that are not


def test_a_study_that_asks_for_something_else_is_refused_by_folder_and_storage(opened, tmp_path, postgresql):
    opened(asked("known", a=[1, 2]), postgresql, tmp_path / "known")
    for folder in (tmp_path / "known", tmp_path / "other" / "known"):
        with pytest.raises(UserError, match=r"asks for something else: a is \[1, 2\] there, and \[1, 3\] here"):
            opened(asked("known", a=[1, 3]), postgresql, folder)
    assert not (tmp_path / "other").exists()


def test_a_folder_that_holds_something_else_is_left_alone(opened, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is there and holds no study"):
        opened()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql+psycopg://me:swordfish@127.0.0.1:1/x", "cannot be used.*(refused|failed)"),
        ("postgresql+nothing://me:swordfish@127.0.0.1:1/x", "cannot be used|driver"),
        ("no url", "cannot be used"),
        ("sqlite:////proc/nowhere/x.db", "cannot be used.*unable to open"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line_and_leaves_nothing(opened, tmp_path, address, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(url=address)
    assert "swordfish" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("s*")) == []


def test_a_study_may_have_any_name(tmp_path):
    name = "{x} a?b a%20b a#b é☃"
    for _ in range(2):
        ledger = Ledger(asked(name, a=[1]), tmp_path / name)
        ledger.open()
        finish(ledger)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "study.db").is_file()


# ---- what a stranger left

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE trial_user_attributes SET value_json = '[1]' WHERE key = 'slot'", "cannot be used.*unhashable"),
        ("UPDATE trial_user_attributes SET value_json = '{['", "cannot be used.*JSONDecodeError"),
        ("UPDATE trial_values SET value = 'x'", "cannot be used"),
        ("UPDATE trial_params SET param_value = 99", "cannot be used.*IndexError"),
        ("UPDATE alembic_version SET version_num = 'x'", "cannot be used.*RuntimeError"),
        ("UPDATE study_user_attributes SET value_json = '[1]'", "is not what a study writes"),
        ("""UPDATE study_user_attributes SET value_json = '{"axes": [1], "set": {}}'""", "is not what a study writes"),
        (f"CREATE VIEW v AS {ENDLESS}", "holds what no study writes, a view 'v'"),
        ("CREATE TRIGGER t AFTER INSERT ON trials BEGIN SELECT 1; END", "holds what no study writes, a trigger 't'"),
    ],
)
def test_a_storage_that_holds_something_else_is_one_line(opened, tmp_path, statement, message):
    finish(opened(asked(a=[1])))
    with sqlite3.connect(tmp_path / "s.db") as stored:
        stored.execute(statement)
    stored.close()
    with pytest.raises(UserError, match=message) as caught:
        finish(opened(asked(a=[1])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["trial-0", "trial-0/.trial.lock", "trial-0/output.log", ".study.lock"])
def test_nothing_is_written_through_a_link_that_leads_out(opened, tmp_path, name):
    opened(asked(a=[1]))
    link = tmp_path / "s" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere" / "x")
    with pytest.raises(UserError, match="link that leads out"):
        finish(opened(asked(a=[1])))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("content", ["axes: [1]", "set: x", "model: {}"])
def test_a_file_that_no_study_has_written_is_one_line(opened, tmp_path, content):
    opened(asked(a=[1]))
    (tmp_path / "s" / "study.yaml").write_text(content)
    with pytest.raises(UserError, match="is not what a study writes"):
        opened(asked(a=[1]))


def test_a_pruner_is_made_before_anything_is_written(opened, tmp_path):
    with pytest.raises(UserError, match=r"pruner halving: .*reduction_factor"):
        opened(asked(pruner={"name": "halving", "reduction_factor": 0}))
    assert not (tmp_path / "s").exists()


def test_a_seed_may_be_as_large_as_one_likes(opened):
    ledger = opened(asked(sampler={"name": "tpe", "trials": 2, "seed": 2**80}))
    finish(ledger)
    assert states(ledger) == [COMPLETE] * 2


def test_secrets_reach_neither_the_file_nor_the_storage(tmp_path):
    study = Asked("s", (), {"data.api_key": "swordfish"}, ({"a": [1]},))
    ledger = Ledger(study, tmp_path / "s")
    ledger.open()
    finish(ledger)
    assert ledger.url == f"sqlite:///{tmp_path}/s/study.db"
    held = [path.read_bytes() for path in Path(tmp_path / "s").rglob("*") if path.is_file()]
    assert held
    assert not any(b"swordfish" in content for content in held)
