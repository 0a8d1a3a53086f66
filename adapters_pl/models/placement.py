"""From "attn", "mlp", "both", names or a pattern to the exact modules of one model.

Nothing matched is always an error, and the error lists what could have matched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.patterns import pattern
from adapters_pl.models.architectures import Architecture, Role
from adapters_pl.models.slots import base_modules

Placement = Literal["attn", "mlp", "both"]
Names = str | list[str]
Layers = str | int | list[int]


@dataclass(frozen=True)
class Site:
    """One place where an adapter goes.

    Attributes:
        path: the module's path in the model.
        layer: the index of its decoder layer; ``None`` outside the layers.
        in_features: what the module reads.
        out_features: what it returns.
        ends: the sublayer that this module's projection ends, if it is one that ends a sublayer.
    """

    path: str
    layer: int | None
    in_features: int
    out_features: int
    ends: Role | None = None


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """``(in_features, out_features)`` of anything that multiplies by one matrix, else ``None``.

    Quantised linear layers keep their logical sizes in these attributes while their weight is packed,
    so the weight's own shape is not asked. GPT-2's ``Conv1D`` is a linear layer stored transposed.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear module inside the model but its output head, by path; adapters' own are left out."""
    head = model.get_output_embeddings()
    return {path: module for path, module in base_modules(model) if linear_sizes(module) and module is not head}


def parse_layers(layers: Layers | None, count: int) -> set[int]:
    """Layer indices from ``None`` (all), ``3``, ``[0, 5]``, ``"8-15"`` (both ends included) or ``"0,4-7,-1"``.

    Negative indices count from the end, as in Python.

    Raises:
        UserError: a part is no number or range, or lies outside ``0 .. count-1``.
    """
    if layers is None:
        return set(range(count))
    parts = layers.split(",") if isinstance(layers, str) else layers if isinstance(layers, list) else [layers]
    chosen: set[int] = set()
    for part in parts:
        span = re.fullmatch(r"\s*(-?\d+)(?:\s*-\s*(-?\d+))?\s*", str(part))
        if not span:
            raise UserError(f"layers: '{part}' is neither a number nor a range like 8-15.")
        first, last = (int(end) for end in (span[1], span[2] or span[1]))
        first, last = (end + count if end < 0 else end for end in (first, last))
        if not 0 <= first <= last < count:
            raise UserError(f"layers: '{part}' is outside this model's layers 0-{count - 1}.")
        chosen.update(range(first, last + 1))
    return chosen


def matches(path: str, names: Names) -> bool:
    """Whether ``path`` is named: a string is a regular expression for the whole path, a list holds names
    that the path equals or ends with (``q_proj``, ``mlp.up_proj``), as in PEFT.
    """
    if isinstance(names, str):
        return pattern(names).matches(path)
    return any(path == name or path.endswith(f".{name}") for name in names)


