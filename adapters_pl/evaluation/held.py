"""What a model has read of several rows: keys and values that rows share, leave behind, and come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adapters_pl.data.tokens import left_pad
from adapters_pl.models.head import parameter_names

#: The logits, (B, T, V), of the last ``logits_to_keep`` tokens, or of all where that is 0, by arguments of ``forward``.
Call = Callable[[dict[str, Any]], Tensor]

#: The shortest head of rows that is worth a pass of its own.
WORTH_SHARING = 8

#: How many more columns than the longest row needs are kept.
TOLERATED = 64


class _Layer(DynamicLayer):
    """Keys and values with room behind them, so that a token is added without a copy of those before it."""

    ROOM = 64

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, H, T, D) twice -> all that is held, (B, H, L + T, D) twice."""
        held = self.get_seq_length()
        end = held + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: list[Tensor] = [key_states[..., :0, :], value_states[..., :0, :]]
        if end > self._buffers[0].shape[-2]:
            for number, old in enumerate(self._buffers):
                self._buffers[number] = old.new_empty(*old.shape[:2], end + self.ROOM, old.shape[-1])
                self._buffers[number][..., :held, :] = old[..., :held, :]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., held:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values


class Held:
    """Rows as a model has read them: keys and values of every layer, (B, H, P + L, D), and a mask, (B, L).

    The first P positions are virtual tokens of adapters, which no mask covers. Padding may lie anywhere among the
    others: positions are counted without it.

    Args:
        layers: how many the model has.
        mask: (B, L), 0 on padding; (B, 0) for rows of which nothing has been read.
        states: keys and values of the first layer, of the second, and so on.
    """

    def __init__(self, layers: int, mask: Tensor, states: Iterable[Tensor] = ()) -> None:
        self.cache = Cache(layers=[_Layer() for _ in range(layers)])
        self.mask = mask
        pairs = iter(states)
        for number, (keys, values) in enumerate(zip(pairs, pairs, strict=True)):
            self.cache.update(keys, values, number)

    @property
    def virtual(self) -> int:
        """How many positions are virtual tokens."""
        return self.cache.get_seq_length() - self.mask.shape[1]

    @property
    def states(self) -> list[Tensor]:
        """Keys and values of the first layer, of the second, and so on."""
        layers: list[Any] = self.cache.layers
        return [part for layer in layers for part in (layer.keys, layer.values)]

    def read(self, call: Call, ids: Tensor, mask: Tensor, keep: int = 1) -> Tensor:
        """The logits after the next ids of every row.

        Args:
            call: the model.
            ids: (B, T).
            mask: (B, T), 0 on padding.
            keep: of how many ids, from the last; 0 for all.
        """
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        return call(
            {
                "input_ids": ids,
                "attention_mask": self.mask,
                "position_ids": positions,
                "past_key_values": self.cache,
                "use_cache": True,
                "logits_to_keep": keep,
            }
        )

    def select(self, rows: Sequence[int]) -> Held:
        """Some of the rows, each as often as it is named."""
        return Held(len(self.cache.layers), self.mask[rows], (part[rows] for part in self.states))

    def forget(self, wrong: Tensor) -> None:
        """Take ids that were read for padding from now on: the last of every row, where ``wrong`` (B, T) is true."""
        self.mask[:, -wrong.shape[1] :].masked_fill_(wrong, 0)

    def tidied(self) -> Held:
        """The same without most of the padding, where there is much of it."""
        length = int(self.mask.sum(dim=1).max())
        if self.mask.shape[1] - length <= TOLERATED:
            return self
        kept = self.mask.argsort(dim=1, stable=True)[:, -length:]  # padding first, all else in its order
        virtual = torch.arange(self.virtual, device=kept.device).expand(len(kept), -1)
        columns = torch.cat([virtual, kept + self.virtual], dim=1)[:, None, :, None]
        states = (part.gather(2, columns.expand(-1, part.shape[1], -1, part.shape[3])) for part in self.states)
        return Held(len(self.cache.layers), self.mask.gather(1, kept), states)

    def joined(self, other: Held) -> Held:
        """The rows of both; the shorter ones get padding in front."""
        length = max(self.mask.shape[1], other.mask.shape[1])

        def long(part: Tensor, held: Held, dim: int, begin: int) -> Tensor:
            shape = [*part.shape]
            shape[dim] = length - held.mask.shape[1]
            before, after = part.tensor_split([begin], dim=dim)
            return torch.cat([before, part.new_zeros(shape), after], dim=dim)

        mask = torch.cat([long(held.mask, held, 1, 0) for held in (self, other)])
        pairs = zip(self.states, other.states, strict=True)
        states = (torch.cat([long(a, self, 2, self.virtual), long(b, other, 2, other.virtual)]) for a, b in pairs)
        return Held(len(self.cache.layers), mask, states)


