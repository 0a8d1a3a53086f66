"""Bases in GGUF files, whose weights are dequantised when they are loaded.

transformers reads such a file with the package gguf, which believes what a file says of itself: a length in a header of
a hundred bytes is enough to fill the memory. So a header is walked and measured here first, in pieces that the file
really has, and nothing else reads a file that does not pass.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from adapters_pl.compat.gguf import forget, read_once
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import MOST_BYTES

#: The architectures of which a model comes out that computes what its original does (``tests/models``). transformers
#: knows more, of experts and of other kinds of layers; for some of them it fetches kernels from the hub and runs them.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gpt2")

#: The most keys, values in all lists together, and tensors that a header may state.
MOST_KEYS, MOST_LISTED, MOST_TENSORS = 10_000, 2_000_000, 100_000

#: Numbers of a fixed size by their type's number, in the words of ``struct``; beside them there are texts and lists.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_CUT = "its header ends before it is complete, so it is cut: copy or download it again."


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        architecture: the model's, in llama.cpp's words.
        quantisation: how its weights are stored, ``Q4_1``; ``F16`` and the like where they are not quantised.
        tensors: their names.
    """

    architecture: str
    quantisation: str
    tensors: tuple[str, ...]


def read_header(file: Path) -> Header:
    """The header of ``file``, which describes the file as it is.

    Raises:
        UserError: the file is no GGUF, or is cut; its header is beyond the limits, describes other data than the file
            holds, or an architecture or a scaling of positions that is not read; or the package gguf is missing.
    """
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(f"base '{file}': a GGUF file needs {' and '.join(missing)}: pip install 'adapters-pl[gguf]'")
    try:
        about = file.stat()
        return _read_header(str(file), about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UserError(f"base '{file}': cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"base '{file}': a name in its header is no text; take another copy.") from error
    except UserError as error:
        raise UserError(f"base '{file}': {error}") from error


@lru_cache(maxsize=16)
def _read_header(file: str, size: int, _: int) -> Header:
    """The header of a file of ``size`` bytes; read anew when the file has changed."""
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError("it does not begin as a GGUF file does; check the path.")
        if size < 24:
            raise UserError(_CUT)
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data, size).header()


class _Walk:
    """One way through a header, by pieces that lie within the file."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.place, self.listed = data, size, 4, 0

    def header(self) -> Header:
        version, tensors, keys = self.numbers("IQQ")
        if version not in (2, 3):
            raise UserError(f"it is GGUF of version {version}; versions 2 and 3 are read.")
        for what, count, most in (("keys", keys, MOST_KEYS), ("tensors", tensors, MOST_TENSORS)):
            if count > most:
                raise UserError(f"its header states {count:,} {what}, over {most:,}; take another copy.")
        settings = {self.text(): self.value() for _ in range(keys)}
        infos = [self.tensor() for _ in range(tensors)]
        self.measure(infos, settings.get("general.alignment", 32))
        architecture = settings.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"its architecture is {architecture!r:.80}, which is not read from GGUF files; these are: "
                f"{', '.join(ARCHITECTURES)}. Name the model that it was made from instead."
            )
        scaling = settings.get(f"{architecture}.rope.scaling.type", "none")
        if scaling != "none":
            raise UserError(
                f"it scales positions ({scaling!r:.80}), which transformers does not read from GGUF files; name the "
                "model that it was made from instead."
            )
        kinds = Counter[int]()
        for _, kind, length, _ in infos:
            kinds[kind] += length
        names = tuple(name for name, *_ in infos)
        return Header(architecture, _name_of(settings.get("general.file_type"), kinds), names)

    def numbers(self, form: str) -> tuple[Any, ...]:
        begin, self.place = self.place, self.place + struct.calcsize(f"<{form}")
        if self.place > min(self.size, MOST_BYTES):
            self.refuse()
        return struct.unpack_from(f"<{form}", self.data, begin)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        begin, self.place = self.place, self.place + length
        if self.place > min(self.size, MOST_BYTES):
            self.refuse()
        return self.data[begin : self.place].decode()

    def refuse(self) -> None:
        if self.place > self.size:
            raise UserError(_CUT)
        raise UserError(f"its header is longer than {MOST_BYTES >> 20} MiB; take another copy.")

    def value(self) -> Any:
        """A number or a text; of a list nothing, since nothing is asked of it."""
        (kind,) = self.numbers("I")
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise UserError(f"its header holds a value of the unknown type {kind}; take another copy.")
        kind, count = self.numbers("IQ")
        self.listed += count
        if self.listed > MOST_LISTED:
            raise UserError(f"its lists hold {self.listed:,} values, over {MOST_LISTED:,}; take another copy.")
        if kind in _NUMBERS:
            self.numbers(f"{count}{_NUMBERS[kind]}")
        elif kind == _TEXT:
            for _ in range(count):
                self.text()
        else:
            raise UserError(f"its header holds a list of values of type {kind}, which none does; take another copy.")
        return None

    def tensor(self) -> tuple[str, int, int, int]:
        """Name, kind of number, length in bytes, and place from where the data begin."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text()
        (dimensions,) = self.numbers("I")
        if not 1 <= dimensions <= 4:
            raise UserError(f"its tensor {name!r:.80} has {dimensions} dimensions; take another copy.")
        shape = self.numbers(f"{dimensions}Q")
        kind, place = self.numbers("IQ")
        if kind not in list(GGMLQuantizationType):
            raise UserError(f"its tensor {name!r:.80} is stored in a way (type {kind}) that this gguf does not know.")
        block, length = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not all(shape) or shape[0] % block:
            raise UserError(f"its tensor {name!r:.80} has the impossible shape {shape}; take another copy.")
        elements = 1
        for each in shape:
            elements *= each
        return name, kind, elements // block * length, place

    def measure(self, infos: list[tuple[str, int, int, int]], alignment: Any) -> None:
        """Refuse a file that is not as long as its tensors say, or whose tensors share their data."""
        if not (isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0):
            raise UserError(f"its general.alignment is {alignment!r:.80}, which is no power of two; take another copy.")
        begin = -(-self.place // alignment) * alignment
        end = 0
        for name, _, length, place in sorted(infos, key=lambda info: info[3]):
            if place < end:
                raise UserError(f"its tensor {name!r:.80} lies within another; take another copy.")
            end = place + length
            if begin + end > self.size:
                raise UserError(
                    f"its tensor {name!r:.80} would end at byte {begin + end:,}, and the file has {self.size:,}: it is "
                    "cut. Copy or download it again."
                )


def _name_of(file_type: Any, kinds: Counter[int]) -> str:
    """The name of a file's quantisation: as it says itself, else that of most of its bytes."""
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    try:
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return GGMLQuantizationType(kinds.most_common(1)[0][0]).name if kinds else "unknown"


@contextmanager
def alone(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``from_pretrained`` is given for ``file``: a folder with nothing else in it, and the file's name.

    Else it would take a configuration, a tokenizer or an adapter that happens to lie beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "base.gguf"
        link.symlink_to(file.resolve())
        with read_once():
            yield folder, {"gguf_file": str(link)}  # a name alone is looked for in the current folder first


def plain(model: PreTrainedModel) -> None:
    """Let a model whose weights were dequantised be a plain one, which can be saved; nothing is kept of its file."""
    quantizer: Any = model.hf_quantizer
    quantizer.remove_quantization_config(model)
    forget()