def resolve(
    model: PreTrainedModel,
    arch: Architecture,
    placement: Placement,
    target_modules: Names | None = None,
    layers: Layers | None = None,
    exclude: Names | None = None,
) -> list[Site]:
    """The linear modules that an adapter goes to, in the model's order.

    Args:
        model: the model; on the meta device as well.
        arch: the model's row.
        placement: the sublayers, where ``target_modules`` does not name modules itself.
        target_modules: names, a regular expression for the whole path, or ``"all-linear"``: every linear module
            of the decoder but the output head (a tower for images beside it never sees a text).
        layers: which decoder layers, see :func:`parse_layers`. Modules outside the layers then drop out.
        exclude: names or an expression for modules to leave out.

    Raises:
        UserError: nothing matched, one of the names matched nothing, or the sublayer that the placement means was
            not found in this model; the message lists the choices.
    """
    linears = linear_modules(model)
    chosen_layers = parse_layers(layers, len(arch.decoder_layers(model)))

    def layer_of(path: str) -> int | None:
        inside = re.match(rf"{re.escape(arch.layers)}\.(\d+)\.", path)
        return int(inside[1]) if inside else None

    if target_modules is None:
        roles: tuple[Role, ...] = ("attn", "mlp") if placement == "both" else (placement,)
        wanted = [name for role in roles for name in arch.projections(role)]
        named = [path for path in linears if layer_of(path) is not None and matches(path, wanted)]
    elif target_modules == "all-linear":
        inside = _inside_decoder(model, arch)
        named = [path for path in linears if path in inside]
    else:
        _refuse_unmatched("target_modules", model, target_modules, linears)
        named = [path for path in linears if matches(path, target_modules)]
    if exclude is not None:
        _refuse_unmatched("exclude", model, exclude, linears)
        named = [path for path in named if not matches(path, exclude)]

    sites = []
    for path in named:
        layer = layer_of(path)
        if layers is not None and layer not in chosen_layers:
            continue
        ends: Role | None = "attn" if matches(path, [arch.attn.output]) else None
        ends = "mlp" if matches(path, [arch.mlp.output]) else ends
        sites.append(Site(path, layer, *_sizes(linears[path]), ends))
    if not sites:
        raise UserError(
            f"Nothing to adapt in {type(model).__name__}: placement={placement!r}, "
            f"target_modules={target_modules!r}, layers={layers!r}, exclude={exclude!r} leave no module. "
            f"Linear modules here: {', '.join(_leaf_names(linears))}."
        )
    return sites


def sublayer_sites(
    model: PreTrainedModel,
    arch: Architecture,
    placement: Placement,
    layers: Layers | None = None,
    exclude: Names | None = None,
) -> list[tuple[Site, Site]]:
    """The sublayers that a whole-sublayer adapter goes to: first input projection and output projection of each.

    Raises:
        UserError: the layers do not exist, nothing is left, or the sublayer was not found in this model.
    """
    linears = linear_modules(model)
    if exclude is not None:
        _refuse_unmatched("exclude", model, exclude, linears)
    roles: tuple[Role, ...] = ("attn", "mlp") if placement == "both" else (placement,)
    pairs = []
    for index in sorted(parse_layers(layers, len(arch.decoder_layers(model)))):
        for role in roles:
            sublayer = arch.sublayer(role)
            first, last = (f"{arch.layers}.{index}.{name}" for name in (sublayer.inputs[0], sublayer.output))
            if exclude is None or not matches(last, exclude):
                entry = Site(first, index, *_sizes(linears[first]))
                pairs.append((entry, Site(last, index, *_sizes(linears[last]), role)))
    if not pairs:
        raise UserError(
            f"Nothing to adapt in {type(model).__name__}: placement={placement!r}, layers={layers!r}, "
            f"exclude={exclude!r} leave no sublayer."
        )
    return pairs


def _inside_decoder(model: PreTrainedModel, arch: Architecture) -> set[str]:
    """The paths of the modules in the decoder, or of all where the model does not say which part that is."""
    layers = arch.decoder_layers(model)
    holding = [module for module in (model.get_decoder(), model) if layers in module.modules()]
    below = set(holding[0].modules())
    return {path for path, module in model.named_modules() if module in below}


def _sizes(module: nn.Module) -> tuple[int, int]:
    sizes = linear_sizes(module)
    assert sizes is not None
    return sizes


def _refuse_unmatched(argument: str, model: nn.Module, names: Names, linears: dict[str, nn.Module]) -> None:
    patterns: list[Names] = [names] if isinstance(names, str) else [[name] for name in names]
    for wanted in patterns:
        if not any(matches(path, wanted) for path in linears):
            shown = wanted if isinstance(wanted, str) else wanted[0]
            raise UserError(
                f"{argument}: '{shown}' matches no linear module of {type(model).__name__}. "
                f"Linear modules here: {', '.join(_leaf_names(linears))}."
            )


def _leaf_names(linears: dict[str, nn.Module]) -> list[str]:
    return sorted({path.rsplit(".", 1)[-1] for path in linears})
