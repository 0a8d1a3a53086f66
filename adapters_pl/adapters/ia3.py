"""(IA)^3: learned vectors that rescale keys, values and the MLP's activations (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters.base import Adapter, LinearAdapterLayer, attach
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Names, Placement, Site, matches, resolve


class IA3Layer(LinearAdapterLayer):
    """``base(x) * l`` with l: (out_features, 1), or ``base(x * l)`` with l: (1, in_features) where it scales inputs.

    Identity at step 0, where l is one. Shapes and name are PEFT's.
    """

    def __init__(self, site: Site, scales_input: bool, device: torch.device) -> None:
        super().__init__()
        self.scales_input = scales_input
        shape = (1, site.in_features) if scales_input else (site.out_features, 1)
        self.ia3_l = nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Set the vector to one."""
        self.ia3_l.fill_(1.0)

    def before(self, x: Tensor) -> Tensor:
        """Rescale the input, if that is what this layer does."""
        return (x * self.ia3_l.flatten()).to(x.dtype) if self.scales_input else x

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Rescale the output, if that is what this layer does."""
        return y if self.scales_input else (y * self.ia3_l.flatten()).to(y.dtype)

    def delta(self, base: nn.Module) -> Tensor:
        """``l W - W`` over rows or columns, in the shape of the weight."""
        weight: Tensor = base.weight  # type: ignore[assignment]
        scale = self.ia3_l.T if isinstance(base, Conv1D) else self.ia3_l
        return weight.float() * (scale - 1)

    def bias_delta(self, base: nn.Module) -> Tensor | None:
        """The bias is part of the output that is rescaled."""
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        return None if self.scales_input or bias is None else bias.float() * (self.ia3_l.flatten() - 1)


class IA3(Adapter):
    """Rescale keys and values, and what the MLP's last projection reads, by learned vectors.

    Identity at step 0. In a fused query-key-value projection the query is rescaled too, as in PEFT.

    Args:
        placement: ``attn`` is keys and values, ``mlp`` the input of the down projection, ``both`` all three.
        target_modules: instead of a placement, the modules by name, by a regular expression, or ``all-linear``.
        feedforward_modules: those of them whose input is rescaled instead of their output; the MLP's down
            projection if not given.
        shared: ``name``, ``layers``, ``exclude`` and ``modules_to_save``, as every :class:`Adapter` has them.
    """

    peft_type = "IA3"

    def __init__(
        self,
        placement: Placement = "both",
        target_modules: Names | None = None,
        feedforward_modules: Names | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(placement=placement, target_modules=target_modules, **shared)
        self.feedforward_modules = feedforward_modules

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang a vector on every resolved linear module."""
        names = self.target_modules
        if names is None:
            names = []
            if self.placement != "mlp":
                names += arch.sublayer("attn").inputs[0 if arch.fused else 1 :]
            if self.placement != "attn":
                names.append(arch.sublayer("mlp").output)
        feedforward = [arch.mlp.output] if self.feedforward_modules is None else self.feedforward_modules
        sites = resolve(model, arch, self.placement, names, self.layers, self.exclude)
        for site in sites:
            module = model.get_submodule(site.path)
            device = next(module.parameters()).device
            attach(module, IA3Layer(site, matches(site.path, feedforward), device), self.name)
        return sites

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> IA3:
        """Read PEFT's ``IA3Config``."""
        return cls(
            target_modules=config["target_modules"],
            feedforward_modules=config.get("feedforward_modules") or [],
            exclude=config.get("exclude_modules"),
            name=name,
        )

    def peft_config(self, model: PreTrainedModel) -> dict[str, Any]:
        """PEFT's ``IA3Config`` with the very modules that were adapted."""
        layers = self.sites(model)
        return {
            "target_modules": sorted(layers),
            "feedforward_modules": sorted(path for path, layer in layers.items() if layer.scales_input),
            "fan_in_fan_out": any(isinstance(model.get_submodule(path), Conv1D) for path in layers),
        }
