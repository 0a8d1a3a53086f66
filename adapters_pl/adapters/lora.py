"""LoRA: low-rank updates beside linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adapters_pl.adapters import lora_files
from adapters_pl.adapters.base import LinearAdapter
from adapters_pl.adapters.lora_files import by_pattern
from adapters_pl.adapters.lora_layers import FROM_WEIGHT, BiasLayer, DoRALayer, Init, LoRALayer
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import Above0, AtLeast1, Share
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Site, linear_sizes, matches, resolve
from adapters_pl.models.quantisation import is_quantised
from adapters_pl.models.slots import Place, attach, base_modules

Bias = Literal["none", "all", "lora_only"]
Part = Literal["q", "k", "v"]


@dataclass(eq=False)
class LoRA(LinearAdapter):
    """Low-rank adaptation: ``W x + scaling * B A x`` with W frozen.

    Identity at step 0. A fused query-key-value projection (BLOOM, GPT-NeoX, GPT-2) is adapted as the one
    matrix that it is, unless ``parts`` says which of its rows are.

    Args:
        rank: the update's rank r; the paper's comparison (LLM-Adapters, section 4.2) found 32 best.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability with which an input of the update is dropped in training.
        placement: ``attn`` adapts query, key and value, ``mlp`` the up and down projections, ``both`` all five.
        rslora: scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv 2312.03732).
        dora: train a magnitude beside the direction, see :class:`DoRALayer`.
        init: how the first matrix is drawn: ``kaiming`` or ``gaussian``; or both matrices come from the weight:
            ``pissa``, its largest singular values, ``olora``, its QR decomposition, see :class:`LoRALayer`. PEFT is
            then given the equal LoRA of twice the rank.
        bias: which biases of the base are trained beside it: ``none``, those of the adapted modules (``lora_only``),
            or ``all`` of the model, as in PEFT. The base's own stay as they are.
        parts: of query, key and value only these (``[q, v]``), whether the model has a projection for each or a
            fused one for all; modules that are none of the three are adapted as ever.
        rank_pattern: other ranks for modules whose path ends with a key, which may be a regular expression.
        alpha_pattern: other alphas, likewise.
        lr_ratio: the learning rate of the B matrices over that of the rest: LoRA+ (Hayou et al. 2024,
            arXiv 2402.12354), whose authors recommend 16.
    """

    peft_type = "LORA"
    peft_settings = {
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "rslora": "use_rslora",
        "dora": "use_dora",
        "init": "init_lora_weights",
        "bias": "bias",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    }
    peft_defaults = {
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "rank_pattern": None,
        "alpha_pattern": None,
    }
    #: ``lora_A`` and ``lora_B`` are the weights of linear layers there, and the magnitude is a vector.
    peft_names = {
        "lora_A": "lora_A.weight",
        "lora_B": "lora_B.weight",
        "magnitude": "lora_magnitude_vector",
        "base_bias": "base_layer.bias",
    }

    rank: AtLeast1 = 32
    alpha: float = 64
    dropout: Share = 0.05
    _: KW_ONLY
    rslora: bool = False
    dora: bool = False
    init: Init = "kaiming"
    bias: Bias = "none"
    parts: list[Part] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    lr_ratio: Above0 = 1.0
    #: The ``adapter_config.json`` that the adapter was read from: its modules are found by PEFT's rules, its rank may
    #: be beyond the layer, and values taken from the weight are taken again, since PEFT saves none of them.
    rules: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.rank_pattern or {}).values():
            if value < 1:
                raise UserError(f"LoRA: a rank in rank_pattern is {value}; it must be at least 1.")
        if self.init in FROM_WEIGHT and any(v <= 0 for v in (self.alpha, *(self.alpha_pattern or {}).values())):
            raise UserError(f"LoRA: under init {self.init} every alpha must be above 0.")
        if self.parts is not None and (not self.parts or not set(self.parts) <= {"q", "k", "v"}):
            raise UserError(f"LoRA: parts {self.parts}: choose some of q, k and v.")

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        chosen = {site: self._rows(site, model, arch) for site in self.targets(model, arch)}
        if self.parts and all(rows is None for rows in chosen.values()):
            raise UserError(f"LoRA: parts {self.parts} were chosen, but no query, key or value is among the modules.")
        chosen = {site: rows for site, rows in chosen.items() if rows is None or len(rows)}
        if not chosen:
            raise UserError(f"LoRA: parts {self.parts} leave no module.")
        for site, rows in chosen.items():
            self._check_rank(site, self._site_rank(site), rows, model)
        for site, rows in chosen.items():
            self.hang(model, site, self.make_layer(site, model.get_submodule(site.path), rows))
        self._share_inputs(model, arch, chosen)
        if self.bias == "all":
            self._train_other_biases(model, {site.path for site in chosen})
        return list(chosen)

    def _share_inputs(self, model: PreTrainedModel, arch: Architecture, sites: Iterable[Site]) -> None:
        """Let query, key and value, or gate and up, read their input once."""
        layers = self.matrices(model)
        for names in (arch.attn.inputs, (*arch.mlp.inputs, *filter(None, [arch.mlp.gate]))):
            reading: dict[int | None, list[LoRALayer]] = {}
            for site in sites:
                if matches(site.path, list(names)):
                    reading.setdefault(site.layer, []).append(layers[site.path])
            for beside in reading.values():
                for layer in beside:
                    layer.beside, layer.input = tuple(beside), beside[0].input

    def targets(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """As every method; those of a directory by PEFT's own rules."""
        if self.rules is not None and (named := lora_files.selected(self.rules, model)):
            return resolve(model, arch, self.placement, named)
        return super().targets(model, arch)

    def make_layer(self, site: Site, module: nn.Module, rows: Tensor | None = None) -> LoRALayer:
        """The low-rank update of the output's ``rows``, or of all of them."""
        rank, alpha = self._site_rank(site), by_pattern(self.alpha_pattern, site.path, self.alpha)
        scaling = alpha / (math.sqrt(rank) if self.rslora else rank)
        trains_bias = self.bias != "none" and module.bias is not None
        if rows is not None and len(rows) == site.out_features:
            rows = None
        kind = DoRALayer if self.dora else LoRALayer
        layer = kind(site, rank, scaling, self.dropout, self.init, rows, trains_bias).float()
        if self.rules is not None and self.init in FROM_WEIGHT:
            with torch.no_grad():
                layer.decompose(module)
        return layer

    def _rows(self, site: Site, model: PreTrainedModel, arch: Architecture) -> Tensor | None:
        """The output rows that ``parts`` leave of a query, key or value; ``None`` where the module is none of them."""
        if self.parts is None or site.layer is None:
            return None
        name = site.path.removeprefix(f"{arch.layers}.{site.layer}.")
        rows = arch.parts(name, model.config, site.out_features)
        return None if rows is None else torch.cat([rows[part] for part in self.parts]).unique()

    def _site_rank(self, site: Site) -> int:
        return by_pattern(self.rank_pattern, site.path, self.rank)

    def _check_rank(self, site: Site, rank: int, rows: Tensor | None, model: PreTrainedModel) -> None:
        small, large = sorted((site.in_features, site.out_features))
        if rank > large and self.rules is None:
            raise UserError(
                f"LoRA: rank {rank} is larger than {site.path} ({site.out_features} x "
                f"{site.in_features}); choose at most {small}."
            )
        if self.init not in FROM_WEIGHT:
            return
        if rank > (most := min(small, small if rows is None else len(rows))):
            raise UserError(
                f"LoRA: rank {rank} is too large for init {self.init} in {site.path}: choose at most {most}."
            )
        module = model.get_submodule(site.path)
        weight: Tensor = module.weight  # type: ignore[assignment]
        if not (is_quantised(module) or (weight.is_floating_point() and weight.numel() == small * large)):
            raise UserError(
                f"LoRA: init {self.init} decomposes weights, but that of {site.path} is quantised in a way that is "
                "not known; use kaiming."
            )
        if weight.is_meta and self.rules is not None:
            raise UserError(f"LoRA: this directory needs the base's weights, for its init_lora_weights={self.init!r}.")

    def _train_other_biases(self, model: PreTrainedModel, adapted: set[str]) -> None:
        for path, module in list(base_modules(model)):
            if path in adapted or module._parameters.get("bias") is None:
                continue
            if any(matches(path, [name]) or f".{name}." in f".{path}." for name in self.modules_to_save or []):
                continue  # the copy has a bias of its own
            if not (linear_sizes(module) or isinstance(module, nn.LayerNorm)):
                raise UserError(f"LoRA: bias all: {path} ({type(module).__name__}) is not known; use lora_only.")
            attach(module, BiasLayer(module), self.name)

    def matrices(self, model: nn.Module) -> dict[str, LoRALayer]:
        """The low-rank layers by the path of the module that each adapts."""
        return {path: layer for path, layer in self.sites(model).items() if isinstance(layer, LoRALayer)}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        if self.lr_ratio == 1.0:
            return super().parameter_groups(model)
        fast = [layer.lora_B for layer in self.matrices(model).values()]
        second = {id(parameter) for parameter in fast}
        rest = [parameter for parameter in self.adapter_parameters(model).values() if id(parameter) not in second]
        return [{"params": rest}, {"params": fast, "lr_ratio": self.lr_ratio}]

    @classmethod
    def convert(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], base: PretrainedConfig, old: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """LLM-Adapters' LoRA on parts of a fused projection, and embeddings that PEFT saved unasked."""
        lora_files.refuse_unknown(config)
        drawn = lora_files.first_values(config)
        return lora_files.convert(
            {**config, "init_lora_weights": drawn if drawn in FROM_WEIGHT else "kaiming"}, tensors
        )

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> LoRA:
        adapter: Any = super().from_peft(config, name)
        adapter.rules = config
        return adapter

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        # A, B and A0, B0 together are one LoRA of twice the rank at the same scaling.
        rank_factor = 2 if self.init in FROM_WEIGHT else 1
        alpha_factor = math.sqrt(rank_factor) if self.rslora else rank_factor
        return {
            **super().peft_extra(model),
            "r": self.rank * rank_factor,
            "lora_alpha": self.alpha * alpha_factor,
            "init_lora_weights": True,
            "rank_pattern": {key: rank * rank_factor for key, rank in (self.rank_pattern or {}).items()},
            "alpha_pattern": {key: alpha * alpha_factor for key, alpha in (self.alpha_pattern or {}).items()},
        }

    def peft_tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The tensors of a PEFT directory, which knows no rows and no first values."""
        tensors = super().peft_tensors(model)
        for path, layer in self.matrices(model).items():
            for own, value in layer.plain_lora().items():
                tensors[self.peft_key(Place(path, self.name, own).path)] = value.detach()
        return tensors
