"""LoRA: low-rank updates beside linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters import lora_files
from adapters_pl.adapters.base import LinearAdapter
from adapters_pl.adapters.branch import Dropout, SharedInput, plus_product
from adapters_pl.adapters.layers import AdapterLayer, LinearAdapterLayer, normal, uniform
from adapters_pl.adapters.lora_files import by_pattern, matrix
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import Above0, AtLeast1, Share
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Site, linear_sizes, matches, resolve
from adapters_pl.models.quantisation import is_quantised
from adapters_pl.models.slots import Place, attach, base_modules

Init = Literal["kaiming", "gaussian", "pissa", "olora"]
Bias = Literal["none", "all", "lora_only"]
Part = Literal["q", "k", "v"]

#: The initial values that are taken from the weight.
_FROM_WEIGHT = {"pissa": lora_files.principal, "olora": lora_files.orthonormal}


class LoRALayer(LinearAdapterLayer):
    r"""``y + scaling * dropout(x) A^T B^T``, with x: (..., in_features) and y: (..., out_features).

    At step 0 the layer is the identity: ``lora_A`` (rank, in_features) is drawn and ``lora_B``
    (out_features, rank) is zero (section 4.1 of the paper). All parameters are float32 whatever the base's
    dtype is, since a small learning rate is lost in bfloat16.

    Where only some ``rows`` of the output are adapted, ``lora_B`` is (rows, rank) and B is zero elsewhere.

    Under ``pissa`` (Meng et al. 2024, arXiv 2404.02948, section 3) A and B begin as A0 and B0, with
    ``scaling * B0 A0`` the best approximation of the weight of that rank; under ``olora`` (Büyükakyüz 2024,
    arXiv 2406.01775, section 3) as the first columns and rows of its QR decomposition. The papers take the product
    out of the weight; here the base stays as it is and the update is ``B A - B0 A0``. So step 0 is the identity in
    training too, where the papers' is not if there is dropout.

    ``base_bias`` (out_features,), where it is trained, takes the place of the base's bias, and begins as it.
    """

    def __init__(
        self,
        site: Site,
        rank: int,
        scaling: float,
        dropout: float,
        init: Init,
        rows: Tensor | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.init = init
        self.out_features = site.out_features
        # No buffer: on the meta device it would lose what it holds.
        self.rows = rows
        self.dropout = Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, site.in_features))
        self.lora_B = nn.Parameter(torch.empty(site.out_features if rows is None else len(rows), rank))
        self.base_bias = nn.Parameter(torch.empty(site.out_features)) if bias else None
        #: The layers that read the same tensor as this one, and what they share.
        self.beside: tuple[LoRALayer, ...] = (self,)
        self.input = SharedInput()
        if init in _FROM_WEIGHT:
            # Saved, although the weight determines them: another dtype, quantisation, or singular values that are
            # nearly equal would give other matrices than those that were trained against.
            self.saved_buffers = ("first_A", "first_B")
            self.register_buffer("first_A", torch.empty_like(self.lora_A, requires_grad=False))
            self.register_buffer("first_B", torch.empty_like(self.lora_B, requires_grad=False))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw ``lora_A`` and set ``lora_B`` to zero, or take both from the weight.

        ``kaiming`` is uniform in +-1/sqrt(in_features), as ``nn.Linear`` draws its weight; ``gaussian`` has
        the standard deviation 1/rank, as in PEFT.
        """
        if self.base_bias is not None:
            self.base_bias.copy_(base.bias)  # type: ignore[arg-type]
        if self.init in _FROM_WEIGHT:
            self.decompose(base)
            self.lora_A.copy_(self.first_A)  # type: ignore[arg-type]
            self.lora_B.copy_(self.first_B)  # type: ignore[arg-type]
            return
        rank, in_features = self.lora_A.shape
        if self.init == "gaussian":
            normal(self.lora_A, 1 / rank, generator_for("lora_A"))
        else:
            uniform(self.lora_A, 1 / math.sqrt(in_features), generator_for("lora_A"))
        self.lora_B.zero_()

    def decompose(self, base: nn.Module) -> None:
        """Take A0 and B0 from the weight, for the initial values that are made so."""
        weight = matrix(base)
        a, b = _FROM_WEIGHT[self.init](weight if self.rows is None else weight[self.rows], self.scaling)
        self.first_A.copy_(a[: len(self.lora_A)])  # type: ignore[operator]
        self.first_B.copy_(b[:, : len(self.lora_A)])  # type: ignore[operator]

    def _in_output(self, values: Tensor, filling: Tensor | None = None) -> Tensor:
        """``values`` (rows, ...) at their rows of an output, (out_features, ...); ``filling``, or zero, elsewhere."""
        if self.rows is None:
            return values
        if self.rows.device != values.device:
            self.rows = self.rows.to(values.device)
        output = values.new_zeros(self.out_features, *values.shape[1:]) if filling is None else filling
        return output.index_copy(0, self.rows, values)

    def product(self) -> Tensor:
        """The change of the weight as (out_features, in_features)."""
        change = self.lora_B @ self.lora_A
        if self.init in _FROM_WEIGHT:
            change = change - self.first_B @ self.first_A  # type: ignore[operator]
        return self.scaling * self._in_output(change)

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        def products() -> list[Tensor | None]:
            firsts = [layer._first(y.dtype) if layer.enabled else None for layer in self.beside]
            rows = [0 if first is None else len(first) for first in firsts]
            weights = [first for first in firsts if first is not None]
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            found = self.dropout.product(x.to(y.dtype), weight).split(rows, dim=-1)
            return [None if first is None else part for first, part in zip(firsts, found, strict=True)]

        number = self.beside.index(self)
        return self._with_bias(self._with_update(y, self.input.product(x, number, products)), base)

    def _first(self, dtype: torch.dtype) -> Tensor:
        """A, with A0 below it where there is one."""
        first = [self.lora_A, self.first_A] if self.init in _FROM_WEIGHT else [self.lora_A]
        return torch.cat(first).to(dtype) if len(first) > 1 else self.lora_A.to(dtype)  # type: ignore[arg-type]

    def _with_update(self, y: Tensor, reduced: Tensor, factor: Tensor | None = None) -> Tensor:
        """``y`` and the update that ``reduced`` leads to, ``x`` times :meth:`_first`; its rows times ``factor``."""

        def second(values: Tensor) -> Tensor:
            values = self._in_output(values)
            return (values if factor is None else factor[:, None] * values).to(y.dtype)

        if self.init not in _FROM_WEIGHT:
            return plus_product(y, reduced, second(self.lora_B), self.scaling)
        # Both products are rounded alike, so at step 0 their difference is zero.
        here, first = reduced.chunk(2, dim=-1)
        linear = nn.functional.linear
        change = linear(here, second(self.lora_B)) - linear(first, second(self.first_B))  # type: ignore[arg-type]
        return y + (change * self.scaling).to(y.dtype)

    def _with_bias(self, y: Tensor, base: nn.Module) -> Tensor:
        shift = self.bias_delta(base)
        return y if shift is None else y + shift.to(y.dtype)

    def delta(self, base: nn.Module) -> Tensor:
        """``scaling * B A`` in the shape of the weight, which GPT-2's ``Conv1D`` stores transposed."""
        change = self.product()
        return change.T if isinstance(base, Conv1D) else change

    def bias_delta(self, base: nn.Module) -> Tensor | None:
        return None if self.base_bias is None else self.base_bias - base.bias  # type: ignore[operator]

    def plain_lora(self) -> dict[str, Tensor]:
        """The matrices of the plain LoRA that computes the same; its rank is twice this one's where there is A0."""
        a: Tensor = self.lora_A
        b = self._in_output(self.lora_B)
        if self.init in _FROM_WEIGHT:
            a = torch.cat([a, self.first_A])  # type: ignore[list-item]
            b = torch.cat([b, -self._in_output(self.first_B)], dim=1)  # type: ignore[arg-type]
        return {"lora_A": a, "lora_B": b}


