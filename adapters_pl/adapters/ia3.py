"""(IA)^3: learned vectors that rescale keys, values and the MLP's activations (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters.base import LinearAdapter
from adapters_pl.adapters.layers import LinearAdapterLayer
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Names, Site, matches, resolve


class IA3Layer(LinearAdapterLayer):
    """``base(x) * l`` with l: (out_features, 1), or ``base(x * l)`` with l: (1, in_features) where it scales inputs.

    Identity at step 0, where l is one. Shapes and name are PEFT's.
    """

    def __init__(self, site: Site, scales_input: bool) -> None:
        super().__init__()
        self.scales_input = scales_input
        self.ia3_l = nn.Parameter(torch.empty((1, site.in_features) if scales_input else (site.out_features, 1)))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        self.ia3_l.fill_(1.0)

    def before(self, x: Tensor) -> Tensor:
        return (x * self.ia3_l.flatten()).to(x.dtype) if self.scales_input else x

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        return y if self.scales_input else (y * self.ia3_l.flatten()).to(y.dtype)

    def delta(self, base: nn.Module) -> Tensor:
        weight: Tensor = base.weight  # type: ignore[assignment]
        return weight.float() * ((self.ia3_l.T if isinstance(base, Conv1D) else self.ia3_l) - 1)

    def bias_delta(self, base: nn.Module) -> Tensor | None:
        """The bias is part of the output that is rescaled."""
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        return None if self.scales_input or bias is None else bias.float() * (self.ia3_l.flatten() - 1)


@dataclass(eq=False)
class IA3(LinearAdapter):
    """Rescale keys and values, and what the MLP's last projection reads, by learned vectors.

    Identity at step 0. In a fused query-key-value projection the query is rescaled too, as in PEFT.

    Args:
        placement: ``attn`` is keys and values, ``mlp`` the input of the down projection, ``both`` all three.
        feedforward_modules: of the modules those whose input is rescaled instead of their output; the MLP's down
            projection if not given.
    """

    peft_type = "IA3"
    peft_settings = {"feedforward_modules": "feedforward_modules"}

    _: KW_ONLY
    feedforward_modules: Names | None = None

    def targets(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        if self.target_modules is not None:
            return super().targets(model, arch)
        attn = () if self.placement == "mlp" else arch.sublayer("attn").inputs[0 if arch.fused else 1 :]
        mlp = () if self.placement == "attn" else (arch.sublayer("mlp").output,)
        return resolve(model, arch, self.placement, [*attn, *mlp], self.layers, self.exclude)

    def make_layer(self, site: Site, module: nn.Module) -> IA3Layer:
        named = self.feedforward_modules
        return IA3Layer(site, site.ends == "mlp" if named is None else matches(site.path, named))

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        inputs = [
            path for path, layer in self.sites(model).items() if isinstance(layer, IA3Layer) and layer.scales_input
        ]
        return {**super().peft_extra(model), "feedforward_modules": sorted(inputs)}
