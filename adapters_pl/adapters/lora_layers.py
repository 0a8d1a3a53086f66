"""The layers of LoRA: the low-rank update, its weight-decomposed kind, and a trained bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters import lora_files
from adapters_pl.adapters.branch import Dropout, SharedInput, plus_product
from adapters_pl.adapters.layers import AdapterLayer, LinearAdapterLayer, normal, uniform
from adapters_pl.adapters.lora_files import matrix
from adapters_pl.models.placement import Site

Init = Literal["kaiming", "gaussian", "pissa", "olora"]

#: The initial values that are taken from the weight.
FROM_WEIGHT = {"pissa": lora_files.principal, "olora": lora_files.orthonormal}


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
        if init in FROM_WEIGHT:
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
        if self.init in FROM_WEIGHT:
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
        a, b = FROM_WEIGHT[self.init](weight if self.rows is None else weight[self.rows], self.scaling)
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
        if self.init in FROM_WEIGHT:
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
        first: Tensor = self.lora_A
        if self.init in FROM_WEIGHT:
            first = torch.cat([first, self.first_A])  # type: ignore[list-item]
        return first.to(dtype)

    def _with_update(self, y: Tensor, reduced: Tensor, factor: Tensor | None = None) -> Tensor:
        """``y`` and the update that ``reduced`` leads to, ``x`` times :meth:`_first`; its rows times ``factor``."""

        def second(values: Tensor) -> Tensor:
            values = self._in_output(values)
            return (values if factor is None else factor[:, None] * values).to(y.dtype)

        if self.init not in FROM_WEIGHT:
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
        if self.init in FROM_WEIGHT:
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
        if self.init in FROM_WEIGHT:
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