class DoRALayer(LoRALayer):
    r"""Weight-decomposed LoRA (Liu et al. 2024, arXiv 2402.09353): ``W' = m (W + U) / |W + U|``.

    ``U`` is LoRA's update, the norm is taken over each row of the weight, and ``magnitude`` m (out_features,),
    or (rows,) where only some are adapted, is trained beside it. Identity at step 0, where m is the norm of W
    itself. As in the paper's section 4.3, no gradient flows through the norm. With dropout in training, the part of
    the base that is rescaled sees the dropped-out input too, as in PEFT.
    """

    #: What the norm was computed from, and the norm, in evaluation mode.
    _kept: tuple[list[tuple[int, int, int]], Tensor] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.magnitude = nn.Parameter(torch.empty_like(self.lora_B[:, 0]))
        if self.rows is not None:
            # Other tools need the magnitude of every row, and a directory may be written without the weights.
            self.saved_buffers = (*self.saved_buffers, "norm")
            self.register_buffer("norm", torch.empty(self.out_features))

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        super().reset_parameters(generator_for, base)
        norm = matrix(base).norm(dim=1)
        self.magnitude.copy_(norm if self.rows is None else norm[self.rows])
        if self.rows is not None:
            self.norm.copy_(norm)  # type: ignore[operator]

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """Rescale what the base computed, and add the rescaled update."""
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        x, plain, factor = x.to(y.dtype), y, self._factor(base)
        if self.training and self.dropout.p > 0:
            x = self.dropout(x)
            plain = base.forward(x).to(y.dtype)
        if bias is not None:
            plain = plain - bias.to(y.dtype)
        rescaled = torch.addcmul(y, plain, (factor - 1).to(y.dtype))
        reduced = nn.functional.linear(x, self._first(y.dtype))
        return self._with_bias(self._with_update(rescaled, reduced, factor), base)

    def _factor(self, base: nn.Module) -> Tensor:
        """``m / |W + U|``, (out_features,); one in rows that are not adapted."""
        with torch.no_grad():
            norm = self._norm(base) if self.training else self._kept_norm(base)
        return self._in_output(self.magnitude, filling=norm) / norm

    def _kept_norm(self, base: nn.Module) -> Tensor:
        """:meth:`_norm`, computed again where a tensor that it depends on has changed: not for every decoded token."""
        sources: tuple[Any, ...] = (self.lora_A, self.lora_B, base.weight)
        if any(source.is_inference() for source in sources):  # whose changes are not counted
            return self._norm(base)
        state = [(id(source), source.data_ptr(), source._version) for source in sources]
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._norm(base)
        return self._kept[1]

    def train(self, mode: bool = True) -> DoRALayer:
        """Forget what was kept for the evaluation mode."""
        self._kept = None
        return super().train(mode)

    def _norm(self, base: nn.Module) -> Tensor:
        """``|W + U|``, (out_features,).

        By ``|W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B``, products over the rank that are summed over it row by row,
        so that no matrix of the weight's size is made.
        """
        weight = matrix(base)
        if self.init in _FROM_WEIGHT:
            return (weight + self.product()).norm(dim=1)
        a, b = self.lora_A, self._in_output(self.lora_B) * self.scaling
        norm = weight.norm(dim=1)
        squares = norm.square() + ((2 * weight @ a.T + b @ (a @ a.T)) * b).sum(dim=1)
        return squares.clamp_(min=0).sqrt()

    def delta(self, base: nn.Module) -> Tensor:
        """``W' - W`` in the shape of the weight."""
        weight = matrix(base)
        change = self._factor(base)[:, None] * (weight + self.product()) - weight
        return change.T if isinstance(base, Conv1D) else change

    def plain_lora(self) -> dict[str, Tensor]:
        filling = None if self.rows is None else self.norm
        return {**super().plain_lora(), "magnitude": self._in_output(self.magnitude, filling)}  # type: ignore[arg-type]


class BiasLayer(AdapterLayer):
    """A trained ``bias`` in place of that of a module which is not adapted otherwise; identity at step 0."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty_like(module.bias, dtype=torch.float32))  # type: ignore[arg-type]

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        self.bias.copy_(base.bias)  # type: ignore[arg-type]

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return output + self.bias_delta(base).to(output.dtype)

    def bias_delta(self, base: nn.Module) -> Tensor:
        return self.bias - base.bias  # type: ignore[operator]


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
        if self.init in _FROM_WEIGHT and any(v <= 0 for v in (self.alpha, *(self.alpha_pattern or {}).values())):
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
        if self.rules is not None and self.init in _FROM_WEIGHT:
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
        if self.init not in _FROM_WEIGHT:
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
            {**config, "init_lora_weights": drawn if drawn in _FROM_WEIGHT else "kaiming"}, tensors
        )

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> LoRA:
        adapter: Any = super().from_peft(config, name)
        adapter.rules = config
        return adapter

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        # A, B and A0, B0 together are one LoRA of twice the rank at the same scaling.
        rank_factor = 2 if self.init in _FROM_WEIGHT else 1
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
