"""Where attention and MLP live in a model that has no row: read from its structure, by names and shapes.

What is found is said once, and what is not found is an error only when it is asked for: a model whose MLP is a
mixture of experts can still be adapted in its attention, and any model by ``target_modules``.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.inputs.errors import UserError
from adapters_pl.models.architectures import ARCHITECTURES, Architecture, FusedQKV, Role, Sublayer
from adapters_pl.models.placement import linear_sizes
from adapters_pl.models.slots import base_modules

#: The linear modules of one decoder layer, by their names relative to it: (in_features, out_features).
Linears = dict[str, tuple[int, int]]

_PROJ = r"(_?(proj|projection|lin|linear|layer))?"
_PARTS = [
    re.compile(rf"(w_?|to_|project_)?({letter}|{word}){_PROJ}", re.IGNORECASE)
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value"))
]
_FUSED = re.compile(rf"w?_?(qkv|query_key_value|c_attn|pack){_PROJ}", re.IGNORECASE)
_ATTN_OUTPUT = re.compile(rf"w?_?(o|out|output|c|attention_out){_PROJ}|dense|proj", re.IGNORECASE)
#: A part of a path that is an attention's, and one that is of an attention to another sequence.
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder", re.IGNORECASE)
_MLP = re.compile(r"(\w+_)?(mlps?|ffn?|feed_?forward)(_\w+)?", re.IGNORECASE)
_EXPERT = re.compile(r"expert", re.IGNORECASE)
#: Beside the decoder, multimodal models have lists of layers that never see a text.
_TOWER = re.compile(r"vision|visual|image|audio", re.IGNORECASE)

_announced: set[str] = set()


class _NotFound(Exception):
    """Why a sublayer was not found in a layer."""


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Where attention and MLP live in ``model``: the row of its ``config.model_type``, else what its structure shows.

    Raises:
        UserError: there is no row, and no list of decoder layers was found either.
    """
    return ARCHITECTURES.get(model.config.model_type) or discover(model)


def discover(model: PreTrainedModel) -> Architecture:
    """Find the decoder layers of ``model`` and, in each of them, attention and MLP.

    The layers are the longest list of like modules that hold linear ones. In a layer, the attention is where
    three linear modules that read the hidden size are called query, key and value, or one is called by all
    three, and its output is what comes back to the hidden size beside them. The MLP is what leads from the
    hidden size to another and back, outside the attention; of two modules that lead there, the one called a
    gate is the gate. A sublayer that is not found, or that is not the same in every layer (mixtures of experts,
    hybrids of attention and recurrence), is :meth:`Sublayer.unknown`.

    Works on the meta device. The path of a layer's adapters is left out, so it may be called again after an
    injection.

    Raises:
        UserError: there is no such list.
    """
    path, others = _layer_list(model)
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    hidden = _hidden_size(model)
    found: dict[Role, Sublayer] = {}
    for role in ("attn", "mlp"):
        try:
            if others:
                raise _NotFound(f"there are several lists of layers ({', '.join((path, *others))})")
            found[role] = _in_every_layer(role, layers, hidden)
        except _NotFound as reason:
            found[role] = Sublayer.unknown(_problem(model, role, str(reason), layers))
    attn, mlp = found["attn"], found["mlp"]
    fused = FusedQKV(attn.inputs[0], "unknown") if len(attn.inputs) == 1 else None
    architecture = Architecture(path, attn, mlp, fused)
    _announce(model, architecture)
    return architecture


def _hidden_size(model: PreTrainedModel) -> int:
    """The size of the residual stream, which the embedding's need not be (OPT-350M)."""
    if size := getattr(model.config.get_text_config(), "hidden_size", None):
        return size
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding.embedding_dim


def _layer_list(model: PreTrainedModel) -> tuple[str, list[str]]:
    """The path of the longest list of like modules with linear ones inside, and of others just as long."""
    lists: dict[str, int] = {}
    for path, module in base_modules(model):
        # A list in a list (experts, heads) is part of a layer.
        nested = re.search(r"\.\d+(\.|$)", path)
        if isinstance(module, nn.ModuleList) and len(module) and not nested and not _TOWER.search(path):
            inner = [_linears(layer) for layer in module]
            if all(linears and "" not in linears for linears in inner):
                lists[path] = len(module)
    if not lists:
        raise UserError(
            f"{type(model).__name__} (model type '{model.config.model_type}') has no row in "
            "adapters_pl.models.architectures.ARCHITECTURES and no list of decoder layers was found in it."
        )
    longest = [path for path, size in lists.items() if size == max(lists.values())]
    return longest[0], longest[1:]


def _linears(layer: nn.Module) -> Linears:
    """The linear modules of a layer by their names relative to it, in the order of their definition."""
    sizes = {path: linear_sizes(module) for path, module in base_modules(layer)}
    return {path: size for path, size in sizes.items() if size}


