"""The cases that :mod:`tests.hostile_inputs` tries: what is typed, and what is done to the files before."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.hostile_inputs import Case

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
_DATA = ["--data", "InstructionJSON", "--data.path", "sums.json", "--data.limit_train", "8", "--data.val_size", "0"]
_SHORT = ["--data.max_new_tokens", "3", "--data.limit_test", "2", "--trainer.max_steps", "1"]
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
    return ["fit", "--model.base", "base", "--adapter", adapter, *_DATA, *_SHORT, *QUIET, *more]


def base_test(*more: str) -> list[str]:
    """A test of the base alone."""
    return ["test", "--model.base", "base", *_DATA, "--data.test_path", "sums.json", *_SHORT[:4], *QUIET, *more]


def plan(*more: str) -> list[str]:
    """A plan of the base."""
    return ["plan", "--model.base", "base", "--adapter", "LoRA", *more]


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
        if drop:
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


def tensors_with(path: str | Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change the tensors of a safetensors file."""

    def work() -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(path, "pt") as opened:
            tensors, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()
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
    yield "header of 90 MB of blanks", put(path, (90 << 20).to_bytes(8, "little") + b"{" + b" " * ((90 << 20) - 2) + b"}")
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
    yield "NaN", tensors_with(path, lambda t: t[first(t)].fill_(float("nan")) and None)
    yield "infinite", tensors_with(path, lambda t: t[first(t)].fill_(float("inf")) and None)
    yield "one transposed", tensors_with(path, lambda t: t.update({first(t): torch.zeros(7, 3)}))
    yield "one a scalar", tensors_with(path, lambda t: t.update({first(t): torch.tensor(1.0)}))
    yield "one without elements", tensors_with(path, lambda t: t.update({first(t): torch.zeros(0)}))
    yield "one missing", tensors_with(path, lambda t: t.pop(first(t)) and None)
    yield "one more", tensors_with(path, lambda t: t.update({"surplus.weight": torch.zeros(2)}))
    yield "none", tensors_with(path, lambda t: t.clear())
    yield "other names", tensors_with(
        path, lambda t: ({f"x.{key}": value for key, value in t.items()}, {"format": "pt"})
    )
    yield "a folder", as_folder(path)
    yield "a dangling link", as_link(path, "nowhere")
    yield "a pickle", pickled(path, Canary)
    yield "a pickle in a zip", torch_pickled(path, lambda: {"a": Canary()})


# ---- values of arguments

_INT = ["", "abc", "-1", "1.5", "nan", "[]", "{}", "é", HUGE]
_FLOAT = ["", "abc", "-1", "nan", "inf", "[1]", "{a: 1}"]
_BOOL = ["", "maybe", "2", "[]", "null"]
_WORD = ["", "no-such", "[]", "{}", "3", "null", "../../x"]
_MODULES = ["", "[]", "no_such", "(", "[3]", "{}", "[null]", "../x", "☃"]
_LAYERS = ["", "x", "99", "-9", "3-1", "[0, 99]", "[x]", "1.5", "{}"]
_NAME = ["", ".", "a.b", "a/b", "../x", "[]", "é é", "{}", "a" * 5000]
_MODULE_NAMES = ["", "[no_such]", "3", "{}", "[[]]"]

#: By key: values, and those among them that are in fact fine or need not be refused.
_ADAPTER_VALUES: dict[str, dict[str, list[str]]] = {
    "LoRA": {
        "rank": [*_INT, "0", "null", "true"],
        "alpha": [*_FLOAT, "0", "null"],
        "dropout": [*_FLOAT, "1.0", "1.1", "null"],
        "placement": _WORD,
        "target_modules": [*_MODULES, r"(.*)*(.*)*(.*)*x!", r"(\w+\.?)+!"],
        "rslora": _BOOL,
        "dora": ["", "maybe"],
        "init": _WORD,
        "bias": _WORD[:3],
        "parts": ["", "[]", "[z]", "q", "{}"],
        "rank_pattern": ["", "[]", "{a: b}", "{a: -1}", "{a: 0}", "{'(': 2}", "{q_proj: 1.5}", "{3: 2}"],
        "alpha_pattern": ["{a: b}", "{a: nan}", "{'(': 2}", "{q_proj: -1}"],
        "lr_ratio": [*_FLOAT, "0"],
        "name": _NAME,
        "layers": _LAYERS,
        "exclude": ["", "(", "[3]", ".*", "{}"],
        "modules_to_save": _MODULE_NAMES,
    },
    "SeriesAdapter": {
        "bottleneck": [*_INT, "0"],
        "reduction_factor": [*_FLOAT, "0", "1e-300"],
        "family": _WORD[:4],
        "non_linearity": _WORD,
        "dropout": ["-0.1", "1", "nan"],
        "scaling": ["", "nan", "[]", "no-such"],
        "init": _WORD[:3],
        "layer_norm": _BOOL[:2],
        "placement": _WORD[:2],
        "target_modules": _MODULES[:4],
        "layers": _LAYERS[:3],
    },
    "ParallelAdapter": {
        "bottleneck": ["", "-1", "0", "1.5", HUGE],
        "reduction_factor": ["0", "-2", "inf"],
        "family": _WORD[1:3],
        "non_linearity": _WORD[1:3],
        "scaling": ["inf", "{}"],
        "target_modules": ["[q_proj, no_such]", "("],
        "name": ["", "a.b"],
    },
    "PrefixTuning": {
        "virtual_tokens": [*_INT, "0", "100000"],
        "projection": ["", "-1", "0", "x", "1.5"],
        "init_text": ["", "[]", "3", "x " * 20000],
        "name": ["", "a.b", "../x"],
    },
    "PromptTuning": {
        "virtual_tokens": ["", "-1", "0", "x", "nan", "100000"],
        "init": _WORD[:3],
        "init_text": ["", "{}", "[1]"],
        "name": ["", "a.b"],
    },
    "PTuning": {
        "virtual_tokens": ["", "-1", "0", "x"],
        "encoder": _WORD[:3],
        "encoder_hidden": ["", "-1", "0", "x"],
        "lstm_layers": ["", "-1", "0", "x"],
        "lstm_dropout": ["-1", "2", "nan", "x"],
    },
    "IA3": {
        "placement": _WORD[:3],
        "target_modules": _MODULES[:5],
        "feedforward_modules": ["no_such", "(", "[3]", "[q_proj]"],
        "layers": _LAYERS[:4],
        "modules_to_save": ["[no_such]", "[lm_head, lm_head]"],
    },
    "PEFTAdapter": {
        "peft_config": [
            "",
            "no_such",
            "[]",
            "{}",
            "{class_path: os.system, init_args: {}}",
            "{class_path: peft.LoraConfig, init_args: {rank: 3}}",
            "{class_path: peft.LoraConfig, init_args: {r: x}}",
            "{class_path: peft.LoraConfig, init_args: {r: -1}}",
            "{class_path: peft.LoraConfig, init_args: {target_modules: '('}}",
            "{class_path: peft.LoraConfig, init_args: {init_lora_weights: no_such}}",
            "{class_path: peft.PrefixTuningConfig, init_args: {num_virtual_tokens: -3}}",
            "{class_path: peft.PeftConfig, init_args: {}}",
        ],
        "placement": ["no-such"],
        "layers": ["99"],
        "name": ["", "a.b"],
    },
}

