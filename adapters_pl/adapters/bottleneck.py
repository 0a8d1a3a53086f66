"""What series and parallel adapters share: the bottleneck, its initial values, and its directory format."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from adapters_pl.adapters.base import Adapter, LinearAdapterLayer
from adapters_pl.adapters.dropout import Dropout
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.ranges import Above0, AtLeast1, Share, refuse_out_of_range
from adapters_pl.models.placement import Names, Placement

Family = Literal["block", "linear"]
Init = Literal["near_identity", "bert"]
Scaling = float | Literal["learned"]


class BottleneckLayer(LinearAdapterLayer):
    """``s * up(f(down(norm(x))))``: (..., features) -> (..., out_features), float32, without biases.

    ``adapter_down`` is (bottleneck, features), ``adapter_up`` (out_features, bottleneck), s a number or, where
    it is learned, ``adapter_scaling`` (1,), which begins at 1. The names are those of LLM-Adapters' files.
    """

    def __init__(self, features: int, out_features: int, settings: Bottleneck, device: torch.device) -> None:
        super().__init__()
        size = settings.size_for(features)
        like: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.adapter_down = nn.Parameter(torch.empty(size, features, **like))
        self.adapter_up = nn.Parameter(torch.empty(out_features, size, **like))
        self.scaling = None if settings.scaling == "learned" else float(settings.scaling)
        self.adapter_scaling = nn.Parameter(torch.empty(1, **like)) if settings.scaling == "learned" else None
        self.norm = nn.LayerNorm(features, **like) if settings.layer_norm else None
        self.activation = ACT2FN[settings.non_linearity]
        self.dropout = Dropout(settings.dropout)
        self.init = settings.init

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw both matrices from N(0, 0.02); under ``near_identity`` the second one is zero."""
        for name, matrix in (("adapter_down", self.adapter_down), ("adapter_up", self.adapter_up)):
            matrix.copy_(torch.empty(matrix.shape).normal_(0, 0.02, generator=generator_for(name)))
        if self.init == "near_identity":
            self.adapter_up.zero_()
        if self.adapter_scaling is not None:
            self.adapter_scaling.fill_(1.0)
        if self.norm is not None:
            self.norm.reset_parameters()

    def bottleneck(self, x: Tensor) -> Tensor:
        """The bottleneck's output for ``x``, in float32 as its parameters are."""
        hidden = x.to(self.adapter_down.dtype)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = self.activation(nn.functional.linear(hidden, self.adapter_down))
        out = self.dropout(nn.functional.linear(hidden, self.adapter_up))
        return out * (self.adapter_scaling if self.adapter_scaling is not None else self.scaling)


class Bottleneck(Adapter):
    """A bottleneck between two matrices; :class:`SeriesAdapter` and :class:`ParallelAdapter` say where it goes.

    Args:
        bottleneck: its size; the paper's comparison (LLM-Adapters, section 4.2) found 256 best.
        reduction_factor: instead of a size, the hidden size over the bottleneck's.
        family: ``block`` works on whole sublayers, ``linear`` on single linear layers as in LLM-Adapters' code.
        non_linearity: an activation by transformers' name (``tanh``, ``relu``, ``gelu``, ``gelu_new``, ``silu``).
        dropout: probability with which the bottleneck's output is dropped in training.
        scaling: a number that multiplies the bottleneck's output, or ``learned``.
        init: ``near_identity`` begins as the identity (the second matrix is zero), ``bert`` does not: both
            matrices are drawn from N(0, 0.02), as in LLM-Adapters' code.
        layer_norm: normalise the bottleneck's input.
        placement: which sublayers.
        target_modules: under ``linear``, the modules instead of a placement.
        shared: ``name``, ``layers``, ``exclude`` and ``modules_to_save``, as every :class:`Adapter` has them.
    """

    peft_type = "BOTTLENECK"
    parallel: ClassVar[bool | None] = None

    def __init__(
        self,
        bottleneck: AtLeast1 = 256,
        *,
        reduction_factor: Above0 | None = None,
        family: Family = "block",
        non_linearity: str = "tanh",
        dropout: Share = 0.0,
        scaling: Scaling = 1.0,
        init: Init = "near_identity",
        layer_norm: bool = False,
        placement: Placement = "mlp",
        target_modules: Names | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(placement=placement, target_modules=target_modules, **shared)
        method = type(self).__name__
        refuse_out_of_range(f"{method}: ", Bottleneck.__init__, locals())
        if non_linearity not in ACT2FN:
            raise UserError(f"{method}: non_linearity '{non_linearity}': {did_you_mean(non_linearity, ACT2FN)}")
        if family == "block" and target_modules is not None:
            raise UserError(f"{method}: target_modules are single layers; add --adapter.family linear.")
        self.bottleneck = bottleneck
        self.reduction_factor = reduction_factor
        self.family = family
        self.non_linearity = non_linearity
        self.dropout = dropout
        self.scaling: Scaling = scaling
        self.init = init
        self.layer_norm = layer_norm

    def size_for(self, features: int) -> int:
        """The bottleneck's size where it reads ``features`` features."""
        if self.reduction_factor is None:
            return self.bottleneck
        return max(1, math.floor(features / self.reduction_factor))

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Series and parallel adapters share a ``peft_type``, as in LLM-Adapters' files."""
        return super().reads(config) and bool(config.get("use_parallel_adapter")) == cls.parallel

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> Bottleneck:
        """Read an ``adapter_config.json`` of ours or of LLM-Adapters, whose files know no family but ``linear``."""
        family: Family = config.get("family", "linear")
        return cls(
            config["bottleneck_size"],
            reduction_factor=config.get("reduction_factor"),
            family=family,
            non_linearity=config["non_linearity"],
            dropout=config.get("adapter_dropout", 0.0),
            scaling=config["scaling"],
            init="near_identity" if config.get("init_weights") == "near_identity" else "bert",
            layer_norm=config.get("layer_norm", False),
            placement=config.get("placement", "mlp"),
            target_modules=config["target_modules"] if family == "linear" else None,
            layers=config.get("layers"),
            exclude=config.get("exclude_modules"),
            name=name,
        )

    def peft_config(self, model: PreTrainedModel) -> dict[str, Any]:
        """The layout of LLM-Adapters' files, with the family beside it."""
        return {
            "use_parallel_adapter": self.parallel,
            "family": self.family,
            "bottleneck_size": self.bottleneck,
            "reduction_factor": self.reduction_factor,
            "non_linearity": self.non_linearity,
            "adapter_dropout": self.dropout,
            "scaling": self.scaling,
            "init_weights": self.init,
            "layer_norm": self.layer_norm,
            "placement": self.placement,
            "layers": self.layers,
            "exclude_modules": self.exclude if self.family == "block" else None,
            "target_modules": sorted(
                path for path, layer in self.sites(model).items() if any(True for _ in layer.parameters())
            ),
            "bias": "none",
        }

    def peft_name(self, own: str) -> str:
        """``adapter_down`` and ``adapter_up`` are the weights of linear layers there."""
        return f"{own}.weight" if own in ("adapter_down", "adapter_up") else own
