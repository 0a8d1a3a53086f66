"""Train adapters inside frozen causal language models, and tell how good they are.

The public names are imported on first use, so that ``import adapters_pl`` costs nothing:

- :class:`CausalLMModule`, the Lightning module around a frozen Hugging Face causal LM;
- :class:`Adapter` and its methods (:class:`LoRA`, :class:`PrefixTuning`, ...), Lightning callbacks that inject modules;
- the datasets (:class:`GSM8K`, :class:`InstructionJSON`, ...), Lightning data modules;
- :func:`load_adapter`, which puts a saved adapter into any transformers model, and :func:`activate`, which
  switches between several.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: The room or file of each public name, beside the sets' classes.
_EXPORTS = {
    "CausalLMModule": "training.module",
    "Adapter": "adapters",
    "AdapterLayer": "adapters",
    "LinearAdapter": "adapters",
    "LinearAdapterLayer": "adapters",
    "LoRA": "adapters",
    "IA3": "adapters",
    "SeriesAdapter": "adapters",
    "ParallelAdapter": "adapters",
    "PrefixTuning": "adapters",
    "PromptTuning": "adapters",
    "PTuning": "adapters",
    "PEFTAdapter": "adapters",
    "activate": "adapters",
    "FullyShardedStrategy": "training.strategies",
    "load_adapter": "training.adapter_files",
    "save_adapter": "training.adapter_files",
    "ReasoningDataModule": "data",
    "Example": "data",
    "InstructionJSON": "data",
    "UserError": "inputs.errors",
}


def exports() -> dict[str, str]:
    """Every public name and the room or file that has it; each row of ``answers/sets.py`` is one of them."""
    rows = import_module(f"{__name__}.answers.sets").ROWS
    return _EXPORTS | {row.called: "data" for row in rows}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return ["__version__", *exports()]
    if not name.startswith("_") and (home := _EXPORTS.get(name) or exports().get(name)):
        return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", *sorted(exports())]