_MODEL_VALUES: dict[str, list[str]] = {
    "base": [
        "",
        "no_such_folder",
        "./no_such",
        "/no/such",
        "../..",
        "sums.json",
        "runs",
        "runs/lora-1",
        "[]",
        "null",
        "é",
        "\udcff",
        "nobody-here/nothing-at-all",
        "https://example.org/model",
        "a" * 5000,
        "base/config.json",
        "base\n",
        "~nobody/x",
    ],
    "revision": ["", "[]", "../x", "\udcff"],
    "dtype": ["", "float8", "int8", "[]", "null", "torch.float32"],
    "attn_implementation": ["", "no_such", "someone/kernel", "flash_attention_2", "[]", "../x"],
    "quantization": ["", "3bit", "4", "[]", "true"],
    "activation_checkpointing": _BOOL,
    "trust_remote_code": ["", "maybe", "[]"],
    "random_init": ["", "maybe"],
    "lr": [*_FLOAT, "0", "1e400"],
    "weight_decay": _FLOAT,
    "warmup_steps": [*_INT[:6], HUGE],
    "monitor": ["", "loss", "[]", "null"],
    "test_base": _BOOL[:3],
    "add_tokens": ["", "x", "[3]", "['']", "[x, x]", "[null]", "{}"],
}

_DATA_VALUES: dict[str, list[str]] = {
    "root": ["/no/such", "sums.json", "[]"],
    "files": ["{no_such: x}", "[]", "x", "{ft-training_set/math_10k.json: nowhere.json}"],
    "template": ["", "no_such", "[]", "chat", "../x", "é"],
    "system": ["[]", "{}"],
    "thinking": ["maybe", "[]"],
    "protocol": ["", "no_such", "[]"],
    "shots": [*_INT[:6], "1000"],
    "samples": ["", "0", "-1", "x", "1.5", "null"],
    "temperature": [*_FLOAT, "1e-320"],
    "batch_size": [*_INT, "0", "null"],
    "eval_batch_size": ["", "0", "-1", "x", "1.5", "nan"],
    "cutoff": [*_INT[:8], "0", "7"],
    "on_overflow": _WORD[:4],
    "packing": _BOOL,
    "train_on_prompt": ["", "maybe"],
    "val_size": [*_INT[:6], HUGE],
    "limit_train": ["", "0", "-1", "x", "1.5"],
    "limit_test": ["", "0", "-1", "x"],
    "test_sets": ["", "[]", "[no_such]", "x", "[gsm8k]", "{}"],
    "skip_missing": ["", "maybe"],
    "contamination": _WORD[:3],
    "max_new_tokens": ["", "0", "-1", "x", "nan"],
    "num_workers": ["", "-1", "x", "1.5", "nan", HUGE],
    "seed": ["", "-1", "x", "1.5", HUGE],
    "path": [
        "",
        "nowhere.json",
        "runs",
        "[]",
        "[nowhere.json, sums.json]",
        "{}",
        "null",
        "\udcff",
        "é.json",
        "/dev/null",
        "/proc/self/mem",
        "https://example.org/rows.json",
        "s3://bucket/rows.json",
        "file:///etc/passwd",
        "nobody-here/nothing-at-all",
        "a" * 5000,
        "sums.json/x",
        "[sums.json, sums.json]",
    ],
    "test_path": ["nowhere.json", "runs", "/dev/null", "nobody-here/nothing-at-all"],
    "columns": ["{no_such: x}", "{instruction: no_such}", "[]", "x", "{instruction: [1]}", "{instruction: null}"],
    "weights": ["[]", "[0]", "[-1]", "[nan]", "[inf]", "[1, 2]", "x", "{}", "[1e18]"],
    "hub_config": ["[]"],
    "train_split": ["[]"],
    "answer_kind": _WORD[:3],
}

_TRAINER_VALUES: dict[str, list[str]] = {
    "max_steps": ["", "0", "-2", "x", "1.5", "nan", "null"],
    "max_epochs": ["", "0", "-2", "x", "1.5"],
    "max_time": ["", "x", "{days: x}", "-1", "[]", "00:00:00:00"],
    "min_epochs": ["x", "-1"],
    "min_steps": ["x", "-1"],
    "precision": ["", "weird", "7", "[]", "16"],
    "accelerator": ["", "no_such", "tpu", "gpu", "[]", "mps"],
    "devices": ["", "0", "-1", "x", "[]", "[0, 0]", "1000", "1.5", "null"],
    "num_nodes": ["0", "-1", "x"],
    "strategy": ["", "no_such", "fsdp", "deepspeed", "[]", "{}"],
    "val_check_interval": ["0", "-1", "x", "1.5", "nan", "100000"],
    "check_val_every_n_epoch": ["0", "-1", "x", "null"],
    "accumulate_grad_batches": ["", "0", "-1", "x", "1.5", "{}"],
    "gradient_clip_val": ["", "-1", "x", "nan", "inf"],
    "gradient_clip_algorithm": ["no_such", "[]"],
    "log_every_n_steps": ["", "0", "-1", "x", "1.5"],
    "limit_train_batches": ["", "0", "-1", "x", "nan", "1.5"],
    "limit_val_batches": ["-1", "x", "1.5"],
    "num_sanity_val_steps": ["-2", "x"],
    "overfit_batches": ["-1", "x", "2.5", "1"],
    "fast_dev_run": ["x", "-1", "1"],
    "deterministic": ["x", "warn"],
    "benchmark": ["x"],
    "inference_mode": ["x"],
    "detect_anomaly": ["x"],
    "profiler": ["no_such", "simple", "[]", "{class_path: os.system}"],
    "logger": ["no_such", "x.y", "[]", "{class_path: os.system}"],
    "callbacks": ["no_such", "x.y", "[no_such]", "{class_path: os.system}", "EarlyStopping", "[3]"],
    "plugins": ["no_such", "[3]", "{class_path: os.system}"],
    "default_root_dir": ["sums.json", "sums.json/x", "/proc/x", "[]", "runs/lora-1", "é", "a" * 300],
    "barebones": ["true", "x"],
    "use_distributed_sampler": ["x"],
    "reload_dataloaders_every_n_epochs": ["-1", "x", "1"],
    "sync_batchnorm": ["x"],
    "enable_checkpointing": ["x", "false"],
    "enable_model_summary": ["x"],
    "enable_progress_bar": ["x"],
}

