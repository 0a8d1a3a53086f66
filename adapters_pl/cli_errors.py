"""The argument parser's errors in one or two lines, with the nearest valid key."""

from __future__ import annotations

import inspect
import re
import traceback
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentError

from adapters_pl.adapters import Adapter
from adapters_pl.data import ReasoningDataModule
from adapters_pl.errors import UserError, did_you_mean, first_line
from adapters_pl.module import CausalLMModule
from adapters_pl.names import arguments_of, subclasses

_SECTIONS = (
    "config",
    "seed_everything",
    "trainer",
    "model",
    "adapter",
    "data",
    "optimizer",
    "lr_scheduler",
    "ckpt_path",
)
_CLASS = re.compile(
    r"class_path '([\w.]+)'|import path string: (.+)|"
    r"Import path does not .*Given value: (?:\{'class_path': ')?([^'\n]+)",
    re.DOTALL,
)
_EXPECTED = re.compile(r"Expected an? (?!<class 'NoneType'>)(.+?)\. Got value: (.+)")
_UNION = re.compile(r"- Expected an? (?!<class 'NoneType'>)(.+?)\n.*Given value: (.+)", re.DOTALL)
_NESTED: dict[str, type] = {"model": CausalLMModule, "data": ReasoningDataModule, "adapter": Adapter}


def explain(error: ArgumentError, command: str) -> UserError:
    """Word ``error`` for a person: which key or value is wrong, and what is near it."""
    text = str(error)
    if found := re.search(r"Option '([\w.]+)' is not accepted", text):
        path = re.search(r"Problem with given class_path '([\w.]+)'", text)
        section = re.search(r'Parser key "(\w+)', text)
        known = _arguments_of(path[1]) if path else []
        where = f"{section[1]}.{found[1]}" if section else found[1]
        return UserError(f"unknown key '{where}': {did_you_mean(found[1], known)}")
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_key(found[1], command)
    if found := re.search(r"does not accept option '([\w.]+)'", text):
        return _unknown_key(found[1], command)
    if re.search(r"required: \w+\.data\b", text):
        known = sorted(_names_of(ReasoningDataModule))
        return UserError(f"no dataset: pass --data with one of {', '.join(known)}, or a class of your own.")
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text)))
    if found := _EXPECTED.search(text):
        return UserError(f"{'.'.join(keys[:2])}: expected {_readable(found[1])}, not '{found[2].strip()[:80]}'.")
    if keys and keys[0] in _NESTED and (found := _CLASS.search(text)):
        return _unknown_class(keys[0], (found[1] or found[2] or found[3]).splitlines()[0], text)
    if found := _UNION.search(text):
        return UserError(f"{keys[0]}: expected {_readable(found[1])}, not '{found[2].strip()[:80]}'.")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip() and "Parser key" not in line]
    where = f"{'.'.join(keys[:2])}: " if keys else ""
    return UserError(f"{where}{lines[0][:300] if lines else text[:300]}. See adapters-pl {command} --help.")


#: What Lightning says of GPUs that are not there, and what is said here.
_GPUS = (
    (
        r"No supported gpu backend|`CUDAAccelerator` can not run",
        "there is no GPU here that torch can use: pass --trainer.accelerator cpu",
    ),
    (
        r"You requested gpu: \[(.*)\]\s*But your machine only has: \[(.*)\]",
        "GPUs {0} were asked for and only {1} is here (they count from 0): pass --trainer.devices auto",
    ),
    (
        r"requested to find (\d+) devices but this machine only has (\d+)",
        "{0} GPUs were asked for, and there are {1}: pass --trainer.devices {1}",
    ),
)


def of_trainer(error: BaseException) -> UserError | None:
    """What is wrong with ``--trainer.*``, if Lightning raised ``error`` while it built the trainer."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or "lightning" not in Path(frames[-1].filename).parts:
        return None
    for pattern, words in _GPUS:
        if found := re.search(pattern, str(error)):
            return UserError(f"{words.format(*found.groups())}.")
    return UserError(f"trainer: {first_line(error)}")


def _readable(expected: str) -> str:
    """``<class 'float'>`` is a float, and ``typing.Literal['a', 'b']`` one of a, b."""
    if choices := re.fullmatch(r"typing\.Literal\[(.+)\]", expected):
        return f"one of {choices[1].replace(chr(39), '')}"
    return re.sub(r"<class '([\w.]+)'>", r"\1", expected).replace("typing.", "")


def _unknown_key(key: str, command: str) -> UserError:
    key = key.lstrip("-").partition("=")[0]
    section, dot, rest = key.partition(".")
    if dot and section == "trainer":
        from lightning.pytorch import Trainer

        known = list(inspect.signature(Trainer.__init__).parameters)[1:]
        return UserError(f"unknown key '{key}': {did_you_mean(rest, known)}")
    if dot and section in _NESTED:
        return UserError(f"unknown key '{key}': {did_you_mean(rest, arguments_of(_NESTED[section]))}")
    return UserError(f"unknown key '{key}': {did_you_mean(key, _SECTIONS)}")


def _unknown_class(section: str, name: str, text: str) -> UserError:
    kind = {"adapter": "adapter", "data": "dataset", "model": "model"}[section]
    known = _names_of(_NESTED[section])
    if "." in name:
        if "not correspond to a subclass" in text:
            return UserError(f"{section}: {name} is no subclass of {_NESTED[section].__name__}.")
        reason = re.search(r"(No module named '[\w.]+'|has no attribute '\w+')", text)
        why = f": {reason[1]}" if reason else ""
        return UserError(f"{section}: cannot import {name}{why}; modules are looked for in this folder, too.")
    return UserError(f"there is no {kind} '{name}': {did_you_mean(name, known)}")


def _names_of(kind: type) -> list[str]:
    whole = [CausalLMModule.__name__] if kind is CausalLMModule else []
    return [*whole, *(cls.__name__ for cls in subclasses(kind) if not inspect.isabstract(cls))]


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(arguments_of(getattr(import_module(module), name)))
