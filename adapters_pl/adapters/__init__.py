"""The adapter methods: one file each, every one a Lightning callback that injects in ``setup``."""

from adapters_pl.adapters.base import Adapter, AdapterLayer, adapter_layers
from adapters_pl.adapters.lora import LoRA

__all__ = ["Adapter", "AdapterLayer", "LoRA", "adapter_layers"]