#: Values above that are fine, or of which either end is a good one.
_FINE = {
    "LoRA.rank=true",
    "LoRA.rank=" + HUGE,
}


def _short(value: str) -> str:
    text = ascii(value)[1:-1]
    return text if len(text) <= 40 else f"{text[:24]}...({len(value)})"


def value_cases() -> Iterator[Case]:
    """A wrong value for every argument; whether a value is wrong is not said here, what it ends in is."""
    for adapter, keys in _ADAPTER_VALUES.items():
        for key, values in keys.items():
            for value in values:
                words = fit(adapter, *ADAPTERS[adapter], f"--adapter.{key}={value}")
                yield Case(f"adapter/{adapter}.{key}={_short(value)}", words, expect="any", says=(key,))
    for key, values in _MODEL_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--model.{key}={value}")
            yield Case(f"model/{key}={_short(value)}", words, expect="any", says=(f"{key}|{re.escape(value)[:30]}",))
    for key, values in _DATA_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--data.{key}={value}")
            said = f"{key}|{re.escape(value.strip('[]'))[:30]}" if value.strip("[]{}") else key
            yield Case(f"data/{key}={_short(value)}", words, expect="any", says=(said,))
    for key in ("train_rows", "test_rows", "problem_seed", "shuffle_answers"):
        for value in ("", "-1", "0", "x", "1.5", "nan"):
            words = fit("LoRA", "--adapter.rank", "2")
            at = words.index("--data")
            words = [*words[:at], "--data", "WordProblems", *words[at + 4 :]]
            words += ["--data.train_rows", "8", "--data.test_rows", "2", f"--data.{key}={value}"]
            yield Case(f"data/WordProblems.{key}={_short(value)}", words, expect="any", says=(key,))
    for key, values in _TRAINER_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--trainer.{key}={value}")
            yield Case(f"trainer/{key}={_short(value)}", words, expect="any", says=(f"{key}|{re.escape(value)[:30]}",))
    for value in ("", "abc", "-1", "1.5", "nan", "[]", HUGE, "4294967296", "null", "true"):
        words = fit("LoRA", "--adapter.rank", "2", f"--seed_everything={value}")
        yield Case(f"trainer/seed_everything={_short(value)}", words, expect="any", says=("seed",))
    for words in (
        ["--optimizer", "Foo"],
        ["--optimizer", ""],
        ["--optimizer", "[]"],
        ["--optimizer", "torch.optim.NoSuch"],
        ["--optimizer", "os.system"],
        ["--optimizer", "SGD"],
        ["--optimizer", "SGD", "--optimizer.lr", "x"],
        ["--optimizer", "SGD", "--optimizer.lr", "-1"],
        ["--optimizer", "SGD", "--optimizer.lr", "nan"],
        ["--optimizer", "SGD", "--optimizer.no_such", "1"],
        ["--optimizer", "Adam", "--optimizer.betas", "[2, 3]"],
        ["--optimizer", "LBFGS"],
        ["--optimizer", "SparseAdam"],
        ["--optimizer.lr", "1"],
        ["--lr_scheduler", "StepLR"],
        ["--lr_scheduler", "Foo"],
        ["--lr_scheduler", ""],
        ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "0"],
        ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "x"],
        ["--lr_scheduler", "OneCycleLR"],
        ["--lr_scheduler", "LambdaLR"],
        ["--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitor", "no_such"],
        ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "0"],
        ["--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "nan"],
        ["--lr_scheduler", "SequentialLR"],
    ):
        said = "|".join(re.escape(part) for word in words for part in word.strip("-").split(".") if len(part) > 2)
        yield Case(f"optimizer/{' '.join(words)}", fit("LoRA", "--adapter.rank", "2", *words), expect="any", says=(said,))


def key_cases() -> Iterator[Case]:
    """Keys that are not there, or are typed wrongly."""
    for word in (
        "--adapter.rnk=2",
        "--adapter.r=2",
        "--adapter.init_args.rnk=2",
        "--adapter.class_path=LoRa",
        "--adapter.class_path=",
        "--modle.base=base",
        "--model.bse=base",
        "--model=NoSuch",
        "--model=adapters_pl.LoRA",
        "--model=os.system",
        "--data.pth=sums.json",
        "--data=NoSuch",
        "--data=os.path",
        "--data=",
        "--trainer.max_step=1",
        "--trainer.max_stepss=1",
        "--trainer=1",
        "--trainer=[]",
        "--trainr.max_steps=1",
        "--lr=3",
        "--foo",
        "--foo=bar",
        "--",
        "-x",
        "---",
        "stray",
        "=",
        "",
        "--=3",
        "--.=3",
        "--model..base=x",
        "--adapter",
        "--model.lr",
        "--ckpt_path",
        "--ckpt_path=",
        "--ckpt_path=nowhere",
        "--ckpt_path=best",
        "--ckpt_path=runs",
        "--ckpt_path=sums.json",
        "--ckpt_path=[]",
        "--ckpt_path=\udcff",
        "--adapter_path=",
        "--adapter_path=nowhere",
        "--adapter_path=base",
        "--adapter_path=sums.json",
        "--adapter_path=nobody-here/nothing-at-all",
        "--config",
        "--config=",
        "--config=no_such",
        "--config=/",
        "--print_config=no_such",
        "--model.help=NoSuch",
        "--data.help=NoSuch",
        "--adapter+=LoRA",
        "--adapter+=NoSuch",
        "--adapter=[LoRA,LoRA]",
        "--adapter=[]",
        "--adapter=[LoRA, 3]",
        "--adapter={class_path: LoRA, init_args: {rank: [}}",
        "--adapter={class_path: LoRA, class_path: IA3}",
        "--adapter=!!python/object/apply:os.system ['touch ../elsewhere/canary']",
        "--adapter=&a [*a]",
        "--adapter=" + "[" * 3000,
        "--adapter=" + "{a: " * 3000,
        "--data.path=" + "[" * 3000 + "]" * 3000,
        "--data.columns=" + "{a: " * 3000 + "1" + "}" * 3000,
    ):
        yield Case(f"keys/{_short(word)}", fit("LoRA", "--adapter.rank", "2", word), expect="any")
    for words in (
        [],
        ["no_such"],
        ["fitt"],
        ["--no_such"],
        [""],
        ["\udcff"],
        ["fit"],
        ["fit", "--debug"],
        ["fit", "--adapter", "LoRA"],
        ["fit", "--data", "InstructionJSON"],
        ["fit", "--data", "gsm8k", "--adapter", "LoRA"],
        ["test", "--data", "gsm8k"],
        ["test", "--no_such", "1"],
        ["test", "--ckpt_path"],
        ["test", "--ckpt_path", "null"],
        ["test", "--overwrite=maybe"],
        ["validate", "--no_such", "1"],
        ["validate", "--overwrite"],
        ["predict"],
        ["predict", "--data.test_path", "nowhere.json"],
        ["predict", "--data.test_path", "runs"],
        ["predict", "--data.test_path", ""],
        ["predict", "--data.test_path", "sums.json", "--data.columns", "{instruction: no_such}"],
        ["version"],
        ["fit", "--version"],
        ["--help", "fit"],
        ["help"],
        ["recipes"],
        ["recipes", "x"],
        ["recipes", "--help"],
        ["recipes", "--config", "x"],
        *([command, "--help"] for command in ("fit", "validate", "test", "predict", "plan", "export", "data", "compare")),
        ["fit", "--help", "no_such"],
        ["fit", "--adapter.help", "LoRA"],
        ["fit", "--print_config"],
        ["plan", "--print_config"],
        ["test", "--print_config"],
    ):
        asks = any(word in ("--help", "help", "--print_config", "--adapter.help") for word in words)
        expect = "fine" if asks and "no_such" not in words else "any"
        yield Case(f"words/{' '.join(map(_short, words)) or 'none' * (not words)}", words, expect=expect)


