"""Names of classes: what checkpoints and configurations call them, wherever they are defined."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import adapters_pl


def public_name(path: str) -> str:
    """The public path of a class of this package, ``adapters_pl.LoRA``; any other path as it is.

    Files written by older versions name the module that defined a class then (``adapters_pl.adapters.lora.LoRA``).
    """
    package, _, name = path.rpartition(".")
    public = package.startswith(f"{adapters_pl.__name__}.") and name in adapters_pl.__all__
    return f"{adapters_pl.__name__}.{name}" if public else path


def with_public_names(config: Any) -> Any:
    """A configuration in which every ``class_path`` is the public one."""
    if isinstance(config, dict):
        return {
            key: public_name(value) if key == "class_path" and isinstance(value, str) else with_public_names(value)
            for key, value in config.items()
        }
    return [with_public_names(value) for value in config] if isinstance(config, list) else config


def loaded(kind: type) -> dict[str, type]:
    """Every class of ``kind`` that is imported already, by the paths by which configurations name it."""
    classes: dict[str, type] = {}
    for cls in (kind, *subclasses(kind)):
        package, _, _ = cls.__module__.rpartition(".")
        path = f"{cls.__module__}.{cls.__qualname__}"
        # Libraries export a class one or two levels above the module that defines it.
        for name in (path, public_name(path), f"{package}.{cls.__qualname__}", f"{path.split('.')[0]}.{cls.__name__}"):
            classes.setdefault(name, cls)
    return classes


def subclasses(cls: type) -> Iterator[type]:
    """Every class below ``cls`` that is imported already."""
    sub: type
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of ``cls(...)``, through every ``**kwargs`` that is handed on to a base class."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found
