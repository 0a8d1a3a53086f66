"""What is typed, and what is done to files, in the cases of every subject."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
DATA = ["--data", "InstructionJSON", "--data.path", "sums.json", "--data.limit_train", "8", "--data.val_size", "0"]
SHORT = ["--data.max_new_tokens", "3", "--data.limit_test", "2", "--trainer.max_steps", "1"]
RUN = Path("runs/lora-1")
LAST = RUN / "checkpoints" / "last.ckpt"
CANARY = "../elsewhere/canary"
TEST = ["test", *QUIET]
RESUME = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *QUIET, "--trainer.max_steps", "-1"]
RESUME += ["--trainer.limit_train_batches", "2"]
#: Text that no argument can be, of different kinds.
HUGE = "9" * 400
ADAPTERS: dict[str, list[str]] = {
    "LoRA": ["--adapter.rank", "2"],
    "SeriesAdapter": ["--adapter.bottleneck", "4"],
    "ParallelAdapter": ["--adapter.bottleneck", "4"],
    "PrefixTuning": ["--adapter.virtual_tokens", "2"],
    "PromptTuning": ["--adapter.virtual_tokens", "2"],
    "PTuning": ["--adapter.virtual_tokens", "2"],
    "IA3": [],
    "PEFTAdapter": ["--adapter.peft_config", "LoraConfig"],
}


def fit(adapter: str, *more: str) -> list[str]:
    """A training of a step."""
    return ["fit", "--model.base", "base", "--adapter", adapter, *DATA, *SHORT, *QUIET, *more]


def base_test(*more: str) -> list[str]:
    """A test of the base alone."""
    return ["test", "--model.base", "base", *DATA, "--data.test_path", "sums.json", *SHORT[:4], *QUIET, *more]


def plan(*more: str) -> list[str]:
    """A plan of the base."""
    return ["plan", "--model.base", "base", "--adapter", "LoRA", *more]


def based(base: str, *more: str) -> list[str]:
    """A training of a step in another base."""
    words = fit("LoRA", "--adapter.rank", "2", *more)
    words[words.index("base")] = base
    return words


def shortened(value: str) -> str:
    text = ascii(value)[1:-1]
    return text if len(text) <= 40 else f"{text[:24]}...({len(value)})"


# ---- what is done to files


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file, its folder before it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    Path(path).write_bytes(content)


def put(path: str | Path, content: str | bytes) -> Callable[[], None]:
    """As :func:`write`, later."""
    return lambda: write(path, content)


def cut(path: str | Path, share: float) -> Callable[[], None]:
    """Keep only the first part of a file."""
    return lambda: os.truncate(path, int(Path(path).stat().st_size * share))


def flip(path: str | Path, share: float, width: int = 64) -> Callable[[], None]:
    """Overwrite some bytes in the middle of a file."""

    def work() -> None:
        content = bytearray(Path(path).read_bytes())
        at = int(len(content) * share)
        content[at : at + width] = b"\xff" * len(content[at : at + width])
        Path(path).write_bytes(content)

    return work


def remove(path: str | Path) -> Callable[[], None]:
    """Remove a file or folder."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def as_folder(path: str | Path) -> Callable[[], None]:
    """Put a folder in the place of a file."""
    return lambda: (Path(path).unlink(missing_ok=True), Path(path).mkdir(parents=True))  # type: ignore[func-returns-value]


def as_fifo(path: str | Path) -> Callable[[], None]:
    """Put a pipe in the place of a file."""
    return lambda: (Path(path).unlink(missing_ok=True), os.mkfifo(path))  # type: ignore[func-returns-value]


def as_link(path: str | Path, to: str) -> Callable[[], None]:
    """Put a link in the place of a file or folder."""

    def work() -> None:
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(to, path)

    return work


def both(*works: Callable[[], Any]) -> Callable[[], None]:
    """One after the other."""
    return lambda: [work() for work in works] and None


def json_with(path: str | Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change what a JSON file holds."""

    def work() -> None:
        content = json.loads(Path(path).read_text())
        change(content)
        Path(path).write_text(json.dumps(content))

    return work


def place(*keys: Any, value: Any = None, drop: bool = False) -> Callable[[Any], None]:
    """Set, or with ``drop`` remove, what lies under ``keys`` of a tree."""

    def work(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        if drop and isinstance(tree, dict):
            tree.pop(keys[-1], None)
        elif drop:
            del tree[keys[-1]]
        else:
            tree[keys[-1]] = value

    return work


def stored_with(change: Callable[[dict[str, Any]], Any], path: Path = LAST) -> Callable[[], None]:
    """Change what a checkpoint holds."""

    def work() -> None:
        stored = torch.load(path, weights_only=True)
        change(stored)
        torch.save(stored, path)

    return work


def ours_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change what a checkpoint says of itself."""
    return stored_with(lambda stored: change(stored["adapters_pl"]))


def deep_in_pickle(levels: int, *keys: Any) -> Callable[[], None]:
    """Put a list of many levels into a checkpoint, which no pickler would write."""

    def work() -> None:
        stored_with(place(*keys, value="DEEPDEEPDEEP"))()
        text = b"X\x0c\x00\x00\x00DEEPDEEPDEEP"
        with zipfile.ZipFile(LAST) as old:
            files = {info.filename: old.read(info) for info in old.infolist()}
        with zipfile.ZipFile(LAST, "w", zipfile.ZIP_STORED) as new:
            for name, content in files.items():
                if name.endswith("data.pkl"):
                    assert text in content
                    content = content.replace(text, b"]" * levels + b"a" * (levels - 1))
                new.writestr(name, content)

    return work


class Canary:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (CANARY,))