def config_cases() -> Iterator[Case]:
    """Broken configuration files."""
    whole = "model:\n  base: base\nadapter: LoRA\n"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    merges = "a0: &a0 {k0: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 20)}]\n  k{n}: 1\n" for n in range(1, 8)
    )
    kinds: dict[str, Any] = {
        "empty": put("c.yaml", ""),
        "blank": put("c.yaml", "\n\n"),
        "comment": put("c.yaml", "# nothing\n"),
        "a list": put("c.yaml", "- 1\n- 2\n"),
        "a scalar": put("c.yaml", "hello\n"),
        "a number": put("c.yaml", "3\n"),
        "null": put("c.yaml", "null\n"),
        "JSON": put("c.yaml", '{"model": {"base": "base"}, "adapter": "NoSuch"}'),
        "two documents": put("c.yaml", f"{whole}---\n{whole}"),
        "a key twice": put("c.yaml", f"{whole}adapter: IA3\n"),
        "a key twice below": put("c.yaml", "model:\n  base: base\n  base: other\n"),
        "tabs": put("c.yaml", "model:\n\tbase: base\n"),
        "an open bracket": put("c.yaml", f"{whole}x: [1, 2\n"),
        "an open quote": put("c.yaml", f"{whole}x: 'abc\n"),
        "bad indentation": put("c.yaml", "model:\n  base: base\n lr: 3\n"),
        "unknown alias": put("c.yaml", "model: *nothing\n"),
        "aliases that grow": put("c.yaml", bomb),
        "aliases that grow in model": put("c.yaml", bomb + "model: {base: *a9}\n"),
        "merges that grow": put("c.yaml", merges),
        "an anchor in itself": put("c.yaml", "model: &a\n  base: *a\n"),
        "a list in itself": put("c.yaml", "adapter: &a [*a]\n"),
        "a mapping as key": put("c.yaml", "? {a: 1}\n: 2\n"),
        "a list as key": put("c.yaml", "? [1, 2]\n: 2\n"),
        "number keys": put("c.yaml", "1: 2\n3.5: 4\nnull: 5\ntrue: 6\n"),
        "merge of a scalar": put("c.yaml", "model:\n  <<: 3\n"),
        "os.system tag": put("c.yaml", f"model: !!python/object/apply:os.system ['touch {CANARY}']\n"),
        "os.mkdir tag": put("c.yaml", f"x: !!python/object/apply:os.mkdir ['{CANARY}']\n"),
        "python name tag": put("c.yaml", "model: !!python/name:os.system\n"),
        "module tag": put("c.yaml", "model: !!python/module:this\n"),
        "unknown tag": put("c.yaml", "model: !mine {a: 1}\n"),
        "binary tag": put("c.yaml", "model: !!binary 'xx=='\n"),
        "set tag": put("c.yaml", "model: !!set {a, b}\n"),
        "timestamp": put("c.yaml", "model: 2001-13-99\n"),
        "date": put("c.yaml", "model: {base: 2001-01-01}\n"),
        "deep lists": put("c.yaml", "x: " + "[" * 100_000 + "]" * 100_000),
        "deep mappings": put("c.yaml", "x: " + "{a: " * 100_000 + "1" + "}" * 100_000),
        "deep 900": put("c.yaml", "x: " + "[" * 900 + "]" * 900),
        "deep data": put("c.yaml", f"{whole}data: " + "{a: " * 200 + "1" + "}" * 200),
        "50 MB of one line": put("c.yaml", "x: " + "a" * (50 << 20)),
        "5 MB of keys": put("c.yaml", "".join(f"k{n}: {n}\n" for n in range(100_000))),
        "binary": put("c.yaml", bytes(range(256)) * 20),
        "zeros": put("c.yaml", b"\0" * 5000),
        "UTF-16": put("c.yaml", whole.encode("utf-16")),
        "Latin-1": put("c.yaml", "model: {base: grün}\n".encode("latin-1")),
        "with BOM": put("c.yaml", whole.encode("utf-8-sig")),
        "control characters": put("c.yaml", f"{whole}x: \x07\x1b[31m\n"),
        "lone surrogate": put("c.yaml", 'model: {base: "\\ud800"}\n'),
        "a folder": as_folder("c.yaml"),
        "a pipe": as_fifo("c.yaml"),
        "a dangling link": as_link("c.yaml", "nowhere"),
        "a link to itself": as_link("c.yaml", "c.yaml"),
        "a checkpoint": lambda: shutil.copy(LAST, "c.yaml"),
        "a picture": put("c.yaml", b"\x89PNG\r\n\x1a\n" + os.urandom(900)),
        "includes itself": put("c.yaml", f"config: c.yaml\n{whole}"),
        "ckpt_path list": put("c.yaml", f"ckpt_path: [a]\n{whole}"),
        "ckpt_path number": put("c.yaml", f"ckpt_path: 3\n{whole}"),
        "adapter_path mapping": put("c.yaml", "adapter_path: {a: b}\nmodel: {base: base}\n"),
        "root a list": put("c.yaml", f"trainer: {{default_root_dir: [a]}}\n{whole}"),
        "root a number": put("c.yaml", f"trainer: {{default_root_dir: 3}}\n{whole}"),
        "trainer null": put("c.yaml", f"trainer: null\n{whole}"),
        "trainer a list": put("c.yaml", f"trainer: [1]\n{whole}"),
        "data a number": put("c.yaml", f"data: 3\n{whole}"),
        "data path a number": put("c.yaml", f"data: {{class_path: InstructionJSON, init_args: {{path: 3}}}}\n{whole}"),
        "model a list": put("c.yaml", "model: [base]\n"),
        "adapter a number": put("c.yaml", "model: {base: base}\nadapter: 3\n"),
        "adapter class a list": put("c.yaml", "model: {base: base}\nadapter: {class_path: [LoRA]}\n"),
        "adapter arguments a list": put("c.yaml", "model: {base: base}\nadapter: {class_path: LoRA, init_args: [1]}\n"),
        "adapter arguments a text": put("c.yaml", "model: {base: base}\nadapter: {class_path: LoRA, init_args: x}\n"),
        "a class of os": put("c.yaml", "model: {base: base}\nadapter: {class_path: os.system, init_args: {command: ls}}\n"),
        "a class of this": put("c.yaml", "model: {base: base}\nadapter: {class_path: this.d}\n"),
        "a callback of os": put(
            "c.yaml", f"{whole}trainer: {{callbacks: [{{class_path: os.system, init_args: {{command: 'touch {CANARY}'}}}}]}}\n"
        ),
        "a logger of subprocess": put(
            "c.yaml", f"{whole}trainer: {{logger: {{class_path: subprocess.Popen, init_args: {{args: [touch, '{CANARY}']}}}}}}\n"
        ),
        "remote code": put("c.yaml", "model: {base: base, trust_remote_code: true}\nadapter: LoRA\n"),
    }
    data = [*_DATA, *_SHORT, *QUIET]
    for what, spoil in kinds.items():
        yield Case(f"config/{what}", ["fit", "--config", "c.yaml", *data], spoil, "any", how=f"c.yaml: {what}")
    for what in ("a list", "a key twice", "os.mkdir tag", "aliases that grow", "deep lists", "a pipe", "UTF-16", "a folder"):
        yield Case(f"config/plan {what}", ["plan", "--config", "c.yaml"], kinds[what], "any", how=f"c.yaml: {what}")
        yield Case(f"config/test {what}", [*TEST, "--config", "c.yaml"], kinds[what], "any", how=f"c.yaml: {what}")


