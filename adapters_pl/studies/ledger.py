"""Which trials of a study are open, running and done: Optuna's storage, and who may run what.

A study has a fixed number of slots: the cells of its grids, or the trials that it samples. What happens to a slot is a
row of trials in Optuna's storage: the first waits, whoever claims it makes it run, and where its worker died it fails
and another one waits in its place. A slot has one directory, in which all of them go on.

No trial runs twice at once, and none is lost:

* A worker that wants a slot takes the lock of its directory first, and looks at its state again then. A process that
  was killed holds no lock, so on its machine the slot is free at once; one that it has left behind holds it still.
* Of workers that share no locks, one alone can turn a waiting trial into a running one, or a running one into a failed
  one: both are transactions of the database. Such a worker tells that it lives by Optuna's heartbeat, and is taken for
  dead after ``storage.GRACE`` seconds without one.
* Where two workers put a trial in the same place at once, the lower number counts, and the other one waits for ever:
  the database numbers trials in the order in which others see them.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.masking import masked
from adapters_pl.inputs.untrusted import has_shape, load_config_file
from adapters_pl.runs.at_once import locked
from adapters_pl.runs.run import Run
from adapters_pl.studies.asked import Asked, Values, differences, label
from adapters_pl.studies.folder import TrialFolder
from adapters_pl.studies.storage import FrozenTrial, TrialState, connect, of_file, optuna, pruner, reaching, sampler

#: What tells workers that share locks from others.
HOST = socket.gethostname()

WAITING, RUNNING, COMPLETE, PRUNED, FAILED = "waiting", "running", "complete", "pruned", "failed"
_STATES = {
    TrialState.WAITING: WAITING,
    TrialState.RUNNING: RUNNING,
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
}
#: Of several trials of a slot, which one says how it stands.
_RANK = (COMPLETE, PRUNED, RUNNING, WAITING)


@dataclass
class Slot:
    """How one of the study's trials stands.

    Attributes:
        number: of its directory.
        values: by configuration key; empty where they are not drawn yet.
        state: ``waiting`` also where nothing was begun.
        accuracy: where it is complete, in 0..1.
        error: why it failed.
        current: the trial in the storage that says so, if there is one.
    """

    number: int
    values: Values = field(default_factory=dict)
    state: str = WAITING
    accuracy: float | None = None
    error: str | None = None
    current: FrozenTrial | None = None


@dataclass
class Claim:
    """A slot that this process runs.

    Attributes:
        number: of the slot.
        values: by configuration key.
        folder: its directory, whose lock is held.
        trial: what Optuna knows of it.
    """

    number: int
    values: Values
    folder: TrialFolder
    trial: optuna.trial.Trial


class Ledger:
    """The study ``asked`` in ``folder``, whose trials are counted in the storage at ``url``.

    Args:
        asked: the study.
        folder: of the study.
        url: of the storage; ``study.db`` in the folder if not given.
    """

    def __init__(self, asked: Asked, folder: Path, url: str | None = None) -> None:
        self.asked, self.folder = asked, folder
        self.cells = None if asked.sampler else asked.cells()
        self.choices = asked.axes
        self.pruner = pruner(asked.pruner)
        self.file = url is None or url.startswith("sqlite")
        self.url = url or of_file(folder / "study.db")

    def open(self) -> None:
        """Make the study, or go on in one that is there and asks for the same.

        Raises:
            UserError: the storage cannot be reached, or there is another study of this name. Nothing is left behind.
        """
        Run(self.folder).refuse_links("name another study")
        about = self.folder / "study.yaml"
        document = self.asked.document()
        there = about.is_file()
        if there:
            self._refuse_other(load_config_file(about), document, self.folder)
        elif self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} is there and holds no study: name the study otherwise, with --name.")
        if not self.file:
            self._connect(document)
        before = set(self.folder.iterdir()) if self.folder.is_dir() else None
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder / ".study.lock", wait=True):
                # First of all: it is what tells another worker that this is a study.
                if not about.is_file():
                    Run(self.folder).write("study.yaml", yaml.safe_dump(document, sort_keys=False))
                if self.file:
                    self._connect(document)
                self._begin(document)
        except BaseException:
            if not any(self.folder.glob("trial-*")):
                for path in set(self.folder.iterdir()) - (before or set()):
                    path.unlink()
                if before is None:
                    self.folder.rmdir()
            raise

    def _connect(self, document: dict[str, Any]) -> None:
        """Reach the storage, and look whether it has another study of this name."""
        with reaching(self.url):
            self.storage = connect(self.url, self._again)
            with suppress(KeyError):
                study = optuna.load_study(study_name=self.asked.name, storage=self.storage)
                if known := study.user_attrs.get("asked"):
                    self._refuse_other(known, document, "the storage")

    def _refuse_other(self, there: Any, here: dict[str, Any], where: object) -> None:
        if not has_shape(there, {"axes": dict, "set": dict}):
            raise UserError(f"{where}: what it says of the study '{self.asked.name}' is not what a study writes.")
        if found := differences(there, here):
            raise UserError(
                f"{where} holds a study '{self.asked.name}' that asks for something else: {'; '.join(found[:3])}. "
                "Ask for the same to go on in it, or name this one otherwise, with --name."
            )

    def _begin(self, document: dict[str, Any]) -> None:
        """The study in the storage, and a trial for every slot."""
        with reaching(self.url):
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=self.asked.name,
                direction="maximize",
                load_if_exists=True,
                sampler=sampler(self.asked.sampler, 0),
                pruner=self.pruner,
            )
            if "asked" not in self.study.user_attrs:
                self.study.set_user_attr("asked", document)
        for slot in self.slots():
            if slot.state == WAITING and slot.current is None:
                self._enqueue(slot.number, slot.values)

    # ---- how it stands

    def slots(self) -> list[Slot]:
        """Every slot."""
        found: dict[int, list[FrozenTrial]] = {number: [] for number in range(self.asked.trials)}
        with reaching(self.url):
            for trial in self.study.get_trials(deepcopy=False):
                if (number := trial.user_attrs.get("slot")) in found:
                    found[number].append(trial)
            return [self._slot(number, of_slot) for number, of_slot in found.items()]

    def _slot(self, number: int, trials: list[FrozenTrial]) -> Slot:
        values = self.cells[number] if self.cells else self._values(trials[-1]) if trials else {}
        for state in _RANK:
            for trial in sorted(trials, key=lambda trial: trial.number):
                if _STATES.get(trial.state) == state:
                    values = values if self.cells else self._values(trial) or values
                    known = state == COMPLETE and trial.value is not None
                    return Slot(number, values, state, float(trial.value or 0) if known else None, None, trial)
        latest = max(trials, key=lambda trial: trial.number, default=None)
        error = latest.user_attrs.get("error") if latest else None
        # One that failed without an error had its worker die, and whoever saw that died before it could put another
        # one in its place.
        return Slot(number, values, FAILED if error else WAITING, None, error, latest if error else None)

    def _values(self, trial: FrozenTrial) -> Values:
        """The sampled values of a trial, in the order of the axes."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        found = {}
        for key in (key for key in self.choices if key in params):
            choices = self.choices[key]
            given = [value for value in choices if label(value) == params[key]] if isinstance(choices, list) else []
            found[key] = given[0] if given else params[key]
        return found

    # ---- who runs what

    def claim(self) -> Claim | None:
        """A slot that this process may run from now on; ``None`` where nothing is open or others have it."""
        with reaching(self.url):
            optuna.storages.fail_stale_trials(self.study)
        for slot in self.slots():
            if slot.state not in (WAITING, RUNNING):
                continue
            folder = TrialFolder(self.folder, slot.number)
            if not folder.take():
                continue
            claim = None
            try:
                claim = self._claim(slot.number, folder)
            finally:
                if claim is None:
                    folder.release()
            if claim is not None:
                return claim
        return None

    def _claim(self, number: int, folder: TrialFolder) -> Claim | None:
        """The slot, whose lock is held, if it is still open."""
        slot = self.slots()[number]
        if slot.state == RUNNING and slot.current is not None and self._is_dead(slot.current, folder):
            self._fail(slot.current)
            slot = self.slots()[number]
        if slot.state == WAITING and slot.current is None:
            self._enqueue(number, slot.values)
            slot = self.slots()[number]
        if slot.state != WAITING or slot.current is None:
            return None
        own = slot.current
        identity = self._identity(own)
        with reaching(self.url):
            try:
                # Both before it runs: what is claimed and then killed at once is known to be dead.
                self.storage.set_trial_user_attr(identity, "host", HOST)
                self.storage.record_heartbeat(identity)
                if not self.storage.set_trial_state_values(identity, TrialState.RUNNING):
                    return None
                self.storage.set_trial_user_attr(identity, "host", HOST)
            except optuna.exceptions.UpdateFinishedTrialError:
                return None
        with reaching(self.url):
            self.study.sampler = sampler(self.asked.sampler, number)
            trial = optuna.trial.Trial(self.study, identity)
            self._suggest(trial, self.cells[number] if self.cells else self.choices)
        values = self.cells[number] if self.cells else self._values(self.slots()[number].current or own)
        folder.write(self.asked.name, values, RUNNING)
        return Claim(number, values, folder, trial)

    def _is_dead(self, trial: FrozenTrial, folder: TrialFolder) -> bool:
        """Whether nothing runs a trial whose lock this process holds."""
        same_place = self.file or (trial.user_attrs.get("host") == HOST and bool(folder.written()))
        return same_place and folder.locks

    def _suggest(self, trial: optuna.trial.Trial, keys: Values) -> None:
        """Have Optuna know the trial's values, or draw them."""
        for key in keys:
            choices = self.choices[key]
            if isinstance(choices, list):
                trial.suggest_categorical(key, [label(value) for value in choices])
                continue
            more = {name: choices[name] for name in ("log", "step") if name in choices}
            low, high = choices["low"], choices["high"]
            whole = isinstance(low, int) and isinstance(high, int)
            (trial.suggest_int if whole else trial.suggest_float)(key, low, high, **more)

    def beat(self, claim: Claim) -> None:
        """Tell that the worker lives. A database that is away for a moment is no reason to end."""
        with suppress(optuna.exceptions.StorageInternalError):
            self.storage.record_heartbeat(self._identity(claim.trial))

    def finish(self, claim: Claim, accuracy: float) -> None:
        """A trial is done; ``trial.json`` says so first, so that it is not run again whatever happens between."""
        claim.folder.write(self.asked.name, claim.values, COMPLETE)
        self._tell(claim, TrialState.COMPLETE, accuracy)

    def prune(self, claim: Claim) -> None:
        """A trial was stopped because it did worse than others."""
        claim.folder.write(self.asked.name, claim.values, PRUNED)
        self._tell(claim, TrialState.PRUNED, None)

    def fail(self, claim: Claim, error: str) -> None:
        """A trial ended with ``error``, one line."""
        claim.folder.write(self.asked.name, claim.values, FAILED, error)
        with reaching(self.url), suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self._identity(claim.trial), "error", masked(error))
        self._tell(claim, TrialState.FAIL, None)

    def give_back(self, claim: Claim) -> None:
        """Let another worker, or a later one, go on with a trial."""
        self._fail(claim.trial)
        claim.folder.release()

    def retry_failed(self) -> int:
        """Have what failed run again; gives how many."""
        failed = [slot for slot in self.slots() if slot.state == FAILED]
        for slot in failed:
            self._enqueue(slot.number, slot.values)
        return len(failed)

    def _tell(self, claim: Claim, state: TrialState, value: float | None) -> None:
        try:
            with reaching(self.url):
                # Finished already where others took this worker for dead; what it found lies in the directory.
                self.study.tell(claim.trial, value, state, skip_if_finished=True)
        finally:
            claim.folder.release()

    def _fail(self, trial: FrozenTrial | optuna.trial.Trial) -> None:
        """End a trial without an error, for another one to wait in its place."""
        with reaching(self.url):
            try:
                ended = self.storage.set_trial_state_values(self._identity(trial), TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                ended = False
        if ended:
            known = self.storage.get_trial(self._identity(trial))
            self._again(self.study, known)

    def _again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Put another trial in the place of one whose worker died."""
        if (number := trial.user_attrs.get("slot")) is not None:
            self._enqueue(number, self.cells[number] if self.cells else self._values(trial))

    def _enqueue(self, number: int, values: Values) -> None:
        """A trial that waits, with the values of the slot as far as they are known."""
        with reaching(self.url):
            self.study.enqueue_trial({key: label(value) for key, value in values.items()}, {"slot": number})

    def _identity(self, trial: FrozenTrial | optuna.trial.Trial) -> int:
        """The storage's own number of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(
            self.storage.get_study_id_from_name(self.asked.name), trial.number
        )
