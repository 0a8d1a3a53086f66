"""Prefix tuning: learned keys and values in front of every layer's own (Li and Liang 2021, arXiv 2101.00190)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from adapters_pl.adapters.layers import normal
from adapters_pl.adapters.virtual_tokens import VirtualTokenAdapter, VirtualTokens, reset_network
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import AtLeast1
from adapters_pl.models.head import parameter_names


class _FixedLayer(DynamicLayer):
    """One layer's prefix: it goes in front of whatever comes, and nothing that comes is kept.

    So a layer that is computed a second time, as activation checkpointing does, sees the same prefix.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, H, T, head_dim) twice -> (B, H, P + T, head_dim) twice."""
        assert self.keys is not None, "a layer is used before it has its prefix"
        assert self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Append to the prefix itself."""
        super().update(keys, values)


class FixedCache(Cache):
    """A cache that holds the prefix alone, for calls that asked for no cache."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_FixedLayer() for _ in range(layers)])


class Prefix(VirtualTokens):
    """``embeddings`` (P, L * 2 * H * head_dim): for each of L layers P keys and values of H key-value heads.

    The order within a row is PEFT's: layer, key or value, head, dimension. With a ``projection`` the rows are
    made by an MLP with one hidden layer (section 4.3 of the paper) from ``prompt_embeddings`` (P, H * head_dim).
    Not the identity at step 0: the virtual positions take a share of the attention, whatever they hold.
    """

    def __init__(self, count: int, layers: int, heads: int, head_dim: int, projection: int | None) -> None:
        super().__init__(count)
        self.layers, self.heads, self.head_dim = layers, heads, head_dim
        self._lent: list[tuple[GradientCheckpointingLayer, RemovableHandle]] = []
        width = layers * 2 * heads * head_dim
        self.prompt_embeddings = nn.Parameter(torch.empty(count, heads * head_dim if projection else width))
        self.mlp: nn.Sequential | None = None
        if projection:
            self.mlp = nn.Sequential(nn.Linear(heads * head_dim, projection), nn.Tanh(), nn.Linear(projection, width))

    def embeddings(self) -> Tensor:
        """Keys and values of all layers, (P, L * 2 * H * head_dim)."""
        return self.prompt_embeddings if self.mlp is None else self.mlp(self.prompt_embeddings)

    def keys_and_values(self, dtype: torch.dtype) -> Tensor:
        """The same as (2 L, H, P, head_dim): even places hold keys, odd ones values."""
        shaped = self.embeddings().to(dtype).view(self.count, 2 * self.layers, self.heads, self.head_dim)
        return shaped.permute(1, 2, 0, 3)

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Take the keys and values that the base computes for the text, or draw from N(0, 1) as PEFT does."""
        if self.text_ids is not None:
            self.enabled = False
            try:
                cache = base(input_ids=self.text_ids[None].to(self.prompt_embeddings.device), use_cache=True)
            finally:
                self.enabled = True
            states = [state[0] for layer in cache.past_key_values.layers for state in (layer.keys, layer.values)]
            self.prompt_embeddings.copy_(torch.stack(states).permute(2, 0, 1, 3).reshape(self.count, -1))
            return
        normal(self.prompt_embeddings, 1.0, generator_for("prompt_embeddings"))
        if self.mlp is not None:
            reset_network(self.mlp, "mlp", generator_for)

    def begin(self, base: nn.Module, call: dict[str, Any], batch: int) -> None:
        """Fill the sequence's cache with the prefix; where no cache was asked for, lend one that keeps nothing."""
        past: Any = call.get("past_key_values")
        config: Any = base.config
        checkpointed = base.training and getattr(base, "gradient_checkpointing", False)
        if past is None:
            caches = config.use_cache if call.get("use_cache") is None else call["use_cache"]
            past = FixedCache(self.layers) if checkpointed or not caches else DynamicCache(config=config)
            call["past_key_values"] = past
        states = self.keys_and_values(base.get_input_embeddings().weight.dtype)  # type: ignore[operator]
        states = states[:, None].expand(-1, batch, -1, -1, -1)
        for index in range(self.layers):
            keys, values = states[2 * index], states[2 * index + 1]
            if isinstance(past, FixedCache):
                past.layers[index].extend(keys, values)  # type: ignore[union-attr]
            else:
                past.update(keys, values, index)
        past.virtual_length = getattr(past, "virtual_length", 0) + self.count
        self._take_back()  # what a call that failed may have left
        if checkpointed:
            self._lend_to_layers(base, past)

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Take back the cache that was lent."""
        past = kwargs.get("past_key_values")
        if isinstance(past, FixedCache):
            self._take_back()
            if isinstance(output, tuple):
                return tuple(part for part in output if part is not past)
            output["past_key_values"] = None
        return output

    def _lend_to_layers(self, base: nn.Module, past: Cache) -> None:
        """Give ``past`` to checkpointed layers, from which transformers takes every cache away.

        It does so since a cache that grows would grow again when the layer is recomputed; this one keeps nothing.
        """
        if not hasattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache"):
            raise UserError("Prefix tuning with activation checkpointing needs a newer transformers (5.23 or later).")

        def give(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            names = parameter_names(type(layer).forward)
            name = next(name for name in ("past_key_values", "layer_past") if name in names)
            place = names.index(name)
            if place < len(args):
                return (*args[:place], past, *args[place + 1 :]), kwargs
            return args, {**kwargs, name: past}

        for module in base.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module._can_checkpoint_with_cache = True
                self._lent.append((module, module.register_forward_pre_hook(give, with_kwargs=True)))

    def _take_back(self) -> None:
        """Leave the layers as they were."""
        while self._lent:
            layer, hook = self._lent.pop()
            layer._can_checkpoint_with_cache = False
            hook.remove()


@dataclass(eq=False)
class PrefixTuning(VirtualTokenAdapter):
    """Learned keys and values in front of every layer's own; no token is added to the text.

    Not the identity at step 0, except that with ``init_text`` it is the base that has read the text before.

    Args:
        virtual_tokens: how many positions; the paper's comparison (LLM-Adapters, section 4.2) found 10 best.
        projection: hidden size of an MLP that makes keys and values from smaller parameters; none if not given.
            What it makes is what is saved for other tools; a checkpoint of ours keeps the MLP.
        init_text: begin as the keys and values of this text, repeated or cut to fit; without a projection only.
    """

    peft_type = "PREFIX_TUNING"

    virtual_tokens: AtLeast1 = 10
    _: KW_ONLY
    projection: AtLeast1 | None = None
    init_text: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection and self.init_text is not None:
            raise UserError("PrefixTuning: a projection cannot begin as a text; leave out projection or init_text.")

    def make_layer(self, model: PreTrainedModel) -> Prefix:
        layers, heads, head_dim = cache_shape(model.config)
        return Prefix(self.virtual_tokens, layers, heads, head_dim, self.projection)

    @classmethod
    def convert(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], base: PretrainedConfig, old: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """LLM-Adapters' BLOOM prefixes in PEFT's order.

        That code reads a row's 2 L blocks as all layers' keys and then all values, and its keys, laid out as
        (P, H, head_dim), are taken for the (H, head_dim, P) of that time's cache without being transposed.
        """
        if not (old and base.model_type == "bloom" and "prompt_embeddings" in tensors):
            return config, tensors
        layers, heads, head_dim = cache_shape(base)
        rows = tensors["prompt_embeddings"]
        blocks = rows.reshape(rows.shape[0], 2, layers, heads, head_dim)
        keys, values = blocks[:, 0], blocks[:, 1]
        keys = keys.permute(1, 0, 2, 3).reshape(layers, heads, head_dim, -1).permute(3, 0, 1, 2)
        mended = torch.stack([keys, values], dim=2).reshape(rows.shape[0], -1)
        return config, {**tensors, "prompt_embeddings": mended}

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        """What PEFT says of the model; sizes are those of the key-value heads."""
        layers, heads, head_dim = cache_shape(model.config)
        return {
            "token_dim": heads * head_dim,
            "num_layers": layers,
            "num_attention_heads": heads,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": self.projection or heads * head_dim,
            "prefix_projection": False,
        }


def cache_shape(base: PretrainedConfig) -> tuple[int, int, int]:
    """``(layers, key-value heads, head_dim)`` of what a model of this configuration caches."""
    config = base.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    grouped = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        grouped = 1 if config.multi_query else heads
    return config.num_hidden_layers, grouped, head_dim
