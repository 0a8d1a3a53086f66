"""LoRA: low-rank updates beside linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters.base import Adapter, AdapterLayer, attach
from adapters_pl.architectures import Architecture
from adapters_pl.errors import UserError
from adapters_pl.placement import SLOT, Layers, Names, Placement, Site, resolve


class LoRALayer(AdapterLayer):
    r"""``y + (alpha / rank) * dropout(x) A^T B^T``, with x: (..., in_features) and y: (..., out_features).

    At step 0 the layer is the identity: ``lora_A`` (rank, in_features) is drawn as ``nn.Linear`` draws its
    weight and ``lora_B`` (out_features, rank) is zero (section 4.1 of the paper). Both are float32 whatever
    the base's dtype is, since a small learning rate is lost in bfloat16.
    """

    def __init__(self, site: Site, rank: int, alpha: float, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, site.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.empty(site.out_features, rank, dtype=torch.float32, device=device))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw ``lora_A`` uniformly in +-1/sqrt(in_features) and set ``lora_B`` to zero."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        drawn = torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator_for("lora_A"))
        self.lora_A.copy_(drawn)
        self.lora_B.zero_()

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Add the low-rank update to what the linear layer returned."""
        hidden = nn.functional.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)
        update = nn.functional.linear(hidden, self.lora_B) * self.scaling
        return y + update.to(y.dtype)

    def delta(self, base: nn.Module) -> Tensor:
        """``(alpha / rank) * B A`` in the shape of the weight, which GPT-2's ``Conv1D`` stores transposed."""
        change = self.scaling * (self.lora_B @ self.lora_A)
        return change.T if isinstance(base, Conv1D) else change


class LoRA(Adapter):
    """Low-rank adaptation: ``W x + (alpha / rank) * B A x`` with W frozen.

    Identity at step 0. A fused query-key-value projection (BLOOM, GPT-NeoX, GPT-2) is adapted as the one
    matrix that it is.

    Args:
        rank: the update's rank r; the paper's comparison (LLM-Adapters, section 4.2) found 32 best.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability with which an input of the update is dropped in training.
        placement: ``attn`` adapts query, key and value, ``mlp`` the up and down projections, ``both`` all five.
        target_modules: instead of a placement, the modules by name (``[q_proj, v_proj]``), by a regular
            expression for the whole path, or ``all-linear``.
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
        name: str = "default",
        layers: Layers | None = None,
        exclude: Names | None = None,
    ) -> None:
        super().__init__(name=name, placement=placement, target_modules=target_modules, layers=layers, exclude=exclude)
        if rank < 1:
            raise UserError(f"LoRA: rank is {rank}; it must be at least 1.")
        if not 0 <= dropout < 1:
            raise UserError(f"LoRA: dropout is {dropout}; it is a probability below 1.")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang a :class:`LoRALayer` on every resolved linear module."""
        sites = resolve(model, arch, self.placement, self.target_modules, self.layers, self.exclude)
        for site in sites:
            if self.rank > max(site.in_features, site.out_features):
                raise UserError(
                    f"LoRA: rank {self.rank} is larger than {site.path} ({site.out_features} x "
                    f"{site.in_features}); choose at most {min(site.in_features, site.out_features)}."
                )
        for site in sites:
            module = model.get_submodule(site.path)
            device = next(module.parameters()).device
            attach(module, LoRALayer(site, self.rank, self.alpha, self.dropout, device), self.name)
        return sites

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
            exclude=config.get("exclude_modules"),
            layers=config.get("layers_to_transform"),
            name=name,
        )

    def to_peft(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Write PEFT's ``LoraConfig`` with the very modules that were adapted, so that no default can differ."""
        parameters = self.adapter_parameters(model)
        paths = sorted({name.rsplit(f".{SLOT}.", 1)[0] for name in parameters})
        transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in paths)
        config = {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": paths,
            "bias": "none",
            "fan_in_fan_out": transposed,
            "inference_mode": True,
        }
        tensors = {self.peft_key(name): parameter.detach() for name, parameter in parameters.items()}
        return config, tensors

    def peft_key(self, parameter: str) -> str:
        """``<path>.adapters.<name>.lora_A`` is PEFT's ``base_model.model.<path>.lora_A.weight``."""
        path, matrix = parameter.rsplit(f".{SLOT}.{self.name}.", 1)
        return f"base_model.model.{path}.{matrix}.weight"


#: PEFT's settings that change what a LoRA computes, with the value that means "not used".
_PLAIN_SETTINGS: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "rank_pattern": {},
    "alpha_pattern": {},
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