def checkpoint_cases() -> Iterator[Case]:
    """Broken checkpoints: the file, what it says of itself, and what Lightning keeps in it."""
    path = str(LAST)
    files: dict[str, Callable[[], Any]] = {
        "empty": put(path, b""),
        **{f"cut at {share:.0%}": cut(path, share) for share in (0.01, 0.3, 0.6, 0.9, 0.999)},
        **{f"overwritten at {share:.0%}": flip(path, share) for share in (0.0, 0.1, 0.3, 0.5, 0.8, 0.97)},
        "garbage": put(path, os.urandom(4000)),
        "text": put(path, "hello\n"),
        "zip of a text": lambda: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"),
        "zip that climbs": lambda: zipfile.ZipFile(path, "w").writestr(f"../{CANARY}", "hello"),
        "empty zip": lambda: zipfile.ZipFile(path, "w").close(),
        "canary": pickled(path, Canary),
        "canary by os.system": pickled(path, SystemCanary),
        "canary in a zip": torch_pickled(path, lambda: {"adapters_pl": Canary(), "state_dict": {}}),
        "canary in the state": stored_with(lambda stored: stored.update(state_dict=Canary())),
        "canary in callbacks": stored_with(lambda stored: stored["callbacks"].update(x=Canary())),
        "a module": torch_pickled(path, lambda: torch.nn.Linear(2, 2)),
        "a list": torch_pickled(path, lambda: [1, 2]),
        "a tensor": torch_pickled(path, lambda: torch.zeros(3)),
        "null": torch_pickled(path, lambda: None),
        "of another tool": torch_pickled(path, lambda: {"state_dict": {"a": torch.zeros(2)}, "epoch": 1}),
        "safetensors": lambda: shutil.copy("adapter/adapter_model.safetensors", path),
        "a folder": as_folder(path),
        "a pipe": as_fifo(path),
        "a dangling link": as_link(path, "nowhere"),
        "a link to itself": as_link(path, "last.ckpt"),
        "deep list in config": deep_in_pickle(100_000, "adapters_pl", "config"),
        "deep list in loops": deep_in_pickle(50_000, "loops"),
        "deep list in adapters": deep_in_pickle(900, "adapters_pl", "adapters"),
        "legacy format": lambda: torch.save(
            torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False
        ),
    }
    for what, spoil in files.items():
        expect = "any" if what == "legacy format" or "overwritten" in what else "refused"
        yield Case(f"ckpt/test {what}", TEST, spoil, expect, ("last.ckpt",) if expect == "refused" else (), how=what)
    for what in ("empty", "cut at 60%", "canary", "canary in callbacks", "a list", "deep list in loops", "a folder"):
        yield Case(f"ckpt/fit {what}", RESUME, files[what], "any", ("last.ckpt",), how=what)
        yield Case(f"ckpt/export {what}", ["export", "--out", "out"], files[what], "any", ("last.ckpt",), how=what)
    values: dict[str, Any] = {
        "null": None,
        "int": -7,
        "str": "x",
        "list": [1],
        "dict": {"a": 1},
        "huge": "x" * 2_000_000,
        "tensor": torch.zeros(3),
        "nan": float("nan"),
    }
    keys: list[tuple[Any, ...]] = [
        ("format",),
        ("base",),
        ("base", "id"),
        ("base", "revision"),
        ("base", "fingerprint"),
        ("base", "fingerprint", "structure"),
        ("base", "fingerprint", "weights"),
        ("base", "fingerprint", "sample"),
        ("base", "fingerprint", "dtype"),
        ("base", "quantization"),
        ("add_tokens",),
        ("adapters",),
        ("adapters", 0),
        ("adapters", 0, "class_path"),
        ("adapters", 0, "init_args"),
        ("adapters", 0, "init_args", "rank"),
        ("config",),
        ("config", "model"),
        ("config", "model", "class_path"),
        ("config", "model", "init_args"),
        ("config", "model", "init_args", "base"),
        ("config", "model", "init_args", "lr"),
        ("config", "model", "init_args", "add_tokens"),
        ("config", "adapter"),
        ("config", "adapter", "class_path"),
        ("config", "adapter", "init_args"),
        ("config", "adapter", "init_args", "rank"),
        ("config", "adapter", "init_args", "target_modules"),
        ("config", "data"),
        ("config", "data", "class_path"),
        ("config", "data", "init_args"),
        ("config", "data", "init_args", "path"),
        ("config", "data", "init_args", "batch_size"),
        ("config", "trainer"),
        ("config", "trainer", "max_steps"),
        ("config", "trainer", "precision"),
        ("config", "trainer", "callbacks"),
        ("config", "seed_everything"),
    ]
    order = list(values)
    for number, key in enumerate(keys):
        # Every key loses its value, and takes some of the others in turn.
        chosen = ["missing", *dict.fromkeys(["null", *(order[(number + step) % len(order)] for step in (1, 3, 5))])]
        for kind in chosen:
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            how = f"adapters_pl.{'.'.join(map(str, key))}: {kind}"
            words = RESUME if "trainer" in key or "seed_everything" in key else TEST
            yield Case(f"recorded/{'.'.join(map(str, key))} {kind}", words, ours_with(change), "any", how=how)
    for key in (("adapters",), ("base", "id"), ("base", "fingerprint"), ("adapters", 0, "init_args", "rank")):
        for kind in ("missing", "null", "list", "str"):
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            name = ".".join(map(str, key))
            yield Case(f"recorded/export {name} {kind}", ["export", "--out", "out"], ours_with(change), "any", how=name)
    tampered: dict[str, Callable[[dict[str, Any]], Any]] = {
        "state NaN": lambda s: next(iter(s["state_dict"].values())).fill_(float("nan")),
        "state infinite": lambda s: next(iter(s["state_dict"].values())).fill_(float("inf")),
        "state one other shape": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): torch.zeros(3, 5)}),
        "state one scalar": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): torch.tensor(1.0)}),
        "state one int": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.int64)}
        ),
        "state one bool": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.bool)}
        ),
        "state one complex": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.complex64)}
        ),
        "state one missing": lambda s: s["state_dict"].pop(next(iter(s["state_dict"]))),
        "state one more": lambda s: s["state_dict"].update({"model.surplus": torch.zeros(2)}),
        "state one more outside": lambda s: s["state_dict"].update({"surplus": torch.zeros(2)}),
        "state a base weight more": lambda s: s["state_dict"].update({"model.lm_head.weight": torch.zeros(320, 32)}),
        "state sparse": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): next(iter(s["state_dict"].values())).to_sparse()}
        ),
        "state empty": lambda s: s["state_dict"].clear(),
        "state missing": lambda s: s.pop("state_dict"),
        "state a list": lambda s: s.update(state_dict=[1]),
        "state of a text": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): "x"}),
        "state key a number": lambda s: s["state_dict"].update({3: torch.zeros(2)}),
        "state quantised": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.quantize_per_tensor(torch.zeros(2, 32), 0.1, 0, torch.qint8)}
        ),
        "state expanded": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros(1).expand(1 << 40)}
        ),
    }
    for what, change in tampered.items():
        for words in (TEST, RESUME, ["export", "--out", "out"]):
            if words is TEST or what in ("state NaN", "state one other shape", "state one missing", "state one complex"):
                yield Case(f"state/{words[0]} {what[6:]}", words, stored_with(change), "any", how=what)
    lightning: list[tuple[Any, ...]] = [
        ("loops",),
        ("loops", "fit_loop"),
        ("loops", "fit_loop", "epoch_progress"),
        ("loops", "fit_loop", "epoch_loop.batch_progress"),
        ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress"),
        ("loops", "validate_loop"),
        ("optimizer_states",),
        ("optimizer_states", 0),
        ("optimizer_states", 0, "state"),
        ("optimizer_states", 0, "state", 0),
        ("optimizer_states", 0, "state", 0, "exp_avg"),
        ("optimizer_states", 0, "state", 0, "step"),
        ("optimizer_states", 0, "param_groups"),
        ("optimizer_states", 0, "param_groups", 0, "lr"),
        ("optimizer_states", 0, "param_groups", 0, "params"),
        ("optimizer_states", 0, "param_groups", 0, "betas"),
        ("lr_schedulers",),
        ("lr_schedulers", 0),
        ("lr_schedulers", 0, "last_epoch"),
        ("lr_schedulers", 0, "base_lrs"),
        ("lr_schedulers", 0, "lr_lambdas"),
        ("callbacks",),
        ("resume",),
        ("resume", "epoch"),
        ("resume", "rows"),
        ("resume", "of"),
        ("resume", "batches"),
        ("resume", "validating"),
        ("resume", "rates"),
        ("resume", "metrics"),
        ("resume", "metrics", "logged"),
        ("resume", "random"),
        ("global_step",),
        ("epoch",),
        ("pytorch-lightning_version",),
        ("hyper_parameters",),
    ]
    plain = [kind for kind in order if kind != "huge"]
    for number, key in enumerate(lightning):
        chosen = ["missing", *dict.fromkeys(plain[(number + step) % len(plain)] for step in (0, 1, 3))]
        for kind in chosen:
            if kind == "missing" and key[0] == "hyper_parameters":
                continue
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            how = f"{'.'.join(map(str, key))}: {kind}"
            name = f"{'.'.join(map(str, key))} {kind}"
            if number % 3 == 0 or kind in ("missing", "list", "int"):
                yield Case(f"lightning/fit {name}", RESUME, stored_with(change), "any", how=how)
            if kind in ("missing", "str") and len(key) == 1:
                yield Case(f"lightning/test {name}", TEST, stored_with(change), "any", how=how)
    for what, change in {
        "rows -5": place("resume", "rows", value=-5),
        "rows beyond": place("resume", "rows", value=10**9),
        "epoch -3": place("resume", "epoch", value=-3),
        "epoch 10**12": place("resume", "epoch", value=10**12),
        "batches nan": place("resume", "batches", value=float("nan")),
        "global_step -1": place("global_step", value=-1),
        "global_step 10**18": place("global_step", value=10**18),
        "global_step 10**30": place("global_step", value=10**30),
        "rates two": place("resume", "rates", value=[1.0, 2.0]),
        "rates zero": place("resume", "rates", value=[0.0]),
        "rates text": place("resume", "rates", value=["x"]),
        "metrics text": place("resume", "metrics", value={"logged": {"val_loss": "x"}}),
        "metrics unknown": place("resume", "metrics", value={"no_such": {}}),
        "best_model_path elsewhere": lambda s: [
            c.update(best_model_path="../elsewhere/x.ckpt") for c in s["callbacks"].values() if "best_model_path" in c
        ],
        "best_model_path number": lambda s: [
            c.update(best_model_path=3) for c in s["callbacks"].values() if "best_model_path" in c
        ],
        "dirpath elsewhere": lambda s: [
            c.update(dirpath="../elsewhere") for c in s["callbacks"].values() if "dirpath" in c
        ],
        "callbacks of texts": lambda s: s.update(callbacks={key: "x" for key in s["callbacks"]}),
        "callbacks empty": lambda s: s.update(callbacks={key: {} for key in s["callbacks"]}),
        "callbacks of another class": lambda s: s["callbacks"].update({"evil.C": {"x": 1}}),
        "two optimizers": lambda s: s["optimizer_states"].append(s["optimizer_states"][0]),
        "no optimizer": lambda s: s["optimizer_states"].clear(),
        "two schedulers": lambda s: s["lr_schedulers"].append(s["lr_schedulers"][0]),
        "moments NaN": lambda s: s["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan")),
        "moments of another shape": lambda s: s["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3, 3)),
        "moments scalar": lambda s: s["optimizer_states"][0]["state"][0].update(exp_avg=torch.tensor(1.0)),
        "a parameter more": lambda s: s["optimizer_states"][0]["param_groups"][0]["params"].append(999),
        "lr text": lambda s: s["optimizer_states"][0]["param_groups"][0].update(lr="x"),
        "lr nan": lambda s: s["optimizer_states"][0]["param_groups"][0].update(lr=float("nan")),
        "capturable": lambda s: s["optimizer_states"][0]["param_groups"][0].update(capturable=True),
        "random of a text": lambda s: s["resume"].update(random="x"),
        "random of short tensors": lambda s: s["resume"].update(
            random=_mapped(s["resume"]["random"], lambda t: torch.zeros(3, dtype=torch.uint8))
        ),
        "random of floats": lambda s: s["resume"].update(random=_mapped(s["resume"]["random"], lambda t: t.float())),
        "random empty": lambda s: s["resume"].update(random=[]),
        "precision plugin": lambda s: s.update(MixedPrecision={"scale": "x"}),
        "data module state": lambda s: s.update(InstructionJSON={"x": 1}),
        "hparams_name": lambda s: s.update(hparams_name="x", hyper_parameters=[1], hparams_type="os.system"),
    }.items():
        yield Case(f"lightning/fit {what}", RESUME, stored_with(change), "any", how=what)
    yield from _class_cases()
    yield from _sharded_cases()


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return [_mapped(value, change) for value in tree] if isinstance(tree, list | tuple) else tree


