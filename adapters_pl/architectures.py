"""Where attention and MLP live in each model family: one row each.

Every other part of the package asks this table; none of them knows a module's name. A row says where the
list of decoder layers is, and, relative to one layer, where each of the two sublayers begins and ends:
its input projections and the projection whose output is added to the residual stream. Naming projections
rather than blocks is deliberate: BLOOM's attention block returns the residual stream itself, OPT has no MLP
block at all, and GPT-J runs both sublayers side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from adapters_pl.errors import UserError

Role = Literal["attn", "mlp"]


@dataclass(frozen=True)
class Sublayer:
    """One sublayer of a decoder layer, by the names of its projections relative to that layer.

    Attributes:
        inputs: the projections that read the sublayer's input (query, key, value; up).
        output: the projection whose output is added to the residual stream.
        gate: a gating projection beside the inputs (SwiGLU). It reads the same input, but LLM-Adapters
            leaves it alone, so it is not counted among the inputs.
    """

    inputs: tuple[str, ...]
    output: str
    gate: str | None = None


@dataclass(frozen=True)
class FusedQKV:
    """Query, key and value in one projection.

    Attributes:
        module: its name relative to the decoder layer.
        layout: ``per_head`` when the output is [head, (q, k, v), head_dim] (BLOOM, GPT-NeoX),
            ``blocks`` when it is all queries, then all keys, then all values (GPT-2).
    """

    module: str
    layout: Literal["per_head", "blocks"]


@dataclass(frozen=True)
class Architecture:
    """One row: the path of the layer list, the two sublayers, and a fused projection if there is one."""

    layers: str
    attn: Sublayer
    mlp: Sublayer
    fused: FusedQKV | None = None

    def projections(self, role: Role) -> tuple[str, ...]:
        """The projections that a placement means for methods which adapt single linear layers.

        LLM-Adapters' choice (Hu et al. 2023, section 4): query, key and value of the attention,
        up and down of the MLP.
        """
        return self.attn.inputs if role == "attn" else (*self.mlp.inputs, self.mlp.output)

    def decoder_layers(self, model: nn.Module) -> nn.ModuleList:
        """The list of decoder layers of ``model``; raises ``UserError`` if the row does not fit it."""
        try:
            layers = model.get_submodule(self.layers)
        except AttributeError:
            layers = None
        if not isinstance(layers, nn.ModuleList):
            raise UserError(f"{type(model).__name__} has no list of decoder layers at '{self.layers}'.")
        return layers


_LLAMA = Architecture(
    layers="model.layers",
    attn=Sublayer(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
    mlp=Sublayer(("mlp.up_proj",), "mlp.down_proj", gate="mlp.gate_proj"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "bloom": Architecture(
        layers="transformer.h",
        attn=Sublayer(("self_attention.query_key_value",), "self_attention.dense"),
        mlp=Sublayer(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
        fused=FusedQKV("self_attention.query_key_value", "per_head"),
    ),
    "opt": Architecture(
        layers="model.decoder.layers",
        attn=Sublayer(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj"),
        mlp=Sublayer(("fc1",), "fc2"),
    ),
    "gptj": Architecture(
        layers="transformer.h",
        attn=Sublayer(("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.out_proj"),
        mlp=Sublayer(("mlp.fc_in",), "mlp.fc_out"),
    ),
    "gpt2": Architecture(
        layers="transformer.h",
        attn=Sublayer(("attn.c_attn",), "attn.c_proj"),
        mlp=Sublayer(("mlp.c_fc",), "mlp.c_proj"),
        fused=FusedQKV("attn.c_attn", "blocks"),
    ),
    "gpt_neo": Architecture(
        layers="transformer.h",
        attn=Sublayer(
            ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"), "attn.attention.out_proj"
        ),
        mlp=Sublayer(("mlp.c_fc",), "mlp.c_proj"),
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        attn=Sublayer(("attention.query_key_value",), "attention.dense"),
        mlp=Sublayer(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
        fused=FusedQKV("attention.query_key_value", "per_head"),
    ),
}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The row of ``model``, by its ``config.model_type``.

    Raises:
        UserError: the model's type has no row; the message names the types that have one.
    """
    model_type = model.config.model_type
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        raise UserError(
            f"No architecture row for model type '{model_type}' (known: {', '.join(sorted(ARCHITECTURES))}). "
            "Add one to adapters_pl.architectures.ARCHITECTURES."
        ) from None
