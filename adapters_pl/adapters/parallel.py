"""Parallel adapters: a bottleneck beside a sublayer (He et al. 2021, arXiv 2110.04366)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_pl.adapters.base import LinearAdapterLayer, attach
from adapters_pl.adapters.bottleneck import Bottleneck, BottleneckLayer
from adapters_pl.inputs.errors import UserError
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Site, resolve, sublayer_sites


class Beside(BottleneckLayer):
    """``base(x) + bottleneck(x)`` beside one linear layer."""

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Add the bottleneck of the module's input to its output."""
        return y + self.bottleneck(x).to(y.dtype)


class _Passing:
    """What a sublayer reads, on its way from the sublayer's first projection to its last."""

    x: Tensor | None = None


class Tap(LinearAdapterLayer):
    """Notes what a sublayer reads; has no parameters and changes nothing."""

    def __init__(self, passing: _Passing) -> None:
        super().__init__()
        self.passing = passing

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Nothing to draw."""

    def before(self, x: Tensor) -> Tensor:
        """Note ``x`` and let it pass."""
        self.passing.x = x
        return x


class BesideSublayer(BottleneckLayer):
    """``sublayer(x) + bottleneck(x)``, added behind the sublayer's last projection."""

    def __init__(
        self, features: int, out_features: int, settings: Bottleneck, device: torch.device, passing: _Passing
    ) -> None:
        super().__init__(features, out_features, settings, device)
        self.passing = passing

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Add the bottleneck of what the sublayer read."""
        read, self.passing.x = self.passing.x, None
        assert read is not None, "the sublayer's last projection ran without its first"
        return y + self.bottleneck(read).to(y.dtype)


class ParallelAdapter(Bottleneck):
    """A bottleneck beside the stream: ``sublayer(x) + s * up(f(down(x)))``.

    Family ``block`` puts it beside the MLP or the attention sublayer; ``scaling: 4.0`` is the paper's "scaled
    parallel adapter". Family ``linear`` puts it beside single linear layers, as LLM-Adapters' code does.

    Identity at step 0 under ``near_identity``; not under ``bert``.
    The arguments are those of :class:`Bottleneck`.
    """

    parallel = True

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang the bottlenecks beside sublayers or beside single linear layers."""
        if self.family == "linear":
            sites = resolve(model, arch, self.placement, self.target_modules, self.layers, self.exclude)
            for site in sites:
                module = model.get_submodule(site.path)
                device = next(module.parameters()).device
                attach(module, Beside(site.in_features, site.out_features, self, device), self.name)
            return sites
        pairs = sublayer_sites(model, arch, self.placement, self.layers, self.exclude)
        for entry, output in pairs:
            passing, module = _Passing(), model.get_submodule(output.path)
            if entry.path == output.path:
                raise UserError(f"{output.path} is a sublayer of one projection; use --adapter.family linear.")
            attach(model.get_submodule(entry.path), Tap(passing), self.name)
            device = next(module.parameters()).device
            attach(module, BesideSublayer(entry.in_features, output.out_features, self, device, passing), self.name)
        return [output for _, output in pairs]
