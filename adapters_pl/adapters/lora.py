"""LoRA: low-rank updates beside linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters.base import Adapter, AdapterLayer, adapter_layers, attach
from adapters_pl.architectures import Architecture
from adapters_pl.errors import UserError
from adapters_pl.placement import Layers, Names, Placement, Site, resolve

Init = Literal["kaiming", "gaussian"]


class LoRALayer(AdapterLayer):
    r"""``y + scaling * dropout(x) A^T B^T``, with x: (..., in_features) and y: (..., out_features).

    At step 0 the layer is the identity: ``lora_A`` (rank, in_features) is drawn and ``lora_B``
    (out_features, rank) is zero (section 4.1 of the paper). All parameters are float32 whatever the base's
    dtype is, since a small learning rate is lost in bfloat16.
    """

    def __init__(self, site: Site, rank: int, scaling: float, dropout: float, init: Init, device: torch.device) -> None:
        super().__init__()
        self.scaling = scaling
        self.init = init
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, site.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.empty(site.out_features, rank, dtype=torch.float32, device=device))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw ``lora_A`` and set ``lora_B`` to zero.

        ``kaiming`` is uniform in +-1/sqrt(in_features), as ``nn.Linear`` draws its weight; ``gaussian`` has
        the standard deviation 1/rank, as in PEFT.
        """
        drawn, generator = torch.empty(self.lora_A.shape), generator_for("lora_A")
        if self.init == "gaussian":
            drawn.normal_(0, 1 / self.lora_A.shape[0], generator=generator)
        else:
            bound = 1 / math.sqrt(self.lora_A.shape[1])
            drawn.uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(drawn)
        self.lora_B.zero_()

    def update(self, x: Tensor) -> Tensor:
        """The low-rank update for the input ``x``, float32."""
        return nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B) * self.scaling

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Add the low-rank update to what the linear layer returned."""
        return y + self.update(self.dropout(x.to(self.lora_A.dtype))).to(y.dtype)

    def delta(self, base: nn.Module) -> Tensor:
        """``scaling * B A`` in the shape of the weight, which GPT-2's ``Conv1D`` stores transposed."""
        change = self.scaling * (self.lora_B @ self.lora_A)
        return change.T if isinstance(base, Conv1D) else change


class DoRALayer(LoRALayer):
    r"""Weight-decomposed LoRA (Liu et al. 2024, arXiv 2402.09353): ``W' = m (W + U) / |W + U|``.

    ``U`` is LoRA's update, the norm is taken over each row of the weight, and ``magnitude`` m (out_features,)
    is trained beside it. Identity at step 0, where m is the norm of W itself. As in the paper's section 4.3,
    no gradient flows through the norm. With dropout in training, the part of the base that is rescaled sees
    the dropped-out input too, as in PEFT.
    """

    def __init__(self, site: Site, rank: int, scaling: float, dropout: float, init: Init, device: torch.device) -> None:
        super().__init__(site, rank, scaling, dropout, init, device)
        self.magnitude = nn.Parameter(torch.empty(site.out_features, dtype=torch.float32, device=device))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """As LoRA, and the magnitude from the base's weight."""
        super().reset_parameters(generator_for, base)
        self.magnitude.copy_(_matrix(base).norm(dim=1))

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Rescale what the base computed, and add the rescaled update."""
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        dropped = self.dropout(x.to(self.lora_A.dtype))
        if self.training and self.dropout.p > 0:
            plain = nn.functional.linear(dropped, _matrix(base))
        else:
            plain = (y if bias is None else y - bias).to(self.lora_A.dtype)
        factor = self.magnitude / self._norm(base)
        return y + ((factor - 1) * plain + factor * self.update(dropped)).to(y.dtype)

    def _norm(self, base: nn.Module) -> Tensor:
        with torch.no_grad():
            return (_matrix(base) + self.scaling * self.lora_B @ self.lora_A).norm(dim=1)

    def delta(self, base: nn.Module) -> Tensor:
        """``W' - W`` in the shape of the weight."""
        weight = _matrix(base)
        merged = (self.magnitude / self._norm(base))[:, None] * (weight + self.scaling * self.lora_B @ self.lora_A)
        return (merged - weight).T if isinstance(base, Conv1D) else merged - weight


def _matrix(base: nn.Module) -> Tensor:
    """The weight of a linear layer as (out_features, in_features), float32."""
    weight: Tensor = base.weight  # type: ignore[assignment]
    return (weight.T if isinstance(base, Conv1D) else weight).detach().float()


