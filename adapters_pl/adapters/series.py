"""Series adapters: a bottleneck with a residual behind a sublayer (Houlsby et al. 2019, arXiv 1902.00751)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_pl.adapters.base import attach
from adapters_pl.adapters.bottleneck import Bottleneck, BottleneckLayer
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Site, resolve, sublayer_sites


class After(BottleneckLayer):
    """``y + bottleneck(y)`` behind the adapted module, y: (..., out_features)."""

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Add the bottleneck of the output to it."""
        return y + self.bottleneck(y).to(y.dtype)


class Before(BottleneckLayer):
    """``base(x + bottleneck(x))`` in front of the adapted module, x: (..., in_features)."""

    def before(self, x: Tensor) -> Tensor:
        """Add the bottleneck of the input to it."""
        return x + self.bottleneck(x).to(x.dtype)


class SeriesAdapter(Bottleneck):
    """A bottleneck in the stream: ``h + s * up(f(down(h)))``.

    Family ``block`` puts it behind whole sublayers, before their residual is added: ``placement: both`` is
    Houlsby's adapter, ``mlp`` Pfeiffer's (Pfeiffer et al. 2020, arXiv 2005.00052). Family ``linear`` is what
    LLM-Adapters' code does: before the linear layers that a sublayer begins with, behind those it ends with.

    Identity at step 0 under ``near_identity``; not under ``bert``.
    The arguments are those of :class:`Bottleneck`.
    """

    parallel = False

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang the bottlenecks behind sublayers, or before and behind single linear layers."""
        if self.family == "block":
            pairs = sublayer_sites(model, arch, self.placement, self.layers, self.exclude)
            sites = [output for _, output in pairs]
            ends = {site.path for site in sites}
        else:
            sites = resolve(model, arch, self.placement, self.target_modules, self.layers, self.exclude)
            ends = {site.path for site in sites if site.path.endswith((arch.attn.output, arch.mlp.output))}
        for site in sites:
            module = model.get_submodule(site.path)
            device = next(module.parameters()).device
            kind, features = (After, site.out_features) if site.path in ends else (Before, site.in_features)
            attach(module, kind(features, features, self, device), self.name)
        return sites
