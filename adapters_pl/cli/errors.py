"""The argument parser's errors in one or two lines, with the nearest valid key."""

from __future__ import annotations

import inspect
import re
import traceback
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentError
from lightning.pytorch import Callback

from adapters_pl import __all__ as PUBLIC
from adapters_pl.cli.received import SECTIONS
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.errors import UserError, did_you_mean, first_line
from adapters_pl.inputs.masking import masked
from adapters_pl.inputs.names import arguments_of, subclasses
from adapters_pl.inputs.ranges import WORDS
from adapters_pl.inputs.untrusted import reason_of
from adapters_pl.training.module import CausalLMModule

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
#: Keys whose classes have short names: what they are subclasses of, and what such a class is called.
_KINDS: dict[str, tuple[type, str]] = {**SECTIONS, "trainer.callbacks": (Callback, "callback")}
#: Those of them whose classes are ours.
_NESTED = {section: _KINDS[section][0] for section in ("model", "data", "adapter")}


def explain(error: ArgumentError, command: str) -> UserError:
    """Word ``error`` for a person: which key or value is wrong, and what is near it."""
    text = masked(str(error))  # before anything is cut off a secret
    if found := re.search(r"Option '([\w.]+)' is not accepted", text):
        path = re.search(r"Problem with given class_path '([\w.]+)'", text)
        section = re.search(r'Parser key "(\w+)', text)
        if path and section and section[1] in _KINDS:
            return _unaccepted(section[1], found[1], path[1])
        if not section:
            return _unknown_key(found[1])
        known = _arguments_of(path[1]) if path else []
        return UserError(f"unknown key '{section[1]}.{found[1]}': {did_you_mean(found[1], known)}")
    if found := re.search(r'Parser key "(\w+)":(?s:.*) is abstract(?s:.*)NestedArg\(key=\'([\w.]+)\'', text):
        return _unaccepted(found[1], found[2], None)
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_key(found[1])
    if re.search(r"required: data\b", text):
        known = sorted(_names_of(ReasoningDataModule))
        return UserError(f"no dataset: pass --data with one of {', '.join(known)}, or a class of your own.")
    keys, block = _innermost(text)
    where = ".".join(keys)
    if where and (worded := _of_value(where, block) or _of_class(where, block)):
        return worded
    lines = [line.strip(" -") for line in text.splitlines() if line.strip() and "Parser key" not in line]
    return UserError(
        f"{f'{where}: ' if where else ''}{lines[0][:300] if lines else text[:300]}. See adapters-pl {command} --help."
    )


def _innermost(text: str) -> tuple[list[str], str]:
    """The keys that lead to what is wrong, and what is said of it: reports lie within one another, by indentation."""
    keys: list[str] = []
    while found := re.search(r'^( *)Parser key "([^"]+)":', text, re.MULTILINE):
        keys.append(found[2])
        depth, kept = len(found[1]), []
        for line in text[found.end() :].splitlines():
            if line.strip() and len(line) - len(line.lstrip()) < depth:
                break
            kept.append(line)
        text = "\n".join(kept)
    return keys, text


def _of_value(where: str, block: str) -> UserError | None:
    """What is wrong with a plain value: its range, its type, or that it is none of several."""
    given = re.search(r"Given value: (?:NestedArg\(.*val=(.*)\)$|(.*))|Got value: (.*)", block, re.DOTALL)
    value = next((part for part in given.groups() if part), "").strip().strip("'")[:80] if given else None
    if found := re.search(r"Not of type (\w+): (?:(.*?) (?:does not conform|not a)|.*: '(.*)')?", block):
        said = value if value is not None else found[2] or found[3] or ""
        if re.fullmatch(r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)", said, re.IGNORECASE) and found[1] in WORDS:
            return UserError(f"{where} is {said}; it must be {WORDS[found[1]]}.")
        wanted = [f"a number {WORDS.get(found[1], found[1])}"]
    else:
        if given is None:
            return None
        said = str(value)
        kinds = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", block, re.MULTILINE)
        wanted = [kind for kind in kinds if "NoneType" not in kind and not kind.startswith("path ")]
        if re.search("class_path|import path", block, re.IGNORECASE) and not set(wanted) & _NUMBERS:
            return None
        choices = [part for kind in wanted if "Literal" in kind for part in re.findall(r"[^\[\],' ]+", kind)[1:]]
        choices = [choice for choice in choices if choice != "typing.Literal"]
        wanted = [f"one of {', '.join(choices)}"] if choices else [_readable(kind) for kind in dict.fromkeys(wanted)]
    if not wanted:
        return None
    return UserError(f"{where}: expected {' or '.join(wanted)}, not '{said}'.")


