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

_EXPORTS = {
    "CausalLMModule": "training.module",
    "Adapter": "adapters",
    "AdapterLayer": "adapters",
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
    "load_adapter": "training.checkpoint",
    "save_adapter": "training.checkpoint",
    "ReasoningDataModule": "data",
    "Example": "data",
    "GSM8K": "data",
    "SVAMP": "data",
    "AddSub": "data",
    "AQuA": "data",
    "SingleEq": "data",
    "MultiArith": "data",
    "MAWPS": "data",
    "MathQA": "data",
    "Math7K": "data",
    "Math10K": "data",
    "Math14K": "data",
    "Math50K": "data",
    "MathData": "data",
    "BoolQ": "data",
    "PIQA": "data",
    "SIQA": "data",
    "HellaSwag": "data",
    "WinoGrande": "data",
    "ARCEasy": "data",
    "ARCChallenge": "data",
    "OpenBookQA": "data",
    "Commonsense15K": "data",
    "Commonsense170K": "data",
    "AlpacaCleaned": "data",
    "Arithmetic": "data",
    "Commonsense": "data",
    "InstructionJSON": "data",
    "WordProblems": "data",
    "UserError": "inputs.errors",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
