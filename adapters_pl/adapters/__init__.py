"""The adapter methods: one file each, every one a Lightning callback that injects in ``setup``."""

from adapters_pl.adapters.base import Adapter, LinearAdapter
from adapters_pl.adapters.bottleneck import ParallelAdapter, SeriesAdapter
from adapters_pl.adapters.ia3 import IA3
from adapters_pl.adapters.layers import AdapterLayer, LinearAdapterLayer, activate, adapter_layers
from adapters_pl.adapters.lora import LoRA
from adapters_pl.adapters.peft_adapter import PEFTAdapter
from adapters_pl.adapters.prefix import PrefixTuning
from adapters_pl.adapters.prompt import PromptTuning
from adapters_pl.adapters.ptuning import PTuning
from adapters_pl.models.placement import resolve
from adapters_pl.models.slots import attach

__all__ = [
    "IA3",
    "Adapter",
    "AdapterLayer",
    "LinearAdapter",
    "LinearAdapterLayer",
    "LoRA",
    "PEFTAdapter",
    "PTuning",
    "ParallelAdapter",
    "PrefixTuning",
    "PromptTuning",
    "SeriesAdapter",
    "activate",
    "adapter_layers",
    "attach",
    "resolve",
]
