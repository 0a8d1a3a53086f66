"""Series and parallel adapters: a bottleneck between two matrices, in the stream or beside it.

In series it stands behind a sublayer (Houlsby et al. 2019, arXiv 1902.00751), in parallel beside one (He et al. 2021,
arXiv 2110.04366).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from adapters_pl.adapters.base import LinearAdapter
from adapters_pl.adapters.branch import Dropout, plus_product
from adapters_pl.adapters.layers import LinearAdapterLayer, normal
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.ranges import Above0, AtLeast1, Share
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Placement, Site, sublayer_sites

Family = Literal["block", "linear"]
Init = Literal["near_identity", "bert"]
Scaling = float | Literal["learned"]


class BottleneckLayer(LinearAdapterLayer):
    """``s * up(f(down(norm(x))))``: (..., features) -> (..., out_features), without biases.

    ``adapter_down`` is (bottleneck, features), ``adapter_up`` (out_features, bottleneck), s a number or, where
    it is learned, ``adapter_scaling`` (1,), which begins at 1. The names are those of LLM-Adapters' files.
    """

    def __init__(self, features: int, out_features: int, settings: Bottleneck) -> None:
        super().__init__()
        size = settings.bottleneck
        if settings.reduction_factor is not None:
            size = max(1, math.floor(features / settings.reduction_factor))
        self.adapter_down = nn.Parameter(torch.empty(size, features))
        self.adapter_up = nn.Parameter(torch.empty(out_features, size))
        self.scaling = None if settings.scaling == "learned" else float(settings.scaling)
        self.adapter_scaling = nn.Parameter(torch.empty(1)) if settings.scaling == "learned" else None
        self.norm = nn.LayerNorm(features) if settings.layer_norm else None
        self.activation = ACT2FN[settings.non_linearity]
        self.dropout = Dropout(settings.dropout)
        self.init = settings.init

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw both matrices from N(0, 0.02); under ``near_identity`` the second one is zero."""
        normal(self.adapter_down, 0.02, generator_for("adapter_down"))
        if self.init == "near_identity":
            self.adapter_up.zero_()
        else:
            normal(self.adapter_up, 0.02, generator_for("adapter_up"))
        if self.adapter_scaling is not None:
            self.adapter_scaling.fill_(1.0)
        if self.norm is not None:
            self.norm.reset_parameters()

    def added(self, y: Tensor, x: Tensor) -> Tensor:
        """``y`` and the bottleneck's output for ``x``, in the dtype of ``y``."""
        dtype = y.dtype
        if self.norm is not None:
            x = self.norm(x.to(self.adapter_down.dtype))
        hidden = self.activation(nn.functional.linear(x.to(dtype), self.adapter_down.to(dtype)))
        up = self.adapter_up.to(dtype)
        if self.scaling is not None and not (self.training and self.dropout.p > 0):
            return plus_product(y, hidden, up, self.scaling)
        out = self.dropout(nn.functional.linear(hidden, up))
        return y + (out * (self.scaling if self.adapter_scaling is None else self.adapter_scaling)).to(dtype)


class After(BottleneckLayer):
    """``y + bottleneck(y)`` behind the adapted module, y: (..., out_features)."""

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        return self.added(y, y)


class Before(BottleneckLayer):
    """``base(x + bottleneck(x))`` in front of the adapted module, x: (..., in_features)."""

    def before(self, x: Tensor) -> Tensor:
        return self.added(x, x)


class Beside(BottleneckLayer):
    """``base(x) + bottleneck(x)`` beside one linear layer."""

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        return self.added(y, x)


class Tap(LinearAdapterLayer):
    """Notes what a sublayer reads, on its way from the sublayer's first projection to its last; changes nothing."""

    x: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        self.x = x
        return x


class BesideSublayer(BottleneckLayer):
    """``sublayer(x) + bottleneck(x)``, added behind the sublayer's last projection."""

    def __init__(self, features: int, out_features: int, settings: Bottleneck, tap: Tap) -> None:
        super().__init__(features, out_features, settings)
        self._tap = (tap,)  # not as a submodule: it hangs on another module

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        (tap,) = self._tap
        read, tap.x = tap.x, None
        assert read is not None, "the sublayer's last projection ran without its first"
        return self.added(y, read)