def _of_class(where: str, block: str) -> UserError | None:
    """What is wrong with the name of a class, or with what it is given."""
    if found := re.search(r"class_path '([\w.]+)':\s+the following arguments are required: (.+)", block):
        needed = found[2].split(", ")[0].strip()
        return UserError(f"{where}: {found[1].rpartition('.')[2]} needs {found[2].strip()}: pass --{where}.{needed}.")
    if found := re.search(r"Import path (\S+ )?does not correspond to a subclass of (\w+)", block):
        given = re.search(r"Given value: (?:\{'class_path': ')?([^'\n]+)", block)
        name = found[1] or (given[1] if given else "it")
        return UserError(f"{where}: {name.strip()} is no subclass of {found[2]}.")
    found = re.search(
        r"import path string: (.*)|class_path '([\w.]+)':\s+(.*)|Given value: (?:\{'class_path': ')?([^'\n]+)", block
    )
    if found is None:
        return None
    name = (found[1] or found[2] or found[4] or "").strip()
    if "." in name:
        reason = re.search(r"(No module named '[\w.]+'|has no attribute '\w+')", block)
        if reason is None and found[3]:
            return UserError(f"{where}: {name}: {found[3].strip()[:200]}.")
        why = f": {reason[1]}" if reason else ""
        return UserError(f"{where}: cannot import {name}{why}; modules are looked for in this folder, too.")
    if not name:
        return UserError(f"{where} is empty: name a class, or leave it out.")
    if where not in _KINDS:
        return UserError(f"{where}: '{name}' is no class; give its whole path, as in package.module.Class.")
    kind, called = _KINDS[where]
    return UserError(f"there is no {called} '{name}': {did_you_mean(name, _names_of(kind))}")


def user_error_behind(error: BaseException) -> UserError | None:
    """The ``UserError`` that led to ``error``, if one did."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


#: What Lightning says of GPUs that are not there, and what is said here.
_GPUS = (
    (r"TPU|torch_xla", "there is no TPU here that torch can use: pass --trainer.accelerator cpu"),
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


def of_parser(error: Exception, command: str) -> UserError | None:
    """What is wrong with a value, where jsonargparse notices it only while it builds what the value is for."""
    if not isinstance(error, ValueError | TypeError) or "validate against" not in str(error):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames and "jsonargparse" in Path(frames[-1].filename).parts
    return explain(ArgumentError(None, str(error)), command) if ours else None


def of_restoring(error: Exception, checkpoint: Path | None) -> UserError | None:
    """That a checkpoint is not as this version writes it, if ``error`` came while Lightning took it over."""
    frames = [(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    restoring = any(
        file == "checkpoint_connector.py" or (file == "resume.py" and function in _RESTORING)
        for file, function in frames
    )
    if checkpoint is None or not restoring:
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


def _readable(expected: str) -> str:
    """``<class 'float'>`` is a number, and ``typing.Literal['a', 'b']`` one of a, b."""
    if choices := re.fullmatch(r"typing\.Literal\[(.+)\]", expected):
        return f"one of {choices[1].replace(chr(39), '')}"
    return _TYPES.get(name := re.sub(r"<class '([\w.]+)'>", r"\1", expected).replace("typing.", ""), name)


_NUMBERS = {f"<class '{name}'>" for name in ("int", "float", "bool")}
_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
}


def _unknown_key(key: str) -> UserError:
    key = key.lstrip("-").partition("=")[0]
    section, dot, rest = key.partition(".")
    if dot and section == "trainer":
        from lightning.pytorch import Trainer

        known = list(inspect.signature(Trainer.__init__).parameters)[1:]
        return UserError(f"unknown key '{key}': {did_you_mean(rest, known)}")
    if dot and section in _NESTED:
        return UserError(f"unknown key '{key}': {did_you_mean(rest, arguments_of(_NESTED[section]))}")
    return UserError(f"unknown key '{key}': {did_you_mean(key, _SECTIONS)}")


def _unaccepted(section: str, key: str, class_path: str | None) -> UserError:
    """What to do about an argument that the named class does not take, or that came before any class was named."""
    kind, called = _KINDS[section]
    name = (class_path or "").rpartition(".")[2]
    takers = sorted(cls.__name__ for cls in _classes_of(kind) if key in arguments_of(cls))
    if takers and name in ("", kind.__name__):
        return UserError(f"{section}.{key}: name its {called} before it, with --{section} {_either(takers)}.")
    if takers:
        return UserError(f"unknown key '{section}.{key}' of {name}: it belongs to {_either(takers)}.")
    known = _arguments_of(class_path) if class_path else arguments_of(kind)
    return UserError(f"unknown key '{section}.{key}': {did_you_mean(key, known)}")


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def _names_of(kind: type) -> list[str]:
    """The names of the classes below ``kind`` that are imported; of torch's and Lightning's, only their own."""
    return [cls.__name__ for cls in _classes_of(kind)]


def _classes_of(kind: type) -> list[type]:
    home = kind.__module__.partition(".")[0]
    ours = kind in _NESTED.values()
    found = [cls for cls in subclasses(kind) if ours or cls.__module__.partition(".")[0] == home]
    whole = [CausalLMModule] if kind is CausalLMModule else []
    public = [cls for cls in found if not inspect.isabstract(cls) and (not _is_ours(cls) or cls.__name__ in PUBLIC)]
    return [*whole, *(cls for cls in public if cls.__name__[0] != "_")]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "adapters_pl"


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(arguments_of(getattr(import_module(module), name)))
