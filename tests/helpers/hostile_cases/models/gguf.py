"""Bases in GGUF files."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.hostile_cases.common import (
    CANARY,
    Canary,
    as_fifo,
    as_folder,
    as_link,
    base_test,
    both,
    cut,
    fit,
    flip,
    json_with,
    ours_with,
    pickled,
    place,
    put,
    remove,
)
from tests.helpers.hostile_inputs import Case

_FILE = "tiny.gguf"
PLAN = ["plan", "--model.base", _FILE, "--adapter", "LoRA"]
_TEST = [*base_test(), "--model.base", _FILE]
_FIT = [*fit("LoRA", "--adapter.rank", "2"), "--model.base", _FILE]
#: The numbers of types in a header.
_U32, _TEXT, _LIST, _U64, _F32 = 4, 8, 9, 10, 6


def prepare_gguf() -> None:
    """A file of a tiny model with a template of its own."""
    from adapters_pl.cli.main import main
    from tests.conftest import tiny_model, tiny_tokenizer
    from tests.helpers.gguf_files import write_gguf

    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    write_gguf(Path(_FILE), tiny_model("llama_gqa"), tiny_tokenizer(), "Q4_1", template)
    assert main(PLAN) == 0  # also for what it imports


def _text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _packed(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", _U64, value) if value >= 0 else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if all(isinstance(each, str) for each in value):
        return struct.pack("<IIQ", _LIST, _TEXT, len(value)) + b"".join(map(_text, value))
    return struct.pack("<IIQ", _LIST, 5, len(value)) + b"".join(struct.pack("<i", each) for each in value)


class _Parts:
    """A file in parts: its keys with their packed values, what is said of its tensors, and their data."""

    def __init__(self) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(_FILE)
        raw = Path(_FILE).read_bytes()
        self.version = 3
        self.keys: list[tuple[bytes, bytes]] = []
        for name, field in reader.fields.items():
            if not name.startswith("GGUF."):
                begin, length = field.offset, sum(int(part.nbytes) for part in field.parts)
                named = 8 + len(name.encode())
                self.keys.append((name.encode(), raw[begin + named : begin + length]))
        self.tensors = [
            [each.name.encode(), [int(n) for n in each.shape], int(each.tensor_type), int(each.field.parts[-1][0])]
            for each in reader.tensors
        ]
        self.data = raw[reader.data_offset :]
        self.counts: tuple[int, int] | None = None

    def set(self, name: str, value: Any) -> None:
        """Give a key another value; ``None`` takes it out."""
        known = [key for key, _ in self.keys]
        if value is None:
            self.keys = [(key, old) for key, old in self.keys if key != name.encode()]
        elif name.encode() in known:
            self.keys = [(key, _packed(value) if key == name.encode() else old) for key, old in self.keys]
        else:
            self.keys.append((name.encode(), _packed(value)))

    def write(self) -> None:
        tensors, keys = self.counts or (len(self.tensors), len(self.keys))
        head = b"GGUF" + struct.pack("<IQQ", self.version, tensors, keys)
        head += b"".join(_text(name) + value for name, value in self.keys)
        for name, shape, kind, where in self.tensors:
            head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, where)
        Path(_FILE).write_bytes(head + b"\0" * (-len(head) % 32) + self.data)


def _with(change: Callable[[_Parts], Any]) -> Callable[[], None]:
    def work() -> None:
        parts = _Parts()
        change(parts)
        parts.write()

    return work


def _key(name: str, value: Any) -> Callable[[], None]:
    return _with(lambda parts: parts.set(name, value))


def gguf_cases() -> Iterator[Case]:
    """Broken GGUF files."""
    yield Case("gguf/test nothing wrong", _TEST, _with(lambda parts: None), "fine")
    files: dict[str, Callable[[], Any]] = {
        "missing": remove(_FILE),
        "empty": put(_FILE, b""),
        "four bytes": put(_FILE, b"GGUF"),
        "text": put(_FILE, "hello"),
        "an LFS pointer": put(_FILE, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"),
        "a pickle": pickled(_FILE, Canary),
        "zeros": put(_FILE, b"GGUF" + b"\0" * 5000),
        "ones": put(_FILE, b"GGUF" + b"\xff" * 5000),
        "the other byte order": put(_FILE, b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + b"\0" * 900),
        **{f"cut at {share:.0%}": cut(_FILE, share) for share in (0.001, 0.01, 0.05, 0.1, 0.3, 0.9, 0.999)},
        **{f"overwritten at {share:.0%}": flip(_FILE, share) for share in (0.001, 0.01, 0.03, 0.08, 0.15, 0.5)},
        "a folder": as_folder(_FILE),
        "a folder with a base": both(remove(_FILE), lambda: shutil.copytree("base", _FILE)),
        "a pipe": as_fifo(_FILE),
        "a dangling link": as_link(_FILE, "nowhere"),
        "a link to itself": as_link(_FILE, _FILE),
        "a link to zeros": as_link(_FILE, "/dev/zero"),
        "a link without an end": as_link(_FILE, "/proc/self/pagemap"),
        "version 1": _with(lambda parts: setattr(parts, "version", 1)),
        "version huge": _with(lambda parts: setattr(parts, "version", 2**32 - 1)),
        "no keys": _with(lambda parts: parts.keys.clear()),
        "no tensors": _with(lambda parts: parts.tensors.clear()),
        "more tensors than there are": _with(lambda parts: setattr(parts, "counts", (10**5, len(parts.keys)))),
        "fewer tensors than there are": _with(lambda parts: setattr(parts, "counts", (3, len(parts.keys)))),
        "a tensor too few": _with(lambda parts: parts.tensors.pop()),
        "2**63 tensors": _with(lambda parts: setattr(parts, "counts", (2**63, len(parts.keys)))),
        "2**63 keys": _with(lambda parts: setattr(parts, "counts", (len(parts.tensors), 2**63))),
        "fewer keys than there are": _with(lambda parts: setattr(parts, "counts", (len(parts.tensors), 2))),
        "a key twice": _with(lambda parts: parts.keys.append(parts.keys[0])),
        "20,000 keys": _with(lambda parts: parts.keys.extend((b"k%d" % n, _packed(1)) for n in range(20_000))),
        "a long key": _key("k" * 70_000, 1),
        "a key that is no text": _with(lambda parts: parts.keys.append((b"\xff\xfe", _packed(1)))),
        "a key of a pathlike name": _key("../../../elsewhere/x", "y"),
        "a text of 2**60 bytes": _key("x", struct.pack("<IQ", _TEXT, 2**60)),
        "a list of 2**60 numbers": _key("x", struct.pack("<IIQ", _LIST, _U32, 2**60)),
        "a list of 2**31 texts": _key("x", struct.pack("<IIQ", _LIST, _TEXT, 2**31)),
        "lists in lists": _key("x", struct.pack("<I", _LIST) + struct.pack("<IQ", _LIST, 1) * 5000),
        "an unknown type": _key("x", struct.pack("<IQ", 99, 1)),
        "an alignment of nothing": _key("general.alignment", 0),
        "an alignment of three": _key("general.alignment", 3),
        "a huge alignment": _key("general.alignment", 2**62),
        "an alignment of text": _key("general.alignment", "x"),
        "an alignment of true": _key("general.alignment", True),
    }
    for what, spoil in files.items():
        expect = "any" if "overwritten" in what or what == "a folder with a base" else "refused"
        if what in ("a key twice", "a key of a pathlike name", "a long key", "an alignment of true"):
            expect = "any"
        of_tensors = what in ("no tensors", "fewer tensors than there are", "a tensor too few")
        planned = "any" if of_tensors else expect
        yield Case(f"gguf/plan {what}", PLAN, spoil, planned, (_FILE,), how=f"{_FILE}: {what}")
        if of_tensors or expect == "any" or what in ("a pipe", "cut at 90%", "a folder"):
            yield Case(f"gguf/test {what}", _TEST, spoil, expect, (_FILE,), how=f"{_FILE}: {what}")
    tensors: dict[str, Callable[[_Parts], Any]] = {
        "huge": lambda p: p.tensors[0].__setitem__(1, [2**40, 2**20]),
        "overflowing": lambda p: p.tensors[0].__setitem__(1, [2**32, 2**32]),
        "of no rows": lambda p: p.tensors[0].__setitem__(1, [32, 0]),
        "of no dimensions": lambda p: p.tensors[0].__setitem__(1, []),
        "of nine dimensions": lambda p: p.tensors[0].__setitem__(1, [1] * 9),
        "of another shape": lambda p: p.tensors[0].__setitem__(1, p.tensors[0][1][::-1]),
        "of three dimensions": lambda p: p.tensors[0].__setitem__(1, [*p.tensors[0][1], 1]),
        "of an unknown type": lambda p: p.tensors[0].__setitem__(2, 999),
        "of another type": lambda p: p.tensors[0].__setitem__(2, 2),
        "of whole numbers": lambda p: p.tensors[-1].__setitem__(2, 26),
        "beyond the end": lambda p: p.tensors[0].__setitem__(3, 2**60),
        "unaligned": lambda p: p.tensors[-1].__setitem__(3, p.tensors[-1][3] + 1),
        "in another": lambda p: p.tensors[1].__setitem__(3, p.tensors[0][3]),
        "without a name": lambda p: p.tensors[0].__setitem__(0, b""),
        "of another name": lambda p: p.tensors[0].__setitem__(0, b"no.such"),
        "of a name twice": lambda p: p.tensors[1].__setitem__(0, p.tensors[0][0]),
        "of a pathlike name": lambda p: p.tensors[0].__setitem__(0, b"../../../elsewhere/x"),
        "of a name that is no text": lambda p: p.tensors[0].__setitem__(0, b"\xff\xfe"),
        "of a long name": lambda p: p.tensors[0].__setitem__(0, b"x" * 70_000),
        "of a name of escapes": lambda p: p.tensors[0].__setitem__(0, b"\x1b[31mred"),
        "of layer 10**9": lambda p: p.tensors[-1].__setitem__(0, b"blk.1000000000.attn_q.weight"),
        "of NaN": lambda p: setattr(p, "data", b"\xff" * len(p.data)),
    }
    for what, change in tensors.items():
        yield Case(f"gguf/test a tensor {what}", _TEST, _with(change), "any", (_FILE,), how=f"a tensor {what}")
        if what in ("huge", "of another name", "of another shape"):
            yield Case(f"gguf/plan a tensor {what}", PLAN, _with(change), "any", (_FILE,), how=f"a tensor {what}")
    odd: dict[str, list[Any]] = {
        "general.architecture": [
            None,
            "",
            "mamba",
            "no_such",
            "../x",
            "os.system",
            "\x1b[31mred",
            3,
            ["llama"],
            b"\x08\0\0\0\x01\0\0\0\0\0\0\0\xff",
            "qwen2",
            "gpt2",
            "LLAMA",
            "x" * 10_000,
        ],
        "general.name": ["../../../elsewhere/x", "\x1b[31m", "x" * 100_000, 3],
        "general.file_type": [None, 999, "x", -1, 10**15],
        "general.base_model.0.repo_url": ["http://evil.example/x"],
        "llama.block_count": [None, 0, 1, 3, 999, 10**9, 2**63, -1, "x", 1.5, [2]],
        "llama.embedding_length": [None, 0, 33, 10**9, 2**62, -1, "x"],
        "llama.feed_forward_length": [None, 0, 47, 10**12, "x"],
        "llama.attention.head_count": [None, 0, 3, 5, 10**9, -4, "x", [4, 4]],
        "llama.attention.head_count_kv": [None, 0, 3, 8, "x", [2, 2]],
        "llama.attention.layer_norm_rms_epsilon": [None, 0.0, float("nan"), -1.0, "x"],
        "llama.attention.key_length": [0, 7, 10**9, "x"],
        "llama.context_length": [None, 0, 3, 10**18, -1, "x"],
        "llama.rope.freq_base": [None, 0.0, float("nan"), "x"],
        "llama.rope.dimension_count": [0, 7, 10**9, "x"],
        "llama.rope.scaling.type": ["none", "yarn", 3, ["x"]],
        "llama.rope.scaling.factor": [4.0, float("nan")],
        "llama.vocab_size": [None, 0, 5, 10**9, "x"],
        "llama.expert_count": [8, "x"],
        "tokenizer.ggml.model": [None, "", "llama", "bert", "no_such", "../x", "os.system", 3, ["gpt2"]],
        "tokenizer.ggml.pre": [None, "no_such", 3],
        "tokenizer.ggml.tokens": [
            None,
            [],
            ["a"],
            [1, 2, 3],
            "x",
            ["a"] * 320,
            ["../x"] * 320,
            ["\x1b"] * 320,
            ["x" * 1000] * 320,
            [f"t{n}" for n in range(100_000)],
        ],
        "tokenizer.ggml.merges": [None, [], ["a"], ["q zzz"], [1], "x", ["a b c"], [" "], ["a b"] * 100_000],
        "tokenizer.ggml.token_type": [None, [], [1], [-9] * 320, ["x"] * 320],
        "tokenizer.ggml.scores": [[], [1, 2]],
        "tokenizer.ggml.bos_token_id": [None, 10**6, -1, "x", 2**40],
        "tokenizer.ggml.eos_token_id": [None, 10**6, -1, "x", [1]],
        "tokenizer.ggml.padding_token_id": [None, 10**6, "x"],
        "tokenizer.ggml.add_bos_token": ["x", 3, False],
        "tokenizer.chat_template": ["", "{{ messages", 3],
        "quantize.imatrix.file": ["/etc/passwd"],
        "split.count": [3, "x"],
        "no.such": ["../../../elsewhere/x"],
    }
    for key, values in odd.items():
        for value in values:
            name = f"{key}={ascii(value)[:40] if not isinstance(value, list) else f'{ascii(value)[:20]}({len(value)})'}"
            spoil, how = _key(key, value), f"{key}: {ascii(value)[:60]}"
            says = () if key == "llama.context_length" else (_FILE,)  # then it is a row that is too long
            yield Case(f"gguf/test {name}", _TEST, spoil, "any", says, how=how)
            if (key.startswith("llama.") and value in (None, 0, 10**9, "x")) or key == "general.architecture":
                yield Case(f"gguf/plan {name}", PLAN, spoil, "any", (_FILE,), how=how)
    for what, template in {
        "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "sandbox import": f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}",
        "huge text": "{{ 'a' * 10**9 }}",
        "raises": "{{ raise_exception('no') }}",
    }.items():
        words = [*_TEST, "--data.template", "chat"]
        yield Case(f"gguf/test template {what}", words, _key("tokenizer.chat_template", template), "any", how=what)
    for what in ("cut at 90%", "a pipe", "no tensors", "a text of 2**60 bytes"):
        yield Case(f"gguf/fit {what}", _FIT, files[what], says=(_FILE,), how=f"{_FILE}: {what}")
    beside = {
        "a configuration": put("config.json", '{"model_type": "gpt2", "auto_map": {"AutoConfig": "evil.C"}}'),
        "code": both(
            put("config.json", '{"auto_map": {"AutoConfig": "evil.C"}}'),
            put("evil.py", f"import os\nos.mkdir({CANARY!r})\n"),
        ),
        "an adapter": lambda: [shutil.copy(file, ".") for file in Path("adapter").iterdir()],
        "base.gguf": put("base.gguf", "x"),
        "tokenizer.json": put("tokenizer.json", "x"),
    }
    for what, spoil in beside.items():
        yield Case(f"gguf/test beside {what}", _TEST, spoil, "fine", how=f"beside it lies {what}")
    for words in (
        ["--model.quantization", "4bit"],
        ["--model.base", "./tiny.gguf"],
        ["--model.base", "tiny.gguf/"],
        ["--model.base", "tiny.gguf/x"],
        ["--model.base", "nobody/x.gguf"],
        ["--model.base", "no-such.gguf"],
        ["--model.base", "smollm2"],
        ["--model.base", "smolm2"],
        ["--model.base", "TINY.GGUF"],
        ["--model.revision", "x"],
        ["--model.dtype", "int8"],
        ["--model.trust_remote_code", "true"],
        ["--model.random_init", "true"],
        ["--model.add_tokens", "[x]"],
        ["--model.attn_implementation", "someone/kernel"],
    ):
        named = {"ADAPTERS_PL_CACHE": "cache"}
        yield Case(f"gguf/test {' '.join(words)}", [*_TEST, *words], None, "any", environment=named)
    for where in ("a base recorded in a checkpoint", "a base that an adapter names"):
        name = "checkpoint" if "checkpoint" in where else "adapter"
        words = (
            ["test", "--data.limit_test", "2"]
            if name == "checkpoint"
            else ["export", "--adapter_path", "adapter", "--merge", "--out", "out"]
        )
        for base in ("tiny.gguf", "smollm2", "/proc/self/pagemap", "/dev/zero", "../elsewhere/x.gguf", "\x1b[31m.gguf"):
            spoil = (
                both(
                    ours_with(place("config", "model", "init_args", "base", value=base)),
                    ours_with(place("base", "id", value=base)),
                )
                if name == "checkpoint"
                else json_with("adapter/adapter_config.json", place("base_model_name_or_path", value=base))
            )
            yield Case(
                f"gguf/{name} names {base!a}",
                words,
                spoil,
                "any",
                how=where,
                environment={"ADAPTERS_PL_CACHE": "cache"},
            )
