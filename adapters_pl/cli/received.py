"""The trust boundary: what of a recorded configuration, which may be a stranger's, reaches a command.

A checkpoint is data. Of the configuration in it, known keys with plain values are taken, and classes that are known
already; nothing in it is imported, called, or chosen as a place to write to. ``SECURITY.md`` says what is trusted.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import adapters_pl
from adapters_pl.adapters import Adapter
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.compat.peft import import_peft
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.names import arguments_of, loaded, public_name
from adapters_pl.inputs.untrusted import is_plain
from adapters_pl.training.module import CausalLMModule
from adapters_pl.training.strategies import STRATEGIES

#: Sections that name a class: what it is a subclass of, and what it is called.
SECTIONS: dict[str, tuple[type, str]] = {
    "model": (CausalLMModule, "model"),
    "adapter": (Adapter, "adapter"),
    "data": (ReasoningDataModule, "dataset"),
    "optimizer": (Optimizer, "optimizer"),
    "lr_scheduler": (LRScheduler, "scheduler"),
}
#: The packages whose loaded classes a checkpoint may name.
_PACKAGES = frozenset({"adapters_pl", "torch", "peft", "lightning"})
#: Arguments of our own classes that name a class.
_SLOTS = ("optimizer", "lr_scheduler", "peft_config")
#: Arguments of the Trainer that run code, choose where to write, or are objects. The rest are plain values.
_TRAINER_OBJECTS = frozenset(
    {"callbacks", "logger", "plugins", "profiler", "default_root_dir", "model_registry", "barebones"}
)
#: The longest list; jsonargparse takes the square of its length in time.
_MOST_ITEMS = 2000
#: What decides by itself whether code from elsewhere runs; it is only ever typed.
CODE = "trust_remote_code"
#: What names a way to compute attention, or else a repository of the hub, whose code would be fetched and run.
_ATTENTION = "attn_implementation"

_PLAIN_NAMES = frozenset(
    {"None", "NoneType", "bool", "int", "float", "str", "list", "List", "dict", "Dict", "tuple", "Tuple", "set", "Set"}
    | {"Literal", "Optional", "Union", "typing", "TaskType", "PeftType"}
)


@dataclass
class Received:
    """What of a recorded configuration was taken.

    Attributes:
        config: a configuration of known keys, plain values and known classes.
        left_out: the dotted keys that were not taken.
    """

    config: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def note(self, where: object) -> str | None:
        """One line that says what was left out and which flags ask for it, or nothing."""
        if not self.left_out:
            return None
        keys = ", ".join(self.left_out[:8]) + (f" and {len(self.left_out) - 8} more" if self.left_out[8:] else "")
        flags = []
        if any(CODE in key for key in self.left_out):
            flags.append(f"--model.{CODE} true runs a base's own code")
        if any(CODE not in key for key in self.left_out):
            flags.append("--trust_checkpoint takes over the rest" if flags else "--trust_checkpoint takes it over")
        return f"{where}: left out of its configuration: {keys} ({'; '.join(flags)})"


def received(
    recorded: Any,
    sections: Collection[str],
    where: object,
    named: Collection[str] = (),
    given: Collection[str] = (),
    trusted: bool = False,
) -> Received:
    """What a command takes over of the configuration ``recorded`` in a checkpoint.

    Args:
        recorded: whatever stands there.
        sections: the sections that the command takes over.
        where: the checkpoint, for messages.
        named: class paths that the command itself names: classes of their packages are known, too.
        given: sections whose class the command names, so that an unknown one in the checkpoint does not matter.
        trusted: ``--trust_checkpoint`` was typed: take everything but a base's own code and where to write.

    Raises:
        UserError: it is no configuration, or a class that the command cannot do without is not known.
    """
    if not isinstance(recorded, Mapping) or not is_plain(recorded):
        raise UserError(f"{where}: the configuration recorded in it is none of adapters-pl's; take another checkpoint.")
    found = Received()
    known = _PACKAGES | {name.partition(".")[0] for name in named}
    for section in sections:
        value = recorded.get(section)
        if value is None:
            continue
        if trusted:
            value = _without_code(value, section, found)
            if section == "trainer" and isinstance(value, dict):
                value.pop("default_root_dir", None)  # the run goes on where it is
            found.config[section] = value
        elif section == "seed_everything":
            if isinstance(value, int):
                found.config[section] = value
            else:
                found.left_out.append(section)
        elif section == "trainer":
            found.config[section] = _trainer(value, found)
        elif isinstance(value, list) and section == "adapter":
            taken = [_object(part, section, section, where, known, given, found) for part in value]
            if all(part is not None for part in taken):
                found.config[section] = taken
        elif (taken_one := _object(value, section, section, where, known, given, found)) is not None:
            found.config[section] = taken_one
    return found


def refuse_code(config: Mapping[str, Any], line: CommandLine) -> None:
    """Raise ``UserError`` where a configuration switches a base's own code on and the command line does not.

    Args:
        config: a command's configuration, as it was put together from its files and its options.
        line: the command line.
    """
    if any(o.key.rpartition(".")[2] == CODE or re.search(rf"\b{CODE}\W*:", o.value or "") for o in line.options):
        return
    found: list[Any] = [config]
    while found:
        node = found.pop()
        if isinstance(node, Mapping):
            if node.get(CODE):
                raise UserError(
                    f"A configuration sets {CODE}, by which code that comes with the base would run here. If you trust "
                    f"the base, type it: --model.{CODE} true"
                )
            found += node.values()
        elif isinstance(node, list):
            found += node


def _object(
    value: Any,
    key: str,
    section: str,
    where: object,
    known: Collection[str],
    given: Collection[str],
    found: Received,
) -> dict[str, Any] | None:
    """``{class_path, init_args}`` as far as it is known; ``None`` where the command names another class."""
    if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        raise UserError(f"{where}: its {key} is no class with arguments; take another checkpoint.")
    path = public_name(value["class_path"])
    cls = loaded(_kind(section)).get(path)
    if cls is None or cls.__module__.partition(".")[0] not in known:
        if section in given:
            return None
        flag = f"--{key} {path}" if key in SECTIONS else f"--{key}.class_path {path}"
        called = SECTIONS[section][1] if section in SECTIONS else section
        raise UserError(
            f"{where} names the {called} '{path}', which is not one of adapters-pl's; it was not "
            f"imported. If you trust it: {flag}, or --trust_checkpoint."
        )
    for other in value.keys() - {"class_path", "init_args"}:
        found.left_out.append(f"{key}.{other}")
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: the arguments of its {key} are no mapping; take another checkpoint.")
    return {"class_path": path, "init_args": _arguments(cls, arguments, key, where, known, given, found)}


def _arguments(
    cls: type,
    values: Mapping[str, Any],
    key: str,
    where: object,
    known: Collection[str],
    given: Collection[str],
    found: Received,
) -> dict[str, Any]:
    ours = cls.__module__.partition(".")[0] == adapters_pl.__name__
    accepted = arguments_of(cls)
    taken: dict[str, Any] = {}
    for name, value in values.items():
        if name == CODE:
            if value:
                found.left_out.append(f"{key}.{name}")
        elif name not in accepted or (name == _ATTENTION and not re.fullmatch(r"\w*", str(value))):
            found.left_out.append(f"{key}.{name}")
        elif name in _SLOTS:
            if value is None:
                taken[name] = None
            elif (inner := _object(value, f"{key}.{name}", name, where, known, given, found)) is not None:
                taken[name] = inner
        elif _is_data(value, names_classes=not ours and not _is_plain_type(accepted[name].annotation)):
            taken[name] = value
        else:
            found.left_out.append(f"{key}.{name}")
    return taken


def _trainer(value: Any, found: Received) -> dict[str, Any]:
    """The Trainer's plain settings: how long and how exactly to train, and on which devices."""
    taken: dict[str, Any] = {}
    names = {
        "strategy": {*StrategyRegistry.available_strategies(), *STRATEGIES, "auto"},
        "accelerator": {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"},
    }
    known = inspect.signature(Trainer.__init__).parameters
    for key, setting in (value if isinstance(value, Mapping) else {}).items():
        if setting is None or setting == [] or key == "default_root_dir":
            continue  # the run goes on where it is
        objects = key in _TRAINER_OBJECTS and not isinstance(setting, bool)
        other_name = isinstance(setting, str) and not (
            setting in names[key] if key in names else re.fullmatch(r"[\w:,.+-]*", setting)
        )
        if key not in known or objects or other_name or not _is_data(setting, names_classes=False):
            found.left_out.append(f"trainer.{key}")
        else:
            taken[key] = setting
    return taken


def _is_data(value: Any, names_classes: bool) -> bool:
    """Whether a parser takes ``value`` for what it is: it names no class, which with ``names_classes`` a text could."""
    if isinstance(value, Mapping):
        return "class_path" not in value and all(_is_data(part, names_classes) for part in value.values())
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_ITEMS and all(_is_data(part, names_classes) for part in value)
    return not (names_classes and isinstance(value, str))


def _is_plain_type(annotation: Any) -> bool:
    """Whether an annotation is made of plain types alone; it is read, not evaluated."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)  # the choices of a Literal
    return annotation is not inspect.Parameter.empty and set(re.findall(r"[A-Za-z_]\w*", text)) <= _PLAIN_NAMES


def _without_code(value: Any, key: str, found: Received) -> Any:
    """``value`` without the switch that runs a base's own code, wherever it stands."""
    if isinstance(value, Mapping):
        kept = {}
        for name, part in value.items():
            if CODE in name:
                if part:
                    found.left_out.append(f"{key}.{name}")
            else:
                kept[name] = _without_code(part, f"{key}.{name}", found)
        return kept
    return [_without_code(part, key, found) for part in value] if isinstance(value, list) else value


def _kind(section: str) -> type:
    if section == "peft_config":
        return import_peft().PeftConfig
    return SECTIONS[section][0]
