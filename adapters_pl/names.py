"""Public names of classes: what checkpoints and configurations call them, wherever they are defined."""

from __future__ import annotations

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