@dataclass(eq=False)
class Bottleneck(LinearAdapter):
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
    """

    peft_type = "BOTTLENECK"
    peft_settings = {
        "bottleneck": "bottleneck_size",
        "reduction_factor": "reduction_factor",
        "family": "family",
        "non_linearity": "non_linearity",
        "dropout": "adapter_dropout",
        "scaling": "scaling",
        "init": "init_weights",
        "layer_norm": "layer_norm",
        "placement": "placement",
        "layers": "layers",
        "exclude": "exclude_modules",
    }
    #: LLM-Adapters' files know no family but ``linear``.
    peft_defaults = {
        "reduction_factor": None,
        "family": "linear",
        "adapter_dropout": 0.0,
        "layer_norm": False,
        "placement": "mlp",
        "layers": None,
        "exclude_modules": None,
        "target_modules": None,
    }
    peft_names = {"adapter_down": "adapter_down.weight", "adapter_up": "adapter_up.weight"}
    parallel: ClassVar[bool]

    bottleneck: AtLeast1 = 256
    _: KW_ONLY
    reduction_factor: Above0 | None = None
    family: Family = "block"
    non_linearity: str = "tanh"
    dropout: Share = 0.0
    scaling: Scaling = 1.0
    init: Init = "near_identity"
    layer_norm: bool = False
    placement: Placement = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        method = type(self).__name__
        if self.non_linearity not in ACT2FN:
            raise UserError(
                f"{method}: non_linearity '{self.non_linearity}': {did_you_mean(self.non_linearity, ACT2FN)}"
            )
        if self.family == "block" and self.target_modules is not None:
            raise UserError(f"{method}: target_modules are single layers; add --adapter.family linear.")

    def sublayers(self, model: PreTrainedModel, arch: Architecture) -> list[tuple[Site, Site]]:
        """Under ``block``, the first input projection and the output projection of each adapted sublayer."""
        return sublayer_sites(model, arch, self.placement, self.layers, self.exclude)

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Series and parallel adapters share a ``peft_type``, as in LLM-Adapters' files."""
        return super().reads(config) and bool(config.get("use_parallel_adapter")) == cls.parallel

    @classmethod
    def convert(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], base: PretrainedConfig, old: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """LLM-Adapters' names of initial values are all ``bert`` here; a block's modules follow from its placement."""
        init = "near_identity" if config.get("init_weights") == "near_identity" else "bert"
        targets = None if config.get("family") == "block" else config.get("target_modules")
        return {**config, "init_weights": init, "target_modules": targets}, tensors

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"target_modules": self.adapted(model), "use_parallel_adapter": self.parallel, "bias": "none"}


@dataclass(eq=False)
class SeriesAdapter(Bottleneck):
    """A bottleneck in the stream: ``h + s * up(f(down(h)))``.

    Family ``block`` puts it behind whole sublayers, before their residual is added: ``placement: both`` is
    Houlsby's adapter, ``mlp`` Pfeiffer's (Pfeiffer et al. 2020, arXiv 2005.00052). Family ``linear`` is what
    LLM-Adapters' code does: before the linear layers that a sublayer begins with, behind those it ends with.

    Identity at step 0 under ``near_identity``; not under ``bert``.
    """

    parallel = False

    def targets(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        if self.family == "block":
            return [output for _, output in self.sublayers(model, arch)]
        return super().targets(model, arch)

    def make_layer(self, site: Site, module: nn.Module) -> BottleneckLayer:
        if site.ends:
            return After(site.out_features, site.out_features, self)
        return Before(site.in_features, site.in_features, self)


@dataclass(eq=False)
class ParallelAdapter(Bottleneck):
    """A bottleneck beside the stream: ``sublayer(x) + s * up(f(down(x)))``.

    Family ``block`` puts it beside the MLP or the attention sublayer; ``scaling: 4.0`` is the paper's "scaled
    parallel adapter". Family ``linear`` puts it beside single linear layers, as LLM-Adapters' code does.

    Identity at step 0 under ``near_identity``; not under ``bert``.
    """

    parallel = True

    def make_layer(self, site: Site, module: nn.Module) -> Beside:
        return Beside(site.in_features, site.out_features, self)

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        if self.family == "linear":
            return super().inject(model, arch)
        pairs = self.sublayers(model, arch)
        for entry, output in pairs:
            if entry.path == output.path:
                raise UserError(f"{output.path} is a sublayer of one projection; use --adapter.family linear.")
            self.hang(model, entry, tap := Tap())
            self.hang(model, output, BesideSublayer(entry.in_features, output.out_features, self, tap))
        return [output for _, output in pairs]