class LoRA(Adapter):
    """Low-rank adaptation: ``W x + scaling * B A x`` with W frozen.

    Identity at step 0. A fused query-key-value projection (BLOOM, GPT-NeoX, GPT-2) is adapted as the one
    matrix that it is.

    Args:
        rank: the update's rank r; the paper's comparison (LLM-Adapters, section 4.2) found 32 best.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability with which an input of the update is dropped in training.
        placement: ``attn`` adapts query, key and value, ``mlp`` the up and down projections, ``both`` all five.
        target_modules: instead of a placement, the modules by name (``[q_proj, v_proj]``), by a regular
            expression for the whole path, or ``all-linear``.
        rslora: scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv 2312.03732).
        dora: train a magnitude beside the direction, see :class:`DoRALayer`.
        init: how the first matrix is drawn: ``kaiming`` or ``gaussian``.
        rank_pattern: other ranks for modules whose path ends with a key, which may be a regular expression.
        alpha_pattern: other alphas, likewise.
        lr_ratio: the learning rate of the B matrices over that of the rest: LoRA+ (Hayou et al. 2024,
            arXiv 2402.12354), whose authors recommend 16.
        name: what tells several adapters of one model apart.
        layers: which decoder layers: ``8-15``, ``[0, 1]``, ``-1``; all if not given.
        exclude: names or a regular expression of modules to leave out.
    """

    peft_type = "LORA"

    def __init__(
        self,
        rank: int = 32,
        alpha: float = 64,
        dropout: float = 0.05,
        placement: Placement = "both",
        target_modules: Names | None = None,
        *,
        rslora: bool = False,
        dora: bool = False,
        init: Init = "kaiming",
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        lr_ratio: float = 1.0,
        name: str = "default",
        layers: Layers | None = None,
        exclude: Names | None = None,
    ) -> None:
        super().__init__(name=name, placement=placement, target_modules=target_modules, layers=layers, exclude=exclude)
        for value in (rank, *(rank_pattern or {}).values()):
            if value < 1:
                raise UserError(f"LoRA: rank is {value}; it must be at least 1.")
        if not 0 <= dropout < 1:
            raise UserError(f"LoRA: dropout is {dropout}; it is a probability below 1.")
        if lr_ratio <= 0:
            raise UserError(f"LoRA: lr_ratio is {lr_ratio}; it must be above 0.")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.rslora = rslora
        self.dora = dora
        self.init = init
        self.rank_pattern = rank_pattern
        self.alpha_pattern = alpha_pattern
        self.lr_ratio = lr_ratio

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang a :class:`LoRALayer` on every resolved linear module."""
        sites = resolve(model, arch, self.placement, self.target_modules, self.layers, self.exclude)
        ranks = {site.path: _by_pattern(self.rank_pattern, site.path, self.rank) for site in sites}
        for site in sites:
            if ranks[site.path] > max(site.in_features, site.out_features):
                raise UserError(
                    f"LoRA: rank {ranks[site.path]} is larger than {site.path} ({site.out_features} x "
                    f"{site.in_features}); choose at most {min(site.in_features, site.out_features)}."
                )
        kind = DoRALayer if self.dora else LoRALayer
        for site in sites:
            module, rank = model.get_submodule(site.path), ranks[site.path]
            alpha = _by_pattern(self.alpha_pattern, site.path, self.alpha)
            scaling = alpha / (math.sqrt(rank) if self.rslora else rank)
            device = next(module.parameters()).device
            attach(module, kind(site, rank, scaling, self.dropout, self.init, device), self.name)
        return sites

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group, or two under LoRA+: the B matrices learn ``lr_ratio`` times as fast."""
        if self.lr_ratio == 1.0:
            return super().parameter_groups(model)
        fast: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for layer in adapter_layers(model, self.name).values():
            for parameter in layer.parameters():
                (fast if parameter is layer.lora_B else rest).append(parameter)
        return [{"params": rest}, {"params": fast, "lr_ratio": self.lr_ratio}]

    @classmethod
    def convert(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], model: PreTrainedModel, old: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """LLM-Adapters' LoRA on parts of a fused projection, as a plain LoRA that computes the same.

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
                    rows = slice(part * size, (part + 1) * size)
                    full[rows, block * rank : (block + 1) * rank] = blocks[block * size : (block + 1) * size].squeeze(
                        -1
                    )
                converted[key] = full
        # The rank grows n-fold and alpha with it: the scaling stays alpha / r.
        grown = {"r": rank * len(enabled), "lora_alpha": config["lora_alpha"] * len(enabled), "enable_lora": None}
        return {**config, **grown}, converted

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> LoRA:
        """Read PEFT's ``LoraConfig``; a setting that changes the function and is not known here is refused."""
        for setting, plain in _PLAIN_SETTINGS.items():
            if config.get(setting, plain) not in (plain, None, False, {}, []):
                raise UserError(f"This LoRA directory uses {setting}={config[setting]!r}, which is not supported.")
        return cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=config["target_modules"],
            rslora=config.get("use_rslora") or False,
            dora=config.get("use_dora") or False,
            rank_pattern=config.get("rank_pattern") or None,
            alpha_pattern=config.get("alpha_pattern") or None,
            exclude=config.get("exclude_modules"),
            layers=config.get("layers_to_transform"),
            name=name,
        )

    def peft_config(self, model: PreTrainedModel) -> dict[str, Any]:
        """PEFT's ``LoraConfig`` with the very modules that were adapted, so that no default can differ."""
        paths = sorted(self.sites(model))
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "rank_pattern": self.rank_pattern or {},
            "alpha_pattern": self.alpha_pattern or {},
            "target_modules": paths,
            "bias": "none",
            "fan_in_fan_out": any(isinstance(model.get_submodule(path), Conv1D) for path in paths),
        }

    def peft_name(self, own: str) -> str:
        """``lora_A`` and ``lora_B`` are the weights of linear layers there, and the magnitude is a vector."""
        return "lora_magnitude_vector" if own == "magnitude" else f"{own}.weight"


Number = TypeVar("Number", int, float)


def _by_pattern(patterns: dict[str, Number] | None, path: str, otherwise: Number) -> Number:
    """The value of the first pattern that is the end of ``path``, whole names only, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return otherwise


#: PEFT's settings that change what a LoRA computes, with the value that means "not used".
_PLAIN_SETTINGS: dict[str, Any] = {
    "use_qalora": False,
    "use_bdlora": None,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "layers_pattern": None,
}
