"""Our words for what jsonargparse, Lightning and torch refuse: which key or value is wrong, and what is near it."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from adapters_pl import __all__ as PUBLIC
from adapters_pl.cli.received import SECTIONS
from adapters_pl.compat.jsonargparse import Refusal
from adapters_pl.compat.lightning_messages import while_restoring
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.names import arguments_of, subclasses
from adapters_pl.inputs.ranges import WORDS
from adapters_pl.inputs.untrusted import reason_of
from adapters_pl.training.module import CausalLMModule

#: Keys of the highest level.
_TOP = ("config", "seed_everything", "trainer", *SECTIONS, "ckpt_path")
#: Keys whose classes have short names: what they are subclasses of, and what such a class is called.
_KINDS: dict[str, tuple[type, str]] = {**SECTIONS, "trainer.callbacks": (Callback, "callback")}
#: Those of them whose classes are ours.
_OURS = ("model", "data", "adapter")


def worded(refusal: Refusal, command: str) -> UserError:
    """What jsonargparse refused, in words for a person."""
    if refusal.message in _WORDS:
        return UserError(_WORDS[refusal.message](refusal))
    where = f"{refusal.where}: " if refusal.where else ""
    return UserError(f"{where}{refusal.text[:300]}. See adapters-pl {command} --help.")


def _unknown_key(refusal: Refusal) -> str:
    """An argument that no class of its section takes, or another one than the named class."""
    key, section = refusal.found["key"], refusal.where
    if not section:
        section, _, rest = key.partition(".")
        if rest and section == "trainer":
            return f"unknown key '{key}': {did_you_mean(rest, arguments_of(Trainer))}"
        if rest and section in _OURS:
            return f"unknown key '{key}': {did_you_mean(rest, arguments_of(_KINDS[section][0]))}"
        return f"unknown key '{key}': {did_you_mean(key, _TOP)}"
    kind, called = _KINDS.get(section, (None, ""))
    name = refusal.class_path.rpartition(".")[2]
    takers = sorted(cls.__name__ for cls in _classes_of(kind) if key in arguments_of(cls)) if kind else []
    if kind and takers and name in ("", kind.__name__):
        return f"{section}.{key}: name its {called} before it, with --{section} {_either(takers)}."
    if takers:
        return f"unknown key '{section}.{key}' of {name}: it belongs to {_either(takers)}."
    if refusal.class_path:
        module = import_module(refusal.class_path.rpartition(".")[0])
        kind = getattr(module, name)
    return f"unknown key '{section}.{key}': {did_you_mean(key, arguments_of(kind) if kind else ())}"


def _missing_key(refusal: Refusal) -> str:
    needed = refusal.found["key"]
    if not refusal.where:
        known = ", ".join(sorted(_names_of(ReasoningDataModule)))
        return f"no dataset: pass --data with one of {known}, or a class of your own."
    name, first = refusal.class_path.rpartition(".")[2], needed.split(", ")[0]
    return f"{refusal.where}: {name} needs {needed}: pass --{refusal.where}.{first}."


def _out_of_range(refusal: Refusal) -> str:
    kind = refusal.found["kind"]
    given = refusal.value if refusal.value is not None else refusal.found["said"] or refusal.found["text"]
    if re.fullmatch(r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)", given, re.IGNORECASE) and kind in WORDS:
        return f"{refusal.where} is {given[:80]}; it must be {WORDS[kind]}."
    return f"{refusal.where}: expected a number {WORDS.get(kind, kind)}, not '{given[:80]}'."


def _no_subclass(refusal: Refusal) -> str:
    name = refusal.found.get("name") or _given_class(refusal)
    return f"{refusal.where}: {name[:80]} is no subclass of {refusal.found['kind']}."


def _no_module(refusal: Refusal) -> str:
    why = f": {reason}" if (reason := refusal.found.get("reason")) else ""
    return f"{refusal.where}: cannot import {refusal.found['name']}{why}; modules are looked for in this folder, too."


def _no_class(refusal: Refusal) -> str:
    where, name = refusal.where, refusal.found["name"] or _given_class(refusal)
    if not name:
        return f"{where} is empty: name a class, or leave it out."
    if where not in _KINDS:
        return f"{where}: '{name}' is no class; give its whole path, as in package.module.Class."
    kind, called = _KINDS[where]
    return f"there is no {called} '{name}': {did_you_mean(name, _names_of(kind))}"


def _given_class(refusal: Refusal) -> str:
    return (refusal.value or "").removeprefix("{'class_path': '").partition("'")[0]


#: Our words, by the message of jsonargparse.
_WORDS: dict[str, Callable[[Refusal], str]] = {
    "unknown key": _unknown_key,
    "key before class": _unknown_key,
    "missing key": _missing_key,
    "out of range": _out_of_range,
    "another type": lambda r: f"{r.where}: expected {' or '.join(r.types)}, not '{(r.value or '')[:80]}'.",
    "no subclass": _no_subclass,
    "ambiguous class": lambda r: f"{r.where}: there are several '{r.found['name']}': give one of {r.found['paths']}.",
    "no module": _no_module,
    "class fails": lambda r: f"{r.where}: {r.found['name']}: {r.found['reason'][:200]}.",
    "no class": _no_class,
    "no mapping": lambda r: f"{r.where} is '{r.found['name'][:80]}'; it holds keys: give --{r.where}.KEY VALUE.",
}


def user_error_behind(error: BaseException) -> UserError | None:
    """The ``UserError`` that led to ``error``, if one did."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def of_restoring(error: Exception, checkpoint: Path | None) -> UserError | None:
    """That a checkpoint is not as this version writes it, if ``error`` came while Lightning took it over."""
    frames = [(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    ours = any(file == "resume.py" and function in _RESTORING for file, function in frames)
    if checkpoint is None or not (ours or while_restoring(error)):
        return None
    return UserError(
        f"{checkpoint}: what it says of its training is not as adapters-pl writes it ({reason_of(error)}); take "
        f"another checkpoint, or begin a new training with its adapter: --adapter_path {checkpoint}"
    )


#: What of ``resume.py`` reads a checkpoint; the rest of it writes one.
_RESTORING = ("on_load_checkpoint", "on_train_start", "_have_gone_on")


def of_optimizer(error: Exception) -> UserError | None:
    """What is wrong with ``--optimizer.*`` or ``--lr_scheduler.*``, or with the state that a checkpoint has of them."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    files = [file for file in files[-3:] if {"optim", "torch"} <= set(file.parts)]
    if not files:
        return None
    section = "lr_scheduler" if files[-1].name == "lr_scheduler.py" else "optimizer"
    return UserError(
        f"{section}: torch refuses its settings ({reason_of(error)}); see to --{section}.*, or to the checkpoint that "
        "they come from."
    )


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def _names_of(kind: type) -> list[str]:
    """The names of the classes below ``kind`` that are imported; of torch's and Lightning's, only their own."""
    return [cls.__name__ for cls in _classes_of(kind)]


def _classes_of(kind: type) -> list[type]:
    home = kind.__module__.partition(".")[0]
    ours = kind in [_KINDS[section][0] for section in _OURS]
    found = [cls for cls in subclasses(kind) if ours or cls.__module__.partition(".")[0] == home]
    whole = [CausalLMModule] if kind is CausalLMModule else []
    public = [cls for cls in found if not inspect.isabstract(cls) and (not _is_ours(cls) or cls.__name__ in PUBLIC)]
    return [*whole, *(cls for cls in public if cls.__name__[0] != "_")]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "adapters_pl"
