"""An adapter as part of the base's weights for a while: answers then cost what the base's cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from adapters_pl.adapters.base import Adapter
from adapters_pl.adapters.layers import AdapterLayer, adapter_layers, site_of
from adapters_pl.inputs.errors import UserError
from adapters_pl.models.quantisation import is_quantised
from adapters_pl.models.slots import bypassed


@torch.no_grad()
def folded(
    model: PreTrainedModel, adapter: Adapter, room: int | None = None
) -> Callable[[], AbstractContextManager[None]] | None:
    """A context within which ``adapter`` is folded into the base's weights; it is entered without computing anything.

    Both sets of weights are kept until the context is dropped, so what leaves it is the base to the bit. Weights below
    float32 are not folded, since rounding would change the answers.

    Args:
        model: in evaluation mode.
        adapter: injected into it, the only one.
        room: bytes that the second set of weights may take.

    Returns:
        ``None`` where the weights are not float32, the method has no change of weights that equals it, or there is no
        room.
    """
    layers = {path: layer for path, layer in adapter_layers(model, adapter.name).items() if layer.enabled}
    bases = {path: model.get_submodule(site_of(path)) for path in layers}
    parameters = {id(p): p for base in bases.values() for p in base.parameters(recurse=False)}.values()
    if not parameters or not all(_is_plain(parameter) for parameter in parameters):
        return None
    if any(is_quantised(base) for base in bases.values()):
        return None
    if room is not None and sum(parameter.nbytes for parameter in parameters) > room:
        return None
    weights: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for path, layer in layers.items():
            changes = adapter.changes(path, layer, bases[path], model)
            weights += [(parameter, parameter.data + change) for parameter, change in changes]
    except UserError:
        return None
    if not all(torch.isfinite(changed).all() for _, changed in weights):
        return None  # as it is, the adapter may still answer
    modules = list(dict.fromkeys(bases.values()))
    return lambda: _exchanged(weights, list(layers.values()), modules)


def _is_plain(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and not parameter.is_meta and not isinstance(parameter, DTensor)


@contextmanager
def _exchanged(
    weights: list[tuple[nn.Parameter, Tensor]], layers: list[AdapterLayer], modules: list[nn.Module]
) -> Iterator[None]:
    own, enabled = [parameter.data for parameter, _ in weights], [layer.enabled for layer in layers]
    try:
        for parameter, changed in weights:
            parameter.data = changed
        for layer in layers:
            layer.enabled = False
        with bypassed(modules):
            yield
    finally:
        for (parameter, _), values in zip(weights, own, strict=True):
            parameter.data = values
        for layer, before in zip(layers, enabled, strict=True):
            layer.enabled = before