def _in_every_layer(role: Role, layers: nn.ModuleList, hidden: int) -> Sublayer:
    """The sublayer that all layers have under the same names."""
    find = _attention if role == "attn" else _mlp
    if role == "mlp" and any(_EXPERT.search(path) for layer in layers for path, _ in base_modules(layer)):
        raise _NotFound("it is a mixture of experts")
    found: set[Sublayer] = set()
    reasons = []
    for layer in layers:
        try:
            found.add(find(_linears(layer), hidden))
        except _NotFound as reason:
            reasons.append(reason)
    if not found:
        raise reasons[0]
    if reasons:
        raise _NotFound(f"{len(reasons)} of {len(layers)} layers have none")
    if len(found) > 1:
        raise _NotFound("the layers are not alike")
    return found.pop()


def _attention(linears: Linears, hidden: int) -> Sublayer:
    attentions = []
    for parent in dict.fromkeys(_parent(path) for path in linears):
        leaves = {path: _leaf(path) for path in linears if _parent(path) == parent and linears[path][0] == hidden}
        parts = [[path for path, leaf in leaves.items() if part.fullmatch(leaf)] for part in _PARTS]
        fused = [path for path, leaf in leaves.items() if _FUSED.fullmatch(leaf)]
        if not _CROSS.search(parent) and (len(fused) == 1 or all(len(part) == 1 for part in parts)):
            attentions.append((parent, tuple(fused or [path for part in parts for path in part])))
    if len(attentions) != 1:
        raise _NotFound(f"there are {len(attentions) or 'no'} sets of query, key and value that read the hidden size")
    parent, inputs = attentions[0]
    back = [
        path
        for path, (_, out) in linears.items()
        if out == hidden and path not in inputs and path.startswith(_attention_root(parent))
    ]
    named = [path for path in back if _ATTN_OUTPUT.fullmatch(_leaf(path))] or back
    if len(named) != 1:
        raise _NotFound(f"its output is not one of {', '.join(named)}" if named else "nothing leads out of it")
    return Sublayer(inputs, named[0])


def _attention_root(parent: str) -> str:
    """What the paths of one attention begin with: BERT's output lies beside its query, not with it."""
    parts = parent.split(".")
    for i, part in enumerate(parts):
        if _ATTENTION.search(part):
            return ".".join(parts[: i + 1]) + "."
    return f"{parent}." if parent else ""


def _mlp(linears: Linears, hidden: int) -> Sublayer:
    outside = [path for path in linears if not any(_ATTENTION.search(part) for part in path.split("."))]
    named = [path for path in outside if any(_MLP.fullmatch(part) for part in path.split(".")[:-1])]
    found = {path: linears[path] for path in named or outside}
    # Where all sizes are the same, the order of definition tells which is the last.
    square = all(size == (hidden, hidden) for size in found.values())
    back = [path for path, (_, out) in found.items() if out == hidden and (square or linears[path][0] != hidden)]
    if not back:
        raise _NotFound("nothing leads back to the hidden size")
    output = back[-1]
    inner = linears[output][0]
    inputs = [path for path in found if path != output and linears[path] in ((hidden, inner), (hidden, 2 * inner))]
    if not inputs or len(inputs) + 1 < len(found):
        raise _NotFound(f"the part of {', '.join(path for path in found if path not in (*inputs, output))} is unclear")
    if len(inputs) == 1:
        return Sublayer((inputs[0],), output)
    leaves = {path: _leaf(path).lower() for path in inputs}
    # Under LLaMA's first names w1 is the gate, w3 leads up and w2 down.
    first_names = set(leaves.values()) == {"w1", "w3"}
    gates = [path for path, leaf in leaves.items() if (leaf == "w1" if first_names else "gate" in leaf)]
    if len(inputs) != 2 or len(gates) != 1:
        raise _NotFound(f"it is unclear which of {', '.join(inputs)} is the gate")
    (up,) = (path for path in inputs if path not in gates)
    return Sublayer((up,), output, gate=gates[0])


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _problem(model: PreTrainedModel, role: Role, reason: str, layers: nn.ModuleList) -> str:
    sublayer, other = ("attention", "mlp") if role == "attn" else ("MLP", "attn")
    names = sorted({path for layer in layers for path in _linears(layer)})
    return (
        f"The {sublayer} of {type(model).__name__} was not found: {reason}. Name the modules with "
        f"--adapter.target_modules (linear modules of a layer: {', '.join(names)}) "
        f"or adapt the other sublayer with --adapter.placement {other}."
    )


def _announce(model: PreTrainedModel, architecture: Architecture) -> None:
    """Say what was found, once for every kind of model."""

    def shown(sublayer: Sublayer) -> str:
        gate = f", gate {sublayer.gate}" if sublayer.gate else ""
        return "not found" if sublayer.problem else f"{', '.join(sublayer.inputs)} -> {sublayer.output}{gate}"

    line = (
        f"No row for model type '{model.config.model_type}'; found in {architecture.layers}: "
        f"attention {shown(architecture.attn)}; MLP {shown(architecture.mlp)}"
    )
    if line not in _announced:
        _announced.add(line)
        rank_zero_info(line)