class SystemCanary:
    """Starts a program where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {CANARY}",))


def pickled(path: str | Path, canary: Any) -> Callable[[], None]:
    """A bare pickle."""
    return lambda: write(path, pickle.dumps(canary()))


def torch_pickled(path: str | Path, content: Callable[[], Any]) -> Callable[[], None]:
    """A pickle in torch's zip."""
    return lambda: torch.save(content(), path)


def evil_module(name: str = "evil") -> None:
    """A module in this folder that leaves a mark, with a class of every kind."""
    write(
        f"{name}.py",
        f"import os\nos.makedirs({CANARY!r}, exist_ok=True)\nimport torch, adapters_pl\n"
        "from lightning.pytorch import Callback\nfrom lightning.pytorch.loggers import CSVLogger\n"
        "class A(adapters_pl.LoRA): pass\nclass D(adapters_pl.InstructionJSON): pass\n"
        "class M(adapters_pl.CausalLMModule): pass\nclass O(torch.optim.SGD): pass\n"
        "class S(torch.optim.lr_scheduler.StepLR): pass\nclass C(Callback): pass\nclass L(CSVLogger): pass\n",
    )


def coded_base() -> None:
    """A base of an unknown type with code of its own."""
    shutil.copytree("base", "coded")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", None]}
    json_with("coded/config.json", lambda config: config.update(model_type="coded", auto_map=auto))()
    write(
        "coded/code.py",
        f"import os\nos.makedirs({CANARY!r}, exist_ok=True)\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'coded'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n",
    )


def tensors_with(path: str | Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change the tensors of a safetensors file."""

    def work() -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(path, "pt") as opened:
            tensors, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118
        changed = change(tensors)
        if isinstance(changed, tuple):
            tensors, metadata = changed
        save_file(tensors, path, metadata or {"format": "pt"})

    return work


def header_with(path: str | Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change the header of a safetensors file and nothing else."""

    def work() -> None:
        content = Path(path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        new = json.dumps(header).encode()
        new += b" " * (-len(new) % 8)
        Path(path).write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])

    return work


def broken_weights(path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every way in which a safetensors file is none, or none of finite numbers."""
    first = lambda tensors: next(iter(tensors))  # noqa: E731
    yield "missing", remove(path)
    yield "empty", put(path, b"")
    yield "cut at 7 bytes", put(path, b"\x10\0\0\0\0\0\0")
    for share in (0.1, 0.5, 0.95):
        yield f"cut at {share:.0%}", cut(path, share)
    yield "garbage", put(path, os.urandom(5000))
    yield "a text", put(path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    yield "header of 2**63 bytes", put(path, (2**63 - 1).to_bytes(8, "little") + b"{}" * 50)
    yield (
        "header of 90 MB of blanks",
        put(path, (90 << 20).to_bytes(8, "little") + b"{" + b" " * ((90 << 20) - 2) + b"}"),
    )
    yield "header a list", put(path, (2).to_bytes(8, "little") + b"[]")
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    yield "header deep", put(path, len(deep).to_bytes(8, "little") + deep)
    yield "header not text", put(path, (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc")

    def offsets(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name]["data_offsets"] = [0, 1 << 60]

    def backwards(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name]["data_offsets"] = header[name]["data_offsets"][::-1]

    def dtype(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name]["dtype"] = "F13"

    def overlap(header: dict[str, Any]) -> None:
        names = [key for key in header if key != "__metadata__"]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    def overflow(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name]["shape"] = [1 << 40, 1 << 40]

    for what, change in (
        ("offsets beyond the end", offsets),
        ("offsets backwards", backwards),
        ("unknown number type", dtype),
        ("offsets that overlap", overlap),
        ("shape overflows", overflow),
    ):
        yield what, header_with(path, change)
    yield "NaN", tensors_with(path, lambda t: [t[first(t)].fill_(float("nan"))])
    yield "infinite", tensors_with(path, lambda t: [t[first(t)].fill_(float("inf"))])
    yield "one transposed", tensors_with(path, lambda t: t.update({first(t): torch.zeros(7, 3)}))
    yield "one a scalar", tensors_with(path, lambda t: t.update({first(t): torch.tensor(1.0)}))
    yield "one without elements", tensors_with(path, lambda t: t.update({first(t): torch.zeros(0)}))
    yield "one missing", tensors_with(path, lambda t: [t.pop(first(t))])
    yield "one more", tensors_with(path, lambda t: t.update({"surplus.weight": torch.zeros(2)}))
    yield "none", tensors_with(path, lambda t: t.clear())
    yield (
        "other names",
        tensors_with(path, lambda t: ({f"x.{key}": value for key, value in t.items()}, {"format": "pt"})),
    )
    yield "a folder", as_folder(path)
    yield "a dangling link", as_link(path, "nowhere")
    yield "a pickle", pickled(path, Canary)
    yield "a pickle in a zip", torch_pickled(path, lambda: {"a": Canary()})