class Reading:
    """Reads rows for a model: the head that all of them share once, and of each what comes after it.

    Args:
        call: the model.
        layers: how many the model has.
        pad_id: any token: padding is told by the mask alone.
        device: where the ids go.
    """

    def __init__(self, call: Call, layers: int, pad_id: int, device: torch.device) -> None:
        self.call, self.layers, self.pad_id, self.device = call, layers, pad_id, device
        self._head = 0
        self._held: Held | None = None

    def share(self, rows: Sequence[list[int]], at_least: int = WORTH_SHARING) -> None:
        """Read what all of ``rows`` begin with, if it is so long; one token of each is left."""
        head = common_beginning(rows)
        self._head, self._held = 0, None
        if len(head) >= at_least and len(rows) > 1:
            self._held, _ = self.read([head])
            self._head = len(head)

    def read(self, rows: Sequence[list[int]], keep: int = 1) -> tuple[Held, Tensor]:
        """Rows that begin with the head, padded on the left behind it; and the logits after their last ids.

        Args:
            rows: the head's ids are among theirs.
            keep: after how many of their last ids; what comes of those that lie in a row's padding means nothing.
        """
        nothing = torch.zeros(len(rows), 0, dtype=torch.long, device=self.device)
        held = self._held.select([0] * len(rows)) if self._held is not None else Held(self.layers, nothing)
        ids, mask = left_pad([row[self._head :] for row in rows], self.pad_id)
        return held, held.read(self.call, ids.to(self.device), mask.to(self.device), keep)


def common_beginning(rows: Sequence[list[int]]) -> list[int]:
    """What all of ``rows`` begin with, without the last token of any."""
    first, last = min(rows), max(rows)
    length = min(map(len, rows)) - 1
    return first[: next((i for i in range(length) if first[i] != last[i]), length)]


def arguments(forward: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that ``forward`` has a name for."""
    names = parameter_names(forward)
    return {name: value for name, value in given.items() if name in names}


def layers_to_hold(model: PreTrainedModel, longest: int) -> int | None:
    """How many layers of keys and values ``model`` caches; ``None`` where it caches something else.

    A state that takes in every token cannot be cut and joined, and neither can a window that slides over the positions
    of a text: one that is shorter than ``longest``.
    """
    known: Any = model
    if model.config.is_encoder_decoder or not known._supports_default_dynamic_cache() or known.is_remote_code():
        return None
    if type(known).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return None  # it wants more than ids, mask and positions
    layers: list[Any] = DynamicCache(config=model.config).layers
    plain = all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > 2 * longest + TOLERATED)
        for layer in layers
    )
    return len(layers) or None if plain else None


def holds(reading: Reading) -> bool:
    """Whether rows of different lengths behind a shared head are answered as each is alone, by a small trial."""
    rows = [[1, 2, 3], [1, 2, *range(3, 12)]]
    alone = torch.cat([reading.read([row])[1] for row in rows])
    reading.share(rows, at_least=1)
    together = reading.read(rows)[1]
    rounding = max(1e-4, 4 * torch.finfo(alone.dtype).eps) * float(alone.abs().max())
    return float((alone - together).abs().max()) <= rounding
