"""What we know of peft beside its public configurations and ``PeftModel``: its layers, its keys, and AdaLoRA's steps.

peft is imported when something of it is asked for. Layers of peft's are plain modules to the callers.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from adapters_pl.inputs.errors import UserError

#: What an adapter is called inside peft: unlike any other name, since AdaLoRA knows its own by such a name.
NAME = "peft_adapter"
#: What AdaLoRA's pruning knows of the steps so far.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def import_peft() -> ModuleType:
    """The installed peft; raises ``UserError`` with what to do where there is none."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise UserError("This needs peft, which is not installed: pip install 'adapters-pl[peft]'") from error


def tuners() -> dict[str, type]:
    """The methods that go into a model's modules: the classes of their configurations by ``peft_type``."""
    prompts = import_peft().PromptLearningConfig
    mapping = import_module("peft.mapping")
    return {
        kind.value: config
        for kind, config in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if kind in mapping.PEFT_TYPE_TO_TUNER_MAPPING and not issubclass(config, prompts)
    }


def _layer_type() -> type:
    return import_module("peft.tuners.tuners_utils").BaseTunerLayer


def inject(model: nn.Module, config: Any) -> Any:
    """Let peft put its layers into ``model`` by ``config``; returns the ``PeftModel`` around it.

    On the meta device, what the layers hold beside their trained weights would look trained; it is frozen.
    """
    meta = next(model.parameters()).is_meta
    wrapped = import_peft().PeftModel(model, config, adapter_name=NAME, low_cpu_mem_usage=meta)
    if meta:
        for layer in layers(wrapped).values():
            for other in (getattr(layer, name, None) for name in layer.other_param_names):
                if isinstance(other, nn.Module):
                    other.requires_grad_(False)
    return wrapped


def layers(wrapped: Any) -> dict[str, Any]:
    """The layers of peft's by their path in the model."""
    kind = _layer_type()
    return {path: module for path, module in wrapped.get_base_model().named_modules() if isinstance(module, kind)}


def switch(layer: Any, on: bool) -> None:
    """Let a layer work, or pass on what its module returns; peft's own switch also changes what needs a gradient."""
    layer._disable_adapters = not on


def is_merged(layer: Any) -> bool:
    """Whether the adapter is in the weights of the layer's module."""
    return bool(layer.merged_adapters)


def merge(layer: Any) -> None:
    """Fold the adapter into the weights of the layer's module; peft raises whatever it likes where it cannot."""
    layer.merge(adapter_names=[NAME])


def unmerge(layer: Any) -> None:
    """Take the adapter out of the weights again, unless that was done by someone else."""
    if is_merged(layer):
        layer.unmerge()


def unwrap(model: nn.Module) -> None:
    """Put every module that peft wrapped back into its place."""
    kind, others = _layer_type(), import_module("peft.utils.other").AuxiliaryTrainingWrapper
    for path, module in list(model.named_modules()):
        parent, _, own = path.rpartition(".")
        inner: Any = module
        if isinstance(module, others):
            setattr(model.get_submodule(parent), own, inner.original_module)
        elif isinstance(module, kind) and path:
            setattr(model.get_submodule(parent), own, inner.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def saved(wrapped: Any) -> dict[str, Tensor]:
    """What peft saves of the adapter, by its keys; the very tensors that the model holds."""
    read = import_module("peft.utils").get_peft_model_state_dict
    state = wrapped.state_dict(keep_vars=True)
    return read(wrapped, state_dict=state, adapter_name=NAME, save_embedding_layers=False)


def settings(wrapped: Any) -> Any:
    """The configuration that was injected, with what peft made of it."""
    return wrapped.peft_config[NAME]


class AdaLoRA:
    """What AdaLoRA does beside training: it adds a penalty to the gradients, and prunes after every step."""

    def __init__(self, wrapped: Any) -> None:
        self.config = settings(wrapped)
        self._tuner = wrapped.base_model

    def begin(self, steps: int) -> None:
        """Learn how many optimizer steps there are.

        Raises:
            UserError: the phases before and after the pruning leave no step for it.
        """
        self.config.total_step = steps
        if self.config.tinit >= steps - self.config.tfinal:
            raise UserError(
                f"AdaLoRA: tinit {self.config.tinit} and tfinal {self.config.tfinal} leave none of {steps} steps."
            )

    def add_penalty(self) -> None:
        """Add the gradient of the penalty that keeps the factors near orthogonal (its section 3.1)."""
        parameters = self._tuner.model.named_parameters()
        factors = [p for path, p in parameters if f".{NAME}" in path and p.ndim == 2 and p.requires_grad]
        factors = [p for p in factors if min(p.shape) > 1]
        with torch.enable_grad():
            grams = [p @ p.T if p.shape[0] < p.shape[1] else p.T @ p for p in factors]
            penalty = sum(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams)
            (self.config.orth_reg_weight * penalty / max(len(grams), 1)).backward()

    def prune(self, step: int) -> None:
        """Prune after optimizer step ``step``, while its gradients are there."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        """How far the pruning is."""
        averages = {name: dict(getattr(self._tuner.rankallocator, name)) for name in _AVERAGES}
        return {**averages, "rank_pattern": self.config.rank_pattern}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the pruning where it was."""
        self.config.rank_pattern = state["rank_pattern"]
        for name in _AVERAGES:
            setattr(self._tuner.rankallocator, name, dict(state[name]))
