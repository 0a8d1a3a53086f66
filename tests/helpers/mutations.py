"""Changes to what the package reads, drawn by hypothesis: of trees of data, of tensors, of texts and of bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

#: Texts, numbers and keys that mean something somewhere.
WORDS = [
    "", " ", "0", "-1", "1e400", "null", "NaN", "true", "None", ".", "..", "../../x", "/etc/passwd", "/dev/zero",
    "x/y", "\0", "\n", "\udcff", "☃", "(", "(a+)+$", "(.*)*(.*)*(.*)*x!", ".*", "[", "{}", "%s", "${HOME}", "a" * 5000,
    "9" * 400, "os.system", "adapters_pl.LoRA", "adapters_pl.InstructionJSON", "torch.optim.SGD", "peft.VeraConfig",
    "LORA", "VERA", "q_proj", "all-linear", "model", "embed_tokens", "lm_head", "attn", "llama", "bloom", "gpt2", "t5",
    "float16", "auto", "nobody-here/nothing", "ddp", "cpu", "chat", "!!python/object/apply:os.system [x]",
    "model.layers.0.self_attn.q_proj",
]  # fmt: skip
NUMBERS = [-1, 0, 1, 2, 3, 7, 33, 1000, 10**5, 2**31, 2**63 - 1, 2**64, 10**12, 10**30, -(2**63) - 1]
KEYS = [
    "class_path", "init_args", "dict_kwargs", "trust_remote_code", "auto_map", "instruction", "input", "output",
    "answer", "id", "base", "adapter", "name", "rank", "r", "peft_type", "peft_config", "quantization_config", 
    "text_config", "model_type", "modules_to_save", "target_modules", "rope_scaling", "architectures", "dtype",
    "layers_to_transform",
]  # fmt: skip

texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=()), max_size=12))
keys = st.one_of(st.sampled_from(KEYS), texts)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    texts,
)


def nested(levels: int, value: Any = 1) -> Any:
    """``value`` within lists and mappings."""
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


plain = st.one_of(
    leaves,
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    ),
    st.integers(5, 60).map(nested),
)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, value: float) -> Tensor:
    return torch.full(shape, value).to(dtype)


_dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
tensors = st.builds(
    _tensor,
    st.lists(st.integers(0, 6), max_size=3).map(tuple),
    _dtypes,
    st.sampled_from([0.0, 1.0, -3.5, 1e30, float("nan"), float("inf")]),
)

_HOWS = ["replace", "replace", "replace", "delete", "rename", "nest", "add", "copy"]
_TENSOR_HOWS = ["half", "long", "bool", "complex", "cut", "grow", "flat", "nan", "scalar", "strange"]


@dataclass(frozen=True)
class Change:
    """One change of a tree.

    Attributes:
        where: the way down: a key, or a number that says which child.
        how: what is done with what is there.
        value: what it is done with.
    """

    where: tuple[int | str, ...]
    how: str
    value: Any = None


def changes(values: Any = plain, hows: list[str] = _HOWS) -> Any:
    """A few changes of a tree; mostly one, since a second often hides the first."""
    where = st.lists(st.integers(0, 60), min_size=1, max_size=7).map(tuple)
    one = st.builds(Change, where, st.sampled_from(hows), values)
    return st.lists(one, min_size=1, max_size=3)


#: Of trees that hold tensors.
tensor_changes = changes(st.one_of(plain, tensors), [*_HOWS, *_TENSOR_HOWS])


def changed(tree: Any, todo: list[Change]) -> Any:
    """A copy of ``tree`` after all changes; tensors in it are shared with the original unless they are changed."""
    holder = {"": _copied(tree)}
    for change in todo:
        _apply(holder, change)
    return holder[""]


def _copied(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _children(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []


def _apply(holder: dict[str, Any], change: Change) -> None:
    parent: Any = holder
    key: Any = ""
    for step in change.where:
        below = _children(parent[key])
        if not below or (isinstance(step, str) and step not in below):
            break
        parent, key = parent[key], step if isinstance(step, str) else below[step % len(below)]
    if change.how == "replace":
        parent[key] = change.value
    elif change.how == "delete":
        if parent is not holder:
            del parent[key]
    elif change.how == "rename":
        if isinstance(parent, dict) and parent is not holder:
            parent[change.value if isinstance(change.value, str) else f"{key}x"] = parent.pop(key)
    elif change.how == "nest":
        parent[key] = [parent[key]] if isinstance(change.value, list) else {"a": parent[key]}
    elif change.how == "add":
        if isinstance(parent[key], dict):
            parent[key][str(change.value) if not isinstance(change.value, dict) else "extra"] = change.value
        elif isinstance(parent[key], list):
            parent[key].append(change.value)
    elif change.how == "copy":  # in the place of its neighbour
        below = _children(parent)
        parent[below[(below.index(key) + 1) % len(below)]] = parent[key]
    elif isinstance(parent[key], Tensor):
        parent[key] = _retyped(parent[key], change.how)


def _retyped(tensor: Tensor, how: str) -> Tensor:
    if how in ("half", "long", "bool"):
        return getattr(tensor, how)()
    if how == "complex":
        return tensor.to(torch.complex64)
    if how == "cut":
        return tensor[:-1].clone() if tensor.ndim and len(tensor) else tensor
    if how == "grow":
        return torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
    if how == "flat":
        return tensor.flatten()
    if how == "nan":
        return torch.full_like(tensor.float(), float("nan"))
    if how == "scalar":
        return tensor.flatten()[0].clone() if tensor.numel() else tensor
    return tensor[..., None].expand(*tensor.shape, 2)


@dataclass(frozen=True)
class Spot:
    """One change of bytes or of a text.

    Attributes:
        at: where, in ten-thousandths of the length.
        how: ``flip`` writes over, ``insert`` moves the rest, ``cut`` drops the rest, ``drop`` some, ``twice`` repeats.
        value: what is written; of a text as Latin-1.
    """

    at: int
    how: str
    value: bytes = b""


spots = st.lists(
    st.builds(
        Spot,
        st.one_of(st.integers(0, 10_000), st.integers(0, 40)),
        st.sampled_from(["flip", "flip", "insert", "cut", "drop", "twice"]),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[" * 3000, b'{"a":' * 3000]),
            st.sampled_from([b"&a [*a]\n", b"'", b'"', b": ", b"\n- "]),
        ),
    ),
    min_size=1,
    max_size=3,
)


def spoilt(content: bytes, todo: list[Spot]) -> bytes:
    """``content`` after all changes."""
    for spot in todo:
        at = len(content) * spot.at // 10_000
        size = len(spot.value) or 1
        if spot.how == "flip":
            content = content[:at] + spot.value + content[at + size :]
        elif spot.how == "insert":
            content = content[:at] + spot.value + content[at:]
        elif spot.how == "cut":
            content = content[:at]
        elif spot.how == "drop":
            content = content[:at] + content[at + size :]
        elif spot.how == "twice":
            content = content[: at + 4 * size] + content[at:]
    return content


def with_header(content: bytes, todo: list[Change]) -> bytes:
    """A safetensors file with a changed header, whose stated size is right."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), todo)).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