def _class_cases() -> Iterator[Case]:
    def recorded(*keys: Any, value: Any) -> Callable[[], None]:
        return both(evil_module, ours_with(place("config", *keys, value=value)))

    own = {
        "adapter": ("adapter", "class_path", "evil.A"),
        "model": ("model", "class_path", "evil.M"),
        "data": ("data", "class_path", "evil.D"),
        "optimizer": ("optimizer", None, {"class_path": "evil.O", "init_args": {"lr": 1.0}}),
        "lr_scheduler": ("lr_scheduler", None, {"class_path": "evil.S", "init_args": {"step_size": 1}}),
        "callbacks": ("trainer", "callbacks", [{"class_path": "evil.C", "init_args": {}}]),
        "logger": ("trainer", "logger", {"class_path": "evil.L", "init_args": {"save_dir": "../elsewhere"}}),
        "profiler": ("trainer", "profiler", {"class_path": "evil.C", "init_args": {}}),
        "plugins": ("trainer", "plugins", [{"class_path": "evil.C", "init_args": {}}]),
        "strategy": ("trainer", "strategy", {"class_path": "evil.C", "init_args": {}}),
        "strategy text": ("trainer", "strategy", "evil.C"),
        "accelerator": ("trainer", "accelerator", {"class_path": "evil.C"}),
        "callbacks text": ("trainer", "callbacks", "evil.C"),
        "callback os.system": (
            "trainer",
            "callbacks",
            [{"class_path": "os.system", "init_args": {"command": f"touch {CANARY}"}}],
        ),
        "checkpoint callback": (
            "trainer",
            "callbacks",
            [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "../elsewhere"}}],
        ),
        "root": ("trainer", "default_root_dir", "../elsewhere"),
        "adapter os.system": ("adapter", "class_path", "os.system"),
        "adapter this": ("adapter", "class_path", "this.d"),
        "adapter antigravity": ("adapter", "class_path", "antigravity.x"),
        "adapter abstract": ("adapter", "class_path", "adapters_pl.adapters.base.Adapter"),
        "adapter a module": ("adapter", "class_path", "adapters_pl.adapters"),
        "adapter with spaces": ("adapter", "class_path", " LoRA "),
        "adapter path": ("adapter", "class_path", "../evil.py"),
        "data another": ("data", "class_path", "adapters_pl.LoRA"),
        "model another": ("model", "class_path", "torch.nn.Linear"),
    }
    for what, (section, key, value) in own.items():
        keys = (section, key) if key else (section,)
        for words in (TEST, RESUME):
            if words is RESUME or section in ("adapter", "model", "data"):
                yield Case(
                    f"class/{words[0]} {what}", words, recorded(*keys, value=value), "any", how=f"config.{keys}: {value}"
                )
    yield Case(
        "class/export adapter",
        ["export", "--out", "out"],
        both(evil_module, ours_with(place("adapters", 0, "class_path", value="evil.A"))),
        says=("evil",),
    )
    for spelling, value in {
        "init_args": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "coded", "trust_remote_code": True}},
        "bare": {"base": "coded", "trust_remote_code": True},
        "dict_kwargs": {
            "class_path": "adapters_pl.CausalLMModule",
            "init_args": {"base": "coded"},
            "dict_kwargs": {"trust_remote_code": True},
        },
        "dotted": {
            "class_path": "adapters_pl.CausalLMModule",
            "init_args.base": "coded",
            "init_args.trust_remote_code": True,
        },
        "text": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "coded", "trust_remote_code": "true"}},
        "one": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "coded", "trust_remote_code": 1}},
        "text of a mapping": "{class_path: adapters_pl.CausalLMModule, init_args: {base: coded, trust_remote_code: true}}",
        "base a mapping": {
            "class_path": "adapters_pl.CausalLMModule",
            "init_args": {"base": {"base": "coded", "trust_remote_code": True}},
        },
    }.items():
        for words in (TEST, RESUME):
            yield Case(
                f"class/{words[0]} trust_remote_code {spelling}",
                words,
                both(coded_base, ours_with(place("config", "model", value=value))),
                "any",
                how=f"config.model: {value}",
            )
    yield Case("class/fit coded base", _based("coded"), coded_base, says=("coded",), how="auto_map")
    yield Case("class/plan coded base", ["plan", "--model.base", "coded", "--adapter", "LoRA"], coded_base, says=("coded",))
    latest: dict[str, str | bytes] = {
        "climbs": "../../x",
        "absolute": "/etc",
        "empty": "",
        "blank": "\n",
        "binary": b"\xff\xfe\0\1",
        "unknown": "lora-9",
        "dots": "..",
        "dot": ".",
        "two lines": "lora-1\nlora-2",
        "long": "a" * 5000,
        "NUL": b"lora-1\0x",
        "surrogate": "\ud800",
    }
    for what, content in latest.items():
        yield Case(f"run/latest {what}", TEST, put("runs/latest", content), "any", ("latest|runs",), how="runs/latest")
    yield Case("run/latest a folder", TEST, as_folder("runs/latest"), says=("runs",))
    yield Case("run/latest a pipe", TEST, as_fifo("runs/latest"), says=("runs",))
    yield Case("run/latest fit climbs", RESUME, put("runs/latest", "../../x"), says=("latest",))
    yield Case("run/latest export climbs", ["export", "--out", "out"], put("runs/latest", "../../x"), says=("latest",))
    outside = "../../../elsewhere"
    links = {
        "results": (RUN / "results.json", f"{outside}/r.json"),
        "predictions": (RUN / "predictions", f"{outside}/p"),
        "checkpoints": (RUN / "checkpoints", f"{outside}/c"),
        "metrics": (RUN / "metrics.csv", f"{outside}/m.csv"),
        "config": (RUN / "config.yaml", f"{outside}/c.yaml"),
        "environment": (RUN / "environment.json", f"{outside}/e.json"),
        "crash log": (RUN / "crash.log", f"{outside}/crash.log"),
        "predicted": (RUN / "predicted", f"{outside}/p"),
        "best": (RUN / "checkpoints" / "best.ckpt", f"../{outside}/b.ckpt"),
        "last": (LAST, f"../{outside}/last.ckpt"),
    }
    for what, (file, to) in links.items():
        for words in (TEST, RESUME):
            yield Case(f"run/{words[0]} link {what}", words, _moved_out(file, to), "any", how=f"{file} -> {to}")
    yield Case("run/predict link predicted", ["predict", "--data.test_path", "sums.json", *QUIET], _moved_out(*links["predicted"]), "any")
    yield Case("run/test link run", TEST, _moved_out(RUN, "../../elsewhere/run"), "any", how="the run a link")
    yield Case("run/fit link runs", fit("LoRA", "--adapter.rank", "2"), as_link("runs", "../elsewhere"), "any")
    yield Case("run/fit dangling runs", fit("LoRA", "--adapter.rank", "2"), as_link("runs", "nowhere"), "any", ("runs",))
    yield Case("run/fit runs a file", fit("LoRA", "--adapter.rank", "2"), both(remove("runs"), put("runs", "x")), says=("runs",))
    yield Case("run/test no runs", TEST, remove("runs"), says=("runs",))
    yield Case("run/test no checkpoints", TEST, remove(RUN / "checkpoints"), says=("last.ckpt",))
    yield Case("run/test no config", TEST, remove(RUN / "config.yaml"), "any")


