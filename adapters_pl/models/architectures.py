"""Where attention and MLP live in each model family: one row each.

Every other part of the package asks this table; none of them knows a module's name. A row says where the
list of decoder layers is, and, relative to one layer, where each of the two sublayers begins and ends:
its input projections and the projection whose output is added to the residual stream. Naming projections
rather than blocks is deliberate: BLOOM's attention block returns the residual stream itself, OPT has no MLP
block at all, and GPT-J runs both sublayers side by side.

A model type without a row is read from its structure, see :mod:`adapters_pl.models.discovery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from adapters_pl.inputs.errors import UserError

Role = Literal["attn", "mlp"]
Layout = Literal["per_head", "blocks", "unknown"]

#: Stands where a module's name is not known; no module is called so.
NOWHERE = "<unknown>"


@dataclass(frozen=True)
class Sublayer:
    """One sublayer of a decoder layer, by the names of its projections relative to that layer.

    Attributes:
        inputs: the projections that read the sublayer's input (query, key, value; up). Where gate and up are
            fused (Phi-3, GLM), the one projection that holds both.
        output: the projection whose output is added to the residual stream, in some models after a norm
            (Gemma 2, GLM-4).
        gate: a gating projection of its own beside the inputs (SwiGLU). It reads the same input, but
            LLM-Adapters leaves it alone, so it is not counted among the inputs.
        problem: why the sublayer is not known; asking :meth:`Architecture.sublayer` for it is then an error.
    """

    inputs: tuple[str, ...]
    output: str
    gate: str | None = None
    problem: str | None = None

    @classmethod
    def unknown(cls, problem: str) -> Sublayer:
        """A sublayer without projections; ``problem`` says why, and what to do instead."""
        return cls((), NOWHERE, problem=problem)


@dataclass(frozen=True)
class FusedQKV:
    """Query, key and value in one projection.

    Attributes:
        module: its name relative to the decoder layer.
        layout: how the output is divided. ``per_head``: [key-value head, (its queries, its key, its value),
            head_dim], which is [head, (q, k, v), head_dim] where every head has a key of its own (BLOOM,
            GPT-NeoX, all of Falcon's variants). ``blocks``: all queries, then all keys, then all values
            (GPT-2, Phi-3). ``unknown`` where the projection was found by its name alone.
    """

    module: str
    layout: Layout

    def parts(self, config: PretrainedConfig, out_features: int) -> dict[Literal["q", "k", "v"], Tensor]:
        """The output rows of query, key and value: disjoint, ascending, together all of them.

        How many key-value heads there are follows from the size of the output, so no configuration key of one
        family alone is read: ``out_features = (heads + 2 * key_value_heads) * head_dim``.

        Args:
            config: the model's configuration.
            out_features: of the fused projection.

        Returns:
            Row indices, int64, by part: q (heads * head_dim,), k and v (key_value_heads * head_dim,).

        Raises:
            UserError: the layout is not known, or the size does not fit the configuration's heads.
        """
        if self.layout == "unknown":
            raise UserError(f"In {self.module} it is not known which rows are query, key and value; adapt it whole.")
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        groups, rest = divmod(out_features - heads * head_dim, 2 * head_dim)
        if rest or groups < 1 or heads % groups:
            raise UserError(f"{self.module} with {out_features} outputs does not fit {heads} heads of {head_dim}.")
        rows = torch.arange(out_features)
        if self.layout == "blocks":
            q, k, v = rows.split([heads * head_dim, groups * head_dim, groups * head_dim])
        else:
            grouped = rows.view(groups, heads // groups + 2, head_dim)
            q, k, v = grouped[:, :-2].flatten(), grouped[:, -2].flatten(), grouped[:, -1].flatten()
        return {"q": q, "k": k, "v": v}


@dataclass(frozen=True)
class Architecture:
    """One row: the path of the layer list, the two sublayers, and a fused projection if there is one."""

    layers: str
    attn: Sublayer
    mlp: Sublayer
    fused: FusedQKV | None = None

    def sublayer(self, role: Role) -> Sublayer:
        """The sublayer of that role; raises ``UserError`` if it could not be found in this model."""
        sublayer = self.attn if role == "attn" else self.mlp
        if sublayer.problem:
            raise UserError(sublayer.problem)
        return sublayer

    def projections(self, role: Role) -> tuple[str, ...]:
        """The projections that a placement means for methods which adapt single linear layers.

        LLM-Adapters' choice (Hu et al. 2023, section 4): query, key and value of the attention,
        up and down of the MLP.
        """
        sublayer = self.sublayer(role)
        return sublayer.inputs if role == "attn" else (*sublayer.inputs, sublayer.output)

    def parts(
        self, name: str, config: PretrainedConfig, out_features: int
    ) -> dict[Literal["q", "k", "v"], Tensor] | None:
        """The output rows of query, key and value in the projection ``name``, relative to its layer.

        ``None`` if it is none of theirs; see :meth:`FusedQKV.parts`.
        """
        if self.fused and name == self.fused.module:
            return self.fused.parts(config, out_features)
        if name not in self.attn.inputs or len(self.attn.inputs) != 3:
            return None
        every, none = torch.arange(out_features), torch.arange(0)
        q, k, v = (every if name == own else none for own in self.attn.inputs)
        return {"q": q, "k": k, "v": v}

    def decoder_layers(self, model: nn.Module) -> nn.ModuleList:
        """The list of decoder layers of ``model``; raises ``UserError`` if the row does not fit it."""
        try:
            layers = model.get_submodule(self.layers)
        except AttributeError:
            layers = None
        if not isinstance(layers, nn.ModuleList):
            raise UserError(f"{type(model).__name__} has no list of decoder layers at '{self.layers}'.")
        return layers


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_LLAMA = Architecture(
    layers="model.layers",
    attn=Sublayer(_QKV, "self_attn.o_proj"),
    mlp=Sublayer(("mlp.up_proj",), "mlp.down_proj", gate="mlp.gate_proj"),
)
_BLOOM = Architecture(
    layers="transformer.h",
    attn=Sublayer(("self_attention.query_key_value",), "self_attention.dense"),
    mlp=Sublayer(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    fused=FusedQKV("self_attention.query_key_value", "per_head"),
)
_GLM = replace(_LLAMA, mlp=Sublayer(("mlp.gate_up_proj",), "mlp.down_proj"))

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    # With a vision tower beside the decoder, which stays as it is.
    "gemma3": replace(_LLAMA, layers="model.language_model.layers"),
    "glm": _GLM,
    "glm4": _GLM,
    "phi": Architecture(
        layers="model.layers",
        attn=Sublayer(_QKV, "self_attn.dense"),
        mlp=Sublayer(("mlp.fc1",), "mlp.fc2"),
    ),
    "phi3": Architecture(
        layers="model.layers",
        attn=Sublayer(("self_attn.qkv_proj",), "self_attn.o_proj"),
        mlp=Sublayer(("mlp.gate_up_proj",), "mlp.down_proj"),
        fused=FusedQKV("self_attn.qkv_proj", "blocks"),
    ),
    "bloom": _BLOOM,
    "falcon": _BLOOM,
    "opt": Architecture(
        layers="model.decoder.layers",
        attn=Sublayer(_QKV, "self_attn.out_proj"),
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
