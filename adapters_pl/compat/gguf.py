"""gguf, and how transformers reads a file by it: again for every question, with a bar for each tensor.

Most of the time that a file of 272 tensors and 49,152 tokens takes goes into reading its header four times and into
making one table of names 397 times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


@lru_cache(maxsize=1)
def _read(file: Path, _: int) -> Any:
    from gguf.gguf_reader import GGUFReader

    return GGUFReader(file)


@cache
def _names(architecture: Any, layers: int) -> Any:
    from gguf.tensor_mapping import get_tensor_name_map

    return get_tensor_name_map(architecture, layers)


@contextmanager
def read_once() -> Iterator[None]:
    """Within it transformers reads a file once, makes the table of its names once, and shows no bar."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as theirs

    def reader(path: str) -> Any:
        file = Path(path).resolve()
        return _read(file, file.stat().st_mtime_ns)

    replaced: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", reader),
        (gguf, "get_tensor_name_map", _names),
        (theirs, "tqdm", partial(theirs.tqdm, disable=True)),
    ]
    before = [getattr(holder, name) for holder, name, _ in replaced]
    for holder, name, value in replaced:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for (holder, name, _), value in zip(replaced, before, strict=True):
            setattr(holder, name, value)


def forget() -> None:
    """Let go of the file that was read last: every text in its header is an object of its own."""
    _read.cache_clear()


def without_place(tensors: Iterable[str], model: PreTrainedModel) -> list[str]:
    """The tensors of a file that ``model`` has no place for; transformers leaves them out without a word."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    with read_once():
        return sorted(set(tensors) - get_gguf_hf_weights_map(model, TensorProcessor()).keys())