def _moved_out(file: Path, to: str) -> Callable[[], None]:
    """Move something out of a run and leave a link to it; what was not there is a link to nothing."""

    def work() -> None:
        target = file.parent / to
        Path("../elsewhere").mkdir(exist_ok=True)
        if file.exists():
            shutil.move(file, target)
        os.symlink(to, file)

    return work


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


def _based(base: str, *more: str) -> list[str]:
    words = fit("LoRA", "--adapter.rank", "2", *more)
    words[words.index("base")] = base
    return words


def _shard() -> None:
    """The checkpoint as a directory of one part, as FSDP writes it."""
    stored = torch.load(LAST, weights_only=True)
    os.unlink(LAST)
    mine: dict[str, torch.Tensor] = {}
    for key in list(stored["state_dict"]):
        mine[f"/state_dict/{key}"] = stored["state_dict"][key]
        stored["state_dict"][key] = {"__stored_in_parts__": f"/state_dict/{key}"}
    LAST.mkdir()
    torch.save(mine, LAST / "part-0.pt")
    torch.save({"parts": 1, "checkpoint": stored}, LAST / "rest.pt")


def _rest(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    return both(_shard, stored_with(change, LAST / "rest.pt"))


def _sharded_cases() -> Iterator[Case]:
    part, rest = LAST / "part-0.pt", LAST / "rest.pt"
    first = lambda stored: next(iter(stored["checkpoint"]["state_dict"]))  # noqa: E731
    kinds: dict[str, tuple[Callable[[], Any], str]] = {
        "whole": (_shard, "fine"),
        "no part": (both(_shard, remove(part)), "refused"),
        "part empty": (both(_shard, put(part, b"")), "refused"),
        "part cut": (both(_shard, cut(part, 0.5)), "refused"),
        "part garbage": (both(_shard, put(part, os.urandom(500))), "refused"),
        "part canary": (both(_shard, pickled(part, Canary)), "refused"),
        "part a list": (both(_shard, torch_pickled(part, lambda: [1])), "refused"),
        "part of texts": (both(_shard, torch_pickled(part, lambda: {"a": "b"})), "refused"),
        "part a folder": (both(_shard, as_folder(part)), "refused"),
        "part a pipe": (both(_shard, as_fifo(part)), "refused"),
        "part NaN": (
            both(_shard, stored_with(lambda s: next(iter(s.values())).fill_(float("nan")), part)),
            "refused",
        ),
        "rest empty": (both(_shard, put(rest, b"")), "refused"),
        "rest cut": (both(_shard, cut(rest, 0.7)), "refused"),
        "rest canary": (both(_shard, pickled(rest, SystemCanary)), "refused"),
        "rest a list": (both(_shard, torch_pickled(rest, lambda: [1])), "refused"),
        "rest null": (both(_shard, torch_pickled(rest, lambda: None)), "refused"),
        "parts -1": (_rest(lambda s: s.update(parts=-1)), "refused"),
        "parts 0": (_rest(lambda s: s.update(parts=0)), "refused"),
        "parts text": (_rest(lambda s: s.update(parts="x")), "refused"),
        "parts null": (_rest(lambda s: s.update(parts=None)), "refused"),
        "parts float": (_rest(lambda s: s.update(parts=1.0)), "refused"),
        "parts 10**12": (_rest(lambda s: s.update(parts=10**12)), "refused"),
        "parts missing": (_rest(lambda s: s.pop("parts")), "refused"),
        "checkpoint missing": (_rest(lambda s: s.pop("checkpoint")), "refused"),
        "checkpoint a list": (_rest(lambda s: s.update(checkpoint=[1])), "refused"),
        "checkpoint ours missing": (_rest(lambda s: s["checkpoint"].pop("adapters_pl")), "refused"),
        "stored elsewhere": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": "/no/such"}})),
            "refused",
        ),
        "stored in a number": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": 3}})),
            "refused",
        ),
        "stored in a list": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": [1]}})),
            "refused",
        ),
    }
    for what, (spoil, expect) in kinds.items():
        says = ("last.ckpt",) if expect == "refused" else ()
        yield Case(f"sharded/test {what}", TEST, spoil, expect, says, how=f"sharded: {what}")
    for what in ("whole", "no part", "part canary", "parts text", "rest cut", "checkpoint a list"):
        spoil, expect = kinds[what]
        yield Case(f"sharded/fit {what}", RESUME, spoil, expect if what != "whole" else "any", how=f"sharded: {what}")
        yield Case(f"sharded/export {what}", ["export", "--out", "out"], spoil, expect, how=f"sharded: {what}")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from value_cases()
    yield from key_cases()
    yield from config_cases()
    yield from checkpoint_cases()
