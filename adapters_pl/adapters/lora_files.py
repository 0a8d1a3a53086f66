"""What the files of other tools mean for a LoRA: their settings, their modules, and the forms they come in."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.patterns import Pattern, pattern, refuse_unbounded
from adapters_pl.models.placement import linear_modules, matches
from adapters_pl.models.quantisation import dequantised, is_quantised

PREFIX = "base_model.model."
#: The most patterns for ranks, or for alphas: a few for every module of the largest models.
MOST_PATTERNS = 10_000
Number = TypeVar("Number", int, float)

#: PEFT's settings that change what a LoRA computes and have no counterpart here. ``velora_config`` and
#: ``eva_config`` are not among them: they change gradients and first values alone.
_UNKNOWN_SETTINGS = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "ensure_weight_tying",
)

#: How the keys of the low-rank matrices end, which all are weights of modules to PEFT.
_MATRICES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight")

#: How keys end that no forward pass uses: VeLoRA's projection of what the backward pass keeps, and under ``bias: all``
#: a second copy of the biases of modules that are saved whole, and those that such a module had before.
_UNUSED = (".lora_velora_embed", ".modules_to_save.bias", ".original_module.bias")

#: First values that PEFT takes out of the base, drawn at random or from data that a directory does not hold.
_LOST_BASES = ("pissa_niter", "corda", "loftq", "lora_ga")


def refuse_unknown(config: dict[str, Any]) -> None:
    """Raise ``UserError`` where an ``adapter_config.json`` asks for what is not known here."""
    for setting in _UNKNOWN_SETTINGS:
        if config.get(setting) not in (None, False, {}, []):
            raise UserError(f"This LoRA directory uses {setting}={config[setting]!r}, which is not supported.")
    init = first_values(config)
    if init.startswith(_LOST_BASES):
        raise UserError(
            f"This LoRA directory belongs to a base that init_lora_weights={init!r} has changed in a way that cannot "
            "be repeated. Save it with path_initial_model_for_weight_conversion in PEFT."
        )


def convert(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The contents of a directory as :class:`~adapters_pl.adapters.lora.LoRA` reads them."""
    config, tensors = _enabled_parts(config, tensors)
    tensors = {key: value for key, value in tensors.items() if not key.endswith(_UNUSED)}
    return _with_resized_embeddings(config, tensors), tensors


def by_pattern(patterns: dict[str, Number] | None, path: str, otherwise: Number) -> Number:
    """The value of the first pattern that is the end of ``path``, whole names only, as PEFT matches them."""
    if len(patterns or ()) > MOST_PATTERNS:
        raise UserError(f"rank_pattern or alpha_pattern has more than {MOST_PATTERNS:,} patterns; take another copy.")
    for text, value in (patterns or {}).items():
        if pattern(rf"(.*\.)?({text})", "rank_pattern or alpha_pattern").matches(path):
            return value
    return otherwise


def matrix(base: nn.Module) -> Tensor:
    """The weight of a linear layer as (out_features, in_features), float32."""
    if is_quantised(base):
        return dequantised(base)
    weight: Tensor = base.weight  # type: ignore[assignment]
    return (weight.T if isinstance(base, Conv1D) else weight).detach().float()


def principal(weight: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A0 and B0 of PiSSA, (n, in_features) and (out_features, n): the first r of n are those of rank r.

    With ``weight = U S V``: ``A0 = sqrt(S / scaling) V`` and ``B0 = U sqrt(S / scaling)``.
    """
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s / scaling).sqrt()
    return root[:, None] * v, u * root


def orthonormal(weight: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A0 and B0 of OLoRA, R and Q of ``weight = Q R``, which the scaling leaves alone, as in PEFT."""
    q, r = torch.linalg.qr(weight)
    return r, q


def first_values(config: dict[str, Any]) -> str:
    """PEFT's ``init_lora_weights``, which may be a name, true or false."""
    return str(config.get("init_lora_weights", True)).lower()


def _enabled_parts(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LLM-Adapters' LoRA on parts of a fused projection.

    Its files hold, for the n enabled parts of three, ``lora_A`` (n r, in) and ``lora_B`` (n out/3, r, 1):
    part i of the output, counted in contiguous thirds whatever the model's own layout is, gets the
    product of the i-th blocks. That is one LoRA of rank n r whose second matrix is zero elsewhere.
    """
    enabled = [part for part, wanted in enumerate(config.get("enable_lora") or []) if wanted]
    if not enabled:
        return config, tensors
    rank, parts = config["r"], len(config["enable_lora"])
    converted = dict(tensors)
    for key, blocks in tensors.items():
        if key.endswith("lora_B.weight"):
            size = blocks.shape[0] // len(enabled)
            full = blocks.new_zeros(size * parts, rank * len(enabled))
            for block, part in enumerate(enabled):
                rows, columns = slice(part * size, (part + 1) * size), slice(block * rank, (block + 1) * rank)
                full[rows, columns] = blocks[block * size : (block + 1) * size].squeeze(-1)
            converted[key] = full
    # The rank grows n-fold and alpha with it: the scaling stays alpha / r.
    grown = {"r": rank * len(enabled), "lora_alpha": config["lora_alpha"] * len(enabled), "enable_lora": None}
    return {**config, **grown}, converted


def selected(config: dict[str, Any], model: PreTrainedModel) -> list[str]:
    """The paths of the modules that PEFT would choose; none where it would not know either.

    A module is a target by its name, unless it is excluded, saved whole, or in another layer; the layer is the
    first number in its path, or the one behind a name in ``layers_pattern``.
    """
    targets = config["target_modules"]
    if not targets or targets == "all-linear":
        return []
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for named in patterns:
        refuse_unbounded(named, "layers_pattern")
    wanted_layers = [layers] if isinstance(layers, int) else layers or []

    def in_layers(path: str) -> bool:
        if not wanted_layers or isinstance(targets, str):
            return True
        rules = [rf"(?:^|.*?\.){named}\.(\d+)\." for named in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for rule in rules if (match := re.match(rule, path))), None)
        return found is not None and int(found[1]) in wanted_layers

    excluded = config.get("exclude_modules")
    saved = [_saved_module(name) for name in config.get("modules_to_save") or []]
    return [
        path
        for path in linear_modules(model)
        if matches(path, targets)
        and in_layers(path)
        and not (excluded and matches(path, excluded))
        and not any(rule.matches(path) for rule in saved)
    ]


def _saved_module(name: str) -> Pattern:
    return pattern(rf"(.*\.)?{name}(\..*)?", "modules_to_save")


def _with_resized_embeddings(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Whole modules that PEFT saved unasked, as it does with embeddings that tokens were added to, as if asked."""
    saved = [
        key.removeprefix(PREFIX).removesuffix(".weight")
        for key in tensors
        if key.startswith(PREFIX) and key.endswith(".weight") and not key.endswith(_MATRICES)
    ]
    named = config.get("modules_to_save") or []
    rules = [_saved_module(name) for name in named]
    added = sorted(path for path in saved if not any(rule.matches(path) for rule in rules))
    return {**config, "modules_to_save": [*named, *added]} if added else config
