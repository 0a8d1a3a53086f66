"""The cases that :mod:`tests.helpers.hostile_inputs` tries: what is typed, and what is done to the files before."""

from __future__ import annotations

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

from tests.helpers.hostile_inputs import Case

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
            yield Case(f"model/{key}={_short(value)}", words, expect="any", says=(f"{key}|{re.escape(value[:30])}",))
    for key, values in _DATA_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--data.{key}={value}")
            said = f"{key}|{re.escape(value.strip('[]')[:30])}" if value.strip("[]{}") else key
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
            says = (f"{key}|{re.escape(value[:30])}",)
            elsewhere = value.startswith("/")  # where the user says
            yield Case(f"trainer/{key}={_short(value)}", words, expect="any", says=says, leads_out=elsewhere)
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
        yield Case(
            f"optimizer/{' '.join(words)}", fit("LoRA", "--adapter.rank", "2", *words), expect="any", says=(said,)
        )


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
        ["recipes", "show"],
        ["recipes", "show", "lora_llama7b"],
        ["recipes", "show", "sums.json"],
        ["recipes", "show", "nowhere"],
        *(
            [command, "--help"]
            for command in ("fit", "validate", "test", "predict", "plan", "export", "data", "compare")
        ),
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
    valid = "model:\n  base: base\nadapter: LoRA\n"
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
        "two documents": put("c.yaml", f"{valid}---\n{valid}"),
        "a key twice": put("c.yaml", f"{valid}adapter: IA3\n"),
        "a key twice below": put("c.yaml", "model:\n  base: base\n  base: other\n"),
        "tabs": put("c.yaml", "model:\n\tbase: base\n"),
        "an open bracket": put("c.yaml", f"{valid}x: [1, 2\n"),
        "an open quote": put("c.yaml", f"{valid}x: 'abc\n"),
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
        "deep data": put("c.yaml", f"{valid}data: " + "{a: " * 200 + "1" + "}" * 200),
        "50 MB of one line": put("c.yaml", "x: " + "a" * (50 << 20)),
        "5 MB of keys": put("c.yaml", "".join(f"k{n}: {n}\n" for n in range(100_000))),
        "binary": put("c.yaml", bytes(range(256)) * 20),
        "zeros": put("c.yaml", b"\0" * 5000),
        "UTF-16": put("c.yaml", valid.encode("utf-16")),
        "Latin-1": put("c.yaml", "model: {base: grün}\n".encode("latin-1")),
        "with BOM": put("c.yaml", valid.encode("utf-8-sig")),
        "control characters": put("c.yaml", f"{valid}x: \x07\x1b[31m\n"),
        "lone surrogate": put("c.yaml", 'model: {base: "\\ud800"}\n'),
        "a folder": as_folder("c.yaml"),
        "a pipe": as_fifo("c.yaml"),
        "a dangling link": as_link("c.yaml", "nowhere"),
        "a link to itself": as_link("c.yaml", "c.yaml"),
        "a checkpoint": lambda: shutil.copy(LAST, "c.yaml"),
        "a picture": put("c.yaml", b"\x89PNG\r\n\x1a\n" + os.urandom(900)),
        "includes itself": put("c.yaml", f"config: c.yaml\n{valid}"),
        "ckpt_path list": put("c.yaml", f"ckpt_path: [a]\n{valid}"),
        "ckpt_path number": put("c.yaml", f"ckpt_path: 3\n{valid}"),
        "adapter_path mapping": put("c.yaml", "adapter_path: {a: b}\nmodel: {base: base}\n"),
        "root a list": put("c.yaml", f"trainer: {{default_root_dir: [a]}}\n{valid}"),
        "root a number": put("c.yaml", f"trainer: {{default_root_dir: 3}}\n{valid}"),
        "trainer null": put("c.yaml", f"trainer: null\n{valid}"),
        "trainer a list": put("c.yaml", f"trainer: [1]\n{valid}"),
        "data a number": put("c.yaml", f"data: 3\n{valid}"),
        "data path a number": put("c.yaml", f"data: {{class_path: InstructionJSON, init_args: {{path: 3}}}}\n{valid}"),
        "model a list": put("c.yaml", "model: [base]\n"),
        "adapter a number": put("c.yaml", "model: {base: base}\nadapter: 3\n"),
        "adapter class a list": put("c.yaml", "model: {base: base}\nadapter: {class_path: [LoRA]}\n"),
        "adapter arguments a list": put("c.yaml", "model: {base: base}\nadapter: {class_path: LoRA, init_args: [1]}\n"),
        "adapter arguments a text": put("c.yaml", "model: {base: base}\nadapter: {class_path: LoRA, init_args: x}\n"),
        "a class of os": put(
            "c.yaml", "model: {base: base}\nadapter: {class_path: os.system, init_args: {command: ls}}\n"
        ),
        "a class of json": put("c.yaml", "model: {base: base}\nadapter: {class_path: json.JSONDecoder}\n"),
        "a callback of os": put(
            "c.yaml",
            f"{valid}trainer: {{callbacks: [{{class_path: os.system, init_args: {{command: 'touch {CANARY}'}}}}]}}\n",
        ),
        "a logger of subprocess": put(
            "c.yaml",
            f"{valid}trainer: {{logger: {{class_path: subprocess.Popen, init_args: {{args: [touch, '{CANARY}']}}}}}}\n",
        ),
        "remote code": put("c.yaml", "model: {base: base, trust_remote_code: true}\nadapter: LoRA\n"),
    }
    data = [*_DATA, *_SHORT, *QUIET]
    for what, spoil in kinds.items():
        yield Case(f"config/{what}", ["fit", "--config", "c.yaml", *data], spoil, "any", how=f"c.yaml: {what}")
    for what in (
        "a list",
        "a key twice",
        "os.mkdir tag",
        "aliases that grow",
        "deep lists",
        "a pipe",
        "UTF-16",
        "a folder",
    ):
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
            if words is TEST or what in (
                "state NaN",
                "state one other shape",
                "state one missing",
                "state one complex",
            ):
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
        "callbacks of texts": lambda s: s.update(callbacks=dict.fromkeys(s["callbacks"], "x")),
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
                    f"class/{words[0]} {what}",
                    words,
                    recorded(*keys, value=value),
                    "any",
                    how=f"config.{keys}: {value}",
                )
    yield Case(
        "class/export adapter",
        ["export", "--out", "out"],
        both(evil_module, ours_with(place("adapters", 0, "class_path", value="evil.A"))),
        says=("evil",),
    )
    for spelling, value in {
        "init_args": {
            "class_path": "adapters_pl.CausalLMModule",
            "init_args": {"base": "coded", "trust_remote_code": True},
        },
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
        "text": {
            "class_path": "adapters_pl.CausalLMModule",
            "init_args": {"base": "coded", "trust_remote_code": "true"},
        },
        "one": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "coded", "trust_remote_code": 1}},
        "text of a mapping": "{class_path: adapters_pl.CausalLMModule, "
        "init_args: {base: coded, trust_remote_code: true}}",
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
    yield Case(
        "class/plan coded base", ["plan", "--model.base", "coded", "--adapter", "LoRA"], coded_base, says=("coded",)
    )
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
    yield Case(
        "run/predict link predicted",
        ["predict", "--data.test_path", "sums.json", *QUIET],
        _moved_out(*links["predicted"]),
        "any",
    )
    yield Case("run/test link run", TEST, _moved_out(RUN, "../../elsewhere/run"), "any", how="the run a link")
    yield Case(
        "run/fit link runs",
        fit("LoRA", "--adapter.rank", "2"),
        both(remove("runs"), as_link("runs", "../elsewhere")),
        "fine",
        leads_out=True,
    )
    yield Case(
        "run/fit dangling runs", fit("LoRA", "--adapter.rank", "2"), as_link("runs", "nowhere"), "any", ("runs",)
    )
    yield Case(
        "run/fit runs a file",
        fit("LoRA", "--adapter.rank", "2"),
        both(remove("runs"), put("runs", "x")),
        says=("runs",),
    )
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
    shards: dict[str, torch.Tensor] = {}
    for key in list(stored["state_dict"]):
        shards[f"/state_dict/{key}"] = stored["state_dict"][key]
        stored["state_dict"][key] = {"__stored_in_parts__": f"/state_dict/{key}"}
    folder = LAST.with_name("last.ckpt-2")
    folder.mkdir()
    LAST.symlink_to(folder.name)
    torch.save(shards, LAST / "part-0.pt")
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


# ---- adapter directories


def adapter_cases() -> Iterator[Case]:
    """Broken adapter directories."""
    config, weights = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
    short = [*_DATA, *_SHORT, *QUIET]
    ways = {
        "test": ["test", "--adapter_path", "adapter", *short[:-6], *QUIET],
        "fit": ["fit", "--adapter_path", "adapter", *short],
        "export": ["export", "--adapter_path", "adapter", "--out", "out"],
    }
    ways["test"] = ["test", "--adapter_path", "adapter", *_DATA, "--data.test_path", "sums.json", *_SHORT[:4], *QUIET]
    files: dict[str, Callable[[], Any]] = {
        "missing": remove(config),
        "empty": put(config, ""),
        "no JSON": put(config, "hello"),
        "a list": put(config, "[1]"),
        "a number": put(config, "3"),
        "null": put(config, "null"),
        "an empty object": put(config, "{}"),
        "cut": cut(config, 0.6),
        "deep lists": put(config, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "deep objects": put(config, '{"a":' * 100_000 + "1" + "}" * 100_000),
        "binary": put(config, os.urandom(900)),
        "UTF-16": lambda: Path(config).write_bytes(Path(config).read_text().encode("utf-16")),
        "with BOM": lambda: Path(config).write_bytes(Path(config).read_text().encode("utf-8-sig")),
        "NaN": json_with(config, place("lora_alpha", value=float("nan"))),
        "70 MB": lambda: Path(config).write_text(Path(config).read_text() + " " * (70 << 20)),
        "a folder": as_folder(config),
        "a pipe": as_fifo(config),
        "a dangling link": as_link(config, "nowhere"),
        "a link to itself": as_link(config, "adapter_config.json"),
        "a key twice": lambda: Path(config).write_text(Path(config).read_text().replace("{", '{"r": "x",', 1)),
    }
    for what, spoil in files.items():
        says = () if what in ("missing", "a key twice", "with BOM") else ("adapter",)
        yield Case(
            f"adapterdir/test config {what}", ways["test"], spoil, "any", says, how=f"adapter_config.json: {what}"
        )
    for what in ("no JSON", "deep objects", "a pipe", "missing"):
        for way in ("fit", "export"):
            yield Case(f"adapterdir/{way} config {what}", ways[way], files[what], "any", ("adapter",), how=what)
    slow = (r"(.*)*(.*)*(.*)*x!", r"(\w+\.?)+!", "(a|a)*(" + "a|" * 200 + "b)!", "(" * 3000 + "a" + ")" * 3000)
    wrong: dict[str, list[Any]] = {
        "peft_type": ["missing", None, [], {}, 3, "NO_SUCH", "lora", "IA3", "PREFIX_TUNING", "OFT", "a" * 100_000],
        "base_model_name_or_path": [
            "missing",
            None,
            "",
            3,
            [],
            "no_such",
            "../..",
            "/etc",
            "nobody-here/nothing",
            "\ud800",
        ],
        "revision": [3, "x", [], "../x"],
        "r": ["missing", None, "x", -1, 0, 1.5, [], {}, 10**30, True, float("nan"), 2_000_000_000],
        "lora_alpha": ["missing", None, "x", -1, [], float("inf"), 10**400],
        "lora_dropout": [None, "x", -1, 2, [], float("nan")],
        "target_modules": [
            "missing",
            None,
            [],
            "",
            3,
            {},
            [3],
            [None],
            ["no_such"],
            "(",
            "no_such",
            *slow,
            ["a" * 100_000],
        ],
        "layers_to_transform": ["x", [99], [-1], [None], {}, 1.5],
        "layers_pattern": ["(", 3, ["("], "no_such", slow[0]],
        "rank_pattern": ["x", [], {"(": 2}, {"q_proj": "x"}, {"q_proj": -1}, {"q_proj": 10**9}, {slow[0]: 2}, {"": 3}],
        "alpha_pattern": ["x", {"(": 2}, {"q_proj": "x"}, {"q_proj": None}],
        "exclude_modules": ["(", 3, [3], slow[0], ".*", slow[1]],
        "modules_to_save": ["x", [3], ["no_such"], {}, ["lm_head"], ["model"]],
        "bias": ["x", None, 3, "all"],
        "use_dora": ["x", 3, True, None],
        "use_rslora": ["x", [], True],
        "init_lora_weights": ["no_such", 3, [], "pissa", "corda"],
        "fan_in_fan_out": ["x", True],
        "task_type": [None, 3, "NO_SUCH", "SEQ_CLS"],
        "auto_mapping": [{"base_model_class": "X", "parent_library": "evil"}, 3],
        "megatron_config": [{"a": 1}],
        "loftq_config": [{"a": 1}, 3],
        "layer_replication": [[[0, 5]], "x"],
        "trainable_token_indices": [[1, 2], "x"],
        "target_parameters": [["x"], 3],
        "no_such_setting": [3, None],
        "peft_version": [3, "99"],
    }
    names = {}
    for key, values in wrong.items():
        for value in values:
            change = place(key, drop=True) if value == "missing" else place(key, value=value)
            if value == "missing":
                change = lambda tree, key=key: tree.pop(key, None)  # noqa: E731
            name = f"adapterdir/test {key}={_short(repr(value))}"
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name += f" {names[name]}"
            spoil = json_with(config, change)
            how = f"adapter_config.json {key}: {_short(repr(value))}"
            yield Case(name, ways["test"], spoil, "any", (f"{key}|adapter|{re.escape(str(value)[:20])}",), how=how)
            if key in ("target_modules", "peft_type", "r") and (value in slow or value in (None, "x", "missing")):
                yield Case(name.replace("test", "export", 1), ways["export"], spoil, "any", how=how)
    for what, spoil in broken_weights(weights):
        yield Case(
            f"adapterdir/test weights {what}", ways["test"], spoil, "refused", ("adapter",), how=f"weights: {what}"
        )
    for what, spoil in broken_weights(weights):
        if what in ("missing", "cut at 50%", "NaN", "one transposed", "a folder"):
            for way in ("fit", "export"):
                yield Case(f"adapterdir/{way} weights {what}", ways[way], spoil, "refused", ("adapter",), how=what)
    old = "adapter/adapter_model.bin"
    for what, spoil in {
        "canary": pickled(old, Canary),
        "canary by os.system": pickled(old, SystemCanary),
        "canary in a zip": torch_pickled(old, lambda: {"a": Canary()}),
        "garbage": put(old, os.urandom(500)),
        "empty": put(old, b""),
        "a list": torch_pickled(old, lambda: [torch.zeros(2)]),
        "numbers as keys": torch_pickled(old, lambda: {3: torch.zeros(2)}),
        "a text": torch_pickled(old, lambda: {"a": "b"}),
        "other tensors": torch_pickled(old, lambda: {"a": torch.zeros(2)}),
        "no tensors": torch_pickled(old, dict),
        "a folder": as_folder(old),
        "a pipe": as_fifo(old),
    }.items():
        yield Case(
            f"adapterdir/test bin {what}", ways["test"], both(remove(weights), spoil), says=("adapter",), how=what
        )
    for what, tokens in {
        "no JSON": "x",
        "a number": "3",
        "numbers": "[3]",
        "deep": "[" * 100_000,
        "an empty text": '[""]',
        "many": json.dumps([f"<t{n}>" for n in range(200)]),
    }.items():
        spoil = tensors_with(weights, lambda t, tokens=tokens: (t, {"format": "pt", "add_tokens": tokens}))  # type: ignore[misc]
        yield Case(f"adapterdir/test add_tokens {what}", ways["test"], spoil, "any", ("adapter",), how=what)
    for what, metadata in {"model_type": "gpt2", "hidden_size": "x", "num_hidden_layers": "-1"}.items():
        spoil = tensors_with(weights, lambda t, m={what: metadata}: (t, {"format": "pt", **m}))  # type: ignore[misc]
        yield Case(f"adapterdir/test metadata {what}", ways["test"], spoil, says=("adapter",), how=what)
    yield Case("adapterdir/test with adapter", [*ways["test"], "--adapter", "IA3"], says=("adapter",))
    yield Case("adapterdir/test with ckpt_path", [*ways["test"], "--ckpt_path", "last"], says=("ckpt_path",))
    yield Case(
        "adapterdir/test weights not finite alpha",
        ways["test"],
        json_with(config, place("lora_alpha", value=1e308)),
        "any",
    )


# ---- bases


def base_cases() -> Iterator[Case]:
    """Broken base directories."""
    config, weights = "base/config.json", "base/model.safetensors"
    ways = {"plan": plan(), "test": base_test(), "fit": fit("LoRA", "--adapter.rank", "2")}
    files: dict[str, Callable[[], Any]] = {
        "missing": remove(config),
        "empty": put(config, ""),
        "no JSON": put(config, "hello"),
        "a list": put(config, "[1]"),
        "null": put(config, "null"),
        "an empty object": put(config, "{}"),
        "cut": cut(config, 0.5),
        "deep": put(config, '{"a":' * 100_000 + "1" + "}" * 100_000),
        "deep 500": put(config, '{"model_type": "llama", "a":' + "[" * 500 + "]" * 500 + "}"),
        "binary": put(config, os.urandom(900)),
        "UTF-16": lambda: Path(config).write_bytes(Path(config).read_text().encode("utf-16")),
        "70 MB": lambda: Path(config).write_text(Path(config).read_text() + " " * (70 << 20)),
        "a folder": as_folder(config),
        "a pipe": as_fifo(config),
        "a dangling link": as_link(config, "nowhere"),
    }
    for what, spoil in files.items():
        for way in ("plan", "test") if what in ("missing", "deep", "a pipe", "a list") else ("plan",):
            yield Case(f"base/{way} config {what}", ways[way], spoil, "refused", ("base",), how=f"config.json: {what}")
    wrong: dict[str, list[Any]] = {
        "model_type": ["missing", None, 3, [], "no_such", "bert", "t5", "whisper", "../x", ""],
        "architectures": [None, "x", [], ["NoSuch"], [3]],
        "hidden_size": ["missing", None, "x", -1, 0, 1.5, 33, 10**9, 10**30, []],
        "num_hidden_layers": [None, "x", -1, 0, 1, 3, 1.5, 10**9, []],
        "num_attention_heads": [None, "x", -4, 0, 3, 5, 1.5, []],
        "num_key_value_heads": ["x", -1, 0, 3, 8, 1.5, []],
        "head_dim": ["x", -1, 0, 7, 1.5, 10**9],
        "intermediate_size": [None, "x", -1, 0, 47, 1.5, 10**30],
        "vocab_size": ["missing", None, "x", -1, 0, 5, 1.5, 321, 10**18],
        "max_position_embeddings": [None, "x", -1, 0, 4, 1.5, 10**30],
        "rms_norm_eps": [None, "x", -1, 0, []],
        "hidden_act": [None, 3, "no_such", []],
        "attention_bias": ["x", True, None],
        "attention_dropout": ["x", -1, 2],
        "mlp_bias": ["x", True],
        "initializer_range": ["x", -1],
        "tie_word_embeddings": ["x", True, None],
        "pad_token_id": ["x", -5, 10**6, [1]],
        "eos_token_id": ["x", -5, 10**6, [2, 3], None],
        "bos_token_id": ["x", 10**6],
        "rope_parameters": ["x", None, [], {"rope_type": "no_such"}, {"rope_theta": "x"}, {"rope_type": "yarn"}],
        "rope_scaling": [
            "x",
            {"type": "no_such", "factor": 2},
            {"type": "linear", "factor": -1},
            {"rope_type": "dynamic"},
        ],
        "rope_theta": ["x", -1, 0],
        "dtype": ["x", 3, "float8_e4m3fn", "int8", []],
        "torch_dtype": ["no_such"],
        "use_cache": ["x"],
        "quantization_config": [
            "x",
            {},
            [],
            {"quant_method": "no_such"},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": "awq"},
        ],
        "auto_map": [3, [], {"AutoConfig": 3}],
        "attn_implementation": ["someone/kernel", 3],
        "transformers_version": [3, "99.0"],
        "text_config": [3, {"a": 1}, []],
        "id2label": ["x", {"a": "b"}],
        "num_labels": ["x", -1],
        "layer_types": ["x", ["no_such", "no_such"], [3]],
        "sliding_window": ["x", -1],
        "pretraining_tp": [2, "x"],
        "peft_config": [3],
        "generation_config": [3],
    }
    names: dict[str, int] = {}
    for key, values in wrong.items():
        for value in values:
            change: Any = place(key, value=value)
            if isinstance(value, str) and value == "missing":
                change = lambda tree, key=key: tree.pop(key, None)  # noqa: E731
            name = f"{key}={_short(repr(value))}"
            names[name] = names.get(name, 0) + 1
            spoil, how = json_with(config, change), f"config.json {name}"
            yield Case(f"base/plan {name}", ways["plan"], spoil, "any", ("base",), how=how)
            tested = (
                *("num_hidden_layers", "num_key_value_heads", "vocab_size", "max_position_embeddings", "pad_token_id"),
                *("eos_token_id", "rms_norm_eps", "rope_parameters", "attention_dropout", "tie_word_embeddings"),
                *("quantization_config", "head_dim", "attention_bias"),
            )
            if key in tested:
                yield Case(f"base/test {name}", ways["test"], spoil, "any", ("base",), how=how)
    for what, spoil in broken_weights(weights):
        yield Case(f"base/test weights {what}", ways["test"], spoil, "refused", ("base",), how=f"weights: {what}")
    for what, spoil in broken_weights(weights):
        if what in ("missing", "cut at 50%", "NaN", "one transposed", "a pickle"):
            yield Case(f"base/fit weights {what}", ways["fit"], spoil, "refused", ("base",), how=f"weights: {what}")
    old, index = "base/pytorch_model.bin", "base/model.safetensors.index.json"
    for what, spoil in {
        "bin canary": pickled(old, Canary),
        "bin canary by os.system": pickled(old, SystemCanary),
        "bin canary in a zip": torch_pickled(old, lambda: {"a": Canary()}),
        "bin garbage": put(old, os.urandom(500)),
        "bin empty": put(old, b""),
        "bin a list": torch_pickled(old, lambda: [1]),
        "bin of texts": torch_pickled(old, lambda: {"a": "b"}),
        "index missing shard": put(
            index, json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "m-1.safetensors"}})
        ),
        "index no JSON": put(index, "x"),
        "index a list": put(index, "[]"),
        "index no map": put(index, "{}"),
        "index map a list": put(index, '{"metadata": {}, "weight_map": []}'),
        "index climbs": put(index, '{"metadata": {}, "weight_map": {"lm_head.weight": "../sums.json"}}'),
        "index absolute": put(index, '{"metadata": {}, "weight_map": {"lm_head.weight": "/etc/passwd"}}'),
        "index of numbers": put(index, '{"metadata": {}, "weight_map": {"lm_head.weight": 3}}'),
        "index deep": put(index, "[" * 100_000),
        "index to a pickle": both(
            put(index, '{"metadata": {}, "weight_map": {"lm_head.weight": "x.bin"}}'), pickled("base/x.bin", Canary)
        ),
        "tf": put("base/tf_model.h5", b"x"),
        "gguf": put("base/x.gguf", b"GGUF"),
    }.items():
        yield Case(f"base/test {what}", ways["test"], both(remove(weights), spoil), says=("base",), how=what)
    tokenizer, settings = "base/tokenizer.json", "base/tokenizer_config.json"
    for what, spoil in {
        "missing": remove(tokenizer),
        "empty": put(tokenizer, ""),
        "no JSON": put(tokenizer, "hello"),
        "a list": put(tokenizer, "[]"),
        "an empty object": put(tokenizer, "{}"),
        "cut": cut(tokenizer, 0.5),
        "binary": put(tokenizer, os.urandom(900)),
        "deep": put(tokenizer, '{"a":' * 100_000 + "1" + "}" * 100_000),
        "a folder": as_folder(tokenizer),
        "a pipe": as_fifo(tokenizer),
        "model null": json_with(tokenizer, place("model", value=None)),
        "model unknown": json_with(tokenizer, place("model", "type", value="NoSuch")),
        "vocabulary a list": json_with(tokenizer, place("model", "vocab", value=[])),
        "vocabulary empty": json_with(tokenizer, place("model", "vocab", value={})),
        "vocabulary of texts": json_with(tokenizer, place("model", "vocab", value={"a": "b"})),
        "vocabulary beyond the base": json_with(
            tokenizer, lambda t: t["model"]["vocab"].update({k: v + 5000 for k, v in t["model"]["vocab"].items()})
        ),
        "vocabulary of huge ids": json_with(tokenizer, place("model", "vocab", "a", value=2**32 - 1)),
        "vocabulary of the same id": json_with(
            tokenizer, lambda t: t["model"]["vocab"].update(dict.fromkeys(t["model"]["vocab"], 5))
        ),
        "merges wrong": json_with(tokenizer, place("model", "merges", value=[["q", "zzz"]])),
        "merges a number": json_with(tokenizer, place("model", "merges", value=3)),
        "added tokens a number": json_with(tokenizer, place("added_tokens", value=3)),
        "added tokens beyond": json_with(tokenizer, lambda t: t["added_tokens"][0].update(id=10**6)),
        "post-processor unknown": json_with(tokenizer, place("post_processor", value={"type": "NoSuch"})),
        "normalizer with a slow pattern": json_with(
            tokenizer,
            place("normalizer", value={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}),
        ),
        "pre-tokenizer with a broken pattern": json_with(
            tokenizer,
            place(
                "pre_tokenizer",
                value={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
            ),
        ),
        "pre-tokenizer that removes all": json_with(
            tokenizer,
            place(
                "pre_tokenizer",
                value={"type": "Split", "pattern": {"Regex": "."}, "behavior": "Removed", "invert": False},
            ),
        ),
        "decoder null": json_with(tokenizer, place("decoder", value=None)),
        "settings missing": remove(settings),
        "settings no JSON": put(settings, "x"),
        "settings a list": put(settings, "[]"),
        "settings deep": put(settings, '{"a":' * 100_000 + "1" + "}" * 100_000),
        "settings a pipe": as_fifo(settings),
        "class unknown": json_with(settings, place("tokenizer_class", value="NoSuch")),
        "class a number": json_with(settings, place("tokenizer_class", value=3)),
        "class of another kind": json_with(settings, place("tokenizer_class", value="BertTokenizer")),
        "class LlamaTokenizer": json_with(settings, place("tokenizer_class", value="LlamaTokenizer")),
        "auto_map": both(
            evil_module,
            json_with(settings, place("auto_map", value={"AutoTokenizer": ["code.T", None]})),
            lambda: write("base/code.py", f"import os\nos.makedirs({CANARY!r})\nclass T: pass\n"),
        ),
        "no end token": json_with(settings, place("eos_token", drop=True)),
        "end token unknown": json_with(settings, place("eos_token", value="<no-such>")),
        "end token a number": json_with(settings, place("eos_token", value=3)),
        "end token a list": json_with(settings, place("eos_token", value=[])),
        "end token empty": json_with(settings, place("eos_token", value="")),
        "padding token a mapping": json_with(settings, place("pad_token", value={"a": 1})),
        "padding token unknown": json_with(settings, place("pad_token", value="<no-such>")),
        "longest a text": json_with(settings, place("model_max_length", value="x")),
        "longest negative": json_with(settings, place("model_max_length", value=-3)),
        "padding side wrong": json_with(settings, place("padding_side", value="middle")),
        "extra special tokens": json_with(settings, place("extra_special_tokens", value=3)),
        "added tokens decoder": json_with(settings, place("added_tokens_decoder", value={"x": 3})),
        "special tokens map": put("base/special_tokens_map.json", "[]"),
        "special tokens map broken": put("base/special_tokens_map.json", "x"),
        "added tokens file": put("base/added_tokens.json", "[3]"),
        "generation config broken": put("base/generation_config.json", "x"),
        "generation config a list": put("base/generation_config.json", "[]"),
        "generation config wrong": put("base/generation_config.json", '{"max_length": "x", "eos_token_id": "y"}'),
        "generation config end token": put("base/generation_config.json", '{"eos_token_id": [[]], "do_sample": 3}'),
        "generation config forced": put(
            "base/generation_config.json", '{"forced_eos_token_id": 10000, "num_beams": -3}'
        ),
        "generation config custom": put(
            "base/generation_config.json", '{"custom_generate": "x", "trust_remote_code": true}'
        ),
    }.items():
        yield Case(f"tokenizer/test {what}", ways["test"], spoil, "any", ("base",), how=f"tokenizer: {what}")
    yield Case(
        "tokenizer/test custom generate code", ways["test"], _custom_generate, "any", how="custom_generate/generate.py"
    )
    for what in ("missing", "cut", "vocabulary beyond the base"):
        spoil = {
            "missing": remove(tokenizer),
            "cut": cut(tokenizer, 0.5),
            "vocabulary beyond the base": json_with(
                tokenizer, lambda t: t["model"]["vocab"].update({k: v + 5000 for k, v in t["model"]["vocab"].items()})
            ),
        }[what]
        yield Case(f"tokenizer/fit {what}", ways["fit"], spoil, "any", ("base",), how=f"tokenizer: {what}")
    good = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    templates: dict[str, Any] = {
        "good": good,
        "empty": "",
        "unclosed": "{% for m in messages %}",
        "unclosed braces": "{{ messages",
        "unknown filter": "{{ messages | no_such }}",
        "unknown test": "{{ messages is no_such }}",
        "undefined attribute": "{{ no_such.x.y }}",
        "division by zero": "{{ 1 // 0 }}",
        "raises": "{{ raise_exception('no') }}",
        "sandbox class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "sandbox import": f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}",
        "sandbox attr": "{{ ''|attr('__class__') }}",
        "sandbox format": "{{ '{0.__class__}'.format(3) }}",
        "sandbox append": "{% do messages.append(3) %}",
        "sandbox mutate": "{{ messages.clear() }}",
        "loops": "{% for i in range(10**9) %}{% endfor %}",
        "loops nested": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "huge text": "{{ 'a' * 10**9 }}",
        "huge power": "{{ 9 ** (9 ** 9) }}",
        "huge width": "{{ messages[0].content | center(10 ** 12) }}",
        "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "includes": "{% include 'x' %}",
        "imports": "{% import '/etc/passwd' as x %}",
        "a number": 3,
        "a list": [1],
        "a list of templates": [{"name": "default", "template": good}],
        "a list without default": [{"name": "x", "template": good}],
        "a mapping": {"a": good},
        "constant": "hello",
        "deep": "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
        "surrogate": "\ud800",
    }
    for what, template in templates.items():
        spoil = both(_no_template_file, json_with(settings, place("chat_template", value=template)))
        words = [*base_test(), "--data.template", "chat"]
        yield Case(f"chat/test {what}", words, spoil, "fine" if what == "good" else "any", how=f"chat_template: {what}")
    for what in ("loops", "sandbox import", "raises", "huge text", "undefined attribute"):
        spoil = put("base/chat_template.jinja", templates[what])
        yield Case(
            f"chat/fit file {what}", [*ways["fit"], "--data.template", "chat"], spoil, "any", how=f"jinja: {what}"
        )
    yield Case(
        "chat/test template a folder",
        [*base_test(), "--data.template", "chat"],
        as_folder("base/chat_template.jinja"),
        "any",
    )
    yield Case(
        "chat/test template binary",
        [*base_test(), "--data.template", "chat"],
        put("base/chat_template.jinja", b"\xff\xfe"),
        "any",
    )
    yield Case(
        "chat/fit good", [*ways["fit"], "--data.template", "chat"], put("base/chat_template.jinja", good), "fine"
    )


def _no_template_file() -> None:
    Path("base/chat_template.jinja").unlink(missing_ok=True)


def _custom_generate() -> None:
    write("base/custom_generate/generate.py", f"import os\nos.makedirs({CANARY!r})\ndef generate(**k): pass\n")
    write("base/custom_generate/requirements.txt", "no_such_package\n")


# ---- data files


def _online() -> None:
    """As if nobody had said that there is no network."""
    import datasets.config
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = False
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)


def data_cases() -> Iterator[Case]:
    """Broken data files."""
    row = {"instruction": "Say 1.", "input": "", "output": "It is 1.", "answer": "1"}
    rows = [{**row, "instruction": f"Say {n}.", "answer": str(n)} for n in range(6)]
    lines = "".join(json.dumps(each) + "\n" for each in rows)

    def changed(**change: Any) -> str:
        return json.dumps([{**rows[0], **change}, *rows[1:]])

    files: dict[str, str | bytes] = {
        "json empty": "",
        "json blank": "\n \n",
        "json hello": "hello",
        "json null": "null",
        "json number": "3",
        "json text": '"x"',
        "json object": json.dumps(row),
        "json object of rows": json.dumps({"data": rows}),
        "json empty list": "[]",
        "json list of numbers": "[1, 2]",
        "json list of lists": "[[1]]",
        "json list of nulls": "[null]",
        "json list of texts": '["a"]',
        "json empty objects": "[{}, {}]",
        "json cut": json.dumps(rows)[:-40],
        "json cut in a character": json.dumps([{**row, "instruction": "é" * 9}], ensure_ascii=False).encode()[:25],
        "json comma": json.dumps(rows)[:-1] + ",]",
        "json comments": "// x\n" + json.dumps(rows),
        "json single quotes": str(rows),
        "json two": json.dumps(rows) + json.dumps(rows),
        "json binary": os.urandom(2000),
        "json zeros": b"\0" * 2000,
        "json UTF-16": json.dumps(rows).encode("utf-16"),
        "json UTF-32": json.dumps(rows).encode("utf-32"),
        "json Latin-1": json.dumps([{**row, "instruction": "é"}] * 2, ensure_ascii=False).encode("latin-1"),
        "json BOM": json.dumps(rows).encode("utf-8-sig"),
        "json NUL": changed(instruction="a\0b"),
        "json surrogate": changed(instruction="a\ud800b"),
        "json surrogate answer": changed(answer="\udfff"),
        "json surrogate id": changed(id="\ud800"),
        "json surrogate key": changed(**{"\ud800": "x"}),
        "json deep": "[" * 100_000 + "]" * 100_000,
        "json deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "json deep in a row": '[{"instruction": "x", "extra": ' + "[" * 900 + "]" * 900 + "}]",
        "json deep in output": '[{"instruction": "x", "output": ' + "[" * 100_000 + "]" * 100_000 + "}]",
        "json NaN": '[{"instruction": NaN}]',
        "json NaN answer": '[{"instruction": "x", "output": "y", "answer": NaN}]',
        "json huge integer": f'[{{"instruction": "x", "answer": {"9" * 5000}}}]',
        "json infinite": '[{"instruction": "x", "answer": 1e999}]',
        "json instruction number": changed(instruction=3),
        "json instruction null": changed(instruction=None),
        "json instruction empty": changed(instruction=""),
        "json instruction blank": changed(instruction=" \n"),
        "json instruction list": changed(instruction=["a"]),
        "json instruction object": changed(instruction={"a": 1}),
        "json instruction long": changed(instruction="word " * 1_000_000),
        "json output long": changed(output="word " * 1_000_000),
        "json answer long": changed(answer="9" * 5_000_000),
        "json output null": changed(output=None),
        "json output number": changed(output=3.5),
        "json output list": changed(output=["a"]),
        "json output bool": changed(output=True),
        "json input object": changed(input={"a": 1}),
        "json input number": changed(input=7),
        "json answer list": changed(answer=[1]),
        "json answer null": changed(answer=None),
        "json answer blank": changed(answer=" "),
        "json answer bool": changed(answer=False),
        "json id list": changed(id=[1]),
        "json id object": changed(id={"a": 1}),
        "json ids twice": json.dumps([{**each, "id": "a"} for each in rows]),
        "json ids number and text": json.dumps([{**rows[0], "id": 1}, {**rows[1], "id": "1"}]),
        "json one row": json.dumps(rows[:1]),
        "json no outputs": json.dumps([{"instruction": f"x{n}"} for n in range(5)]),
        "json the same rows": json.dumps([row] * 6),
        "json mixed types": json.dumps([{**rows[0], "extra": 1}, {**rows[1], "extra": "a"}, {**rows[2], "extra": [1]}]),
        "json many columns": json.dumps([{**row, **{f"c{n}": n for n in range(20_000)}}]),
        "json escape codes": changed(instruction="\x1b[31mred\x1b[0m\x07"),
        "json special tokens": changed(instruction="<eos><pad><bos>", output="<eos>"),
        "json key twice": '[{"instruction": "a", "instruction": "b", "output": "c"}, {"instruction": "d"}]',
        "jsonl empty": "",
        "jsonl blank lines": "\n\n" + lines.replace("\n", "\n\n"),
        "jsonl list": json.dumps(rows),
        "jsonl cut": lines[:-30],
        "jsonl broken line": lines.replace("\n", "\nx\n", 1),
        "jsonl numbers": "1\n2\n",
        "jsonl one long line": json.dumps({**row, "instruction": "a" * 5_000_000}) + "\n",
        "jsonl CRLF": lines.replace("\n", "\r\n"),
        "jsonl CR": lines.replace("\n", "\r"),
        "jsonl line separator": json.dumps({**row, "output": "a\u2028b"}, ensure_ascii=False) + "\n" + lines,
        "jsonl deep": "[" * 100_000 + "\n",
        "jsonl binary": os.urandom(2000),
        "jsonl UTF-16": lines.encode("utf-16"),
        "csv empty": "",
        "csv header": "instruction,output\n",
        "csv no columns": "\n\n\n",
        "csv no instruction": "a,b\n1,2\n",
        "csv short row": "instruction,output\na\nb,c\n",
        "csv long row": "instruction,output\na,b,c\n",
        "csv open quote": 'instruction,output\n"a,b\n',
        "csv stray quote": 'instruction,output\n"a"x,b\n',
        "csv columns twice": "instruction,instruction\na,b\nc,d\n",
        "csv empty names": ",,\ninstruction,b,c\n",
        "csv semicolons": "instruction;output\na;b\n",
        "csv tabs": "instruction\toutput\na\tb\n",
        "csv NUL": "instruction,output\na\0,b\n",
        "csv long field": "instruction,output\n" + "a" * 5_000_000 + ",b\n",
        "csv BOM": "instruction,output,answer\na,b,c\nd,e,f\n".encode("utf-8-sig"),
        "csv UTF-16": "instruction,output\na,b\n".encode("utf-16"),
        "csv Latin-1": "instruction,output\né,b\n".encode("latin-1"),
        "csv binary": os.urandom(2000),
        "csv formula": "instruction,output,answer\n=cmd|' /C calc'!A0,b,c\nd,e,f\n",
        "parquet empty": b"",
        "parquet text": "hello",
        "parquet magic": b"PAR1" + os.urandom(200) + b"PAR1",
        "parquet json": json.dumps(rows),
        "txt json": json.dumps(rows),
        "txt text": "hello\n",
    }
    for what, content in files.items():
        name = f"d.{what.partition(' ')[0]}"
        words = fit("LoRA", "--adapter.rank", "2", "--data.path", name)
        yield Case(f"file/fit {what}", words, put(name, content), "any", (re.escape(name),), how=what)
    chosen = ("json empty", "json cut", "json deep", "json surrogate", "json instruction number", "json answer null",
              "json NaN answer", "json instruction long", "json surrogate answer", "json UTF-16", "jsonl broken line",
              "csv open quote", "parquet magic", "json ids twice", "json answer long", "json huge integer")  # fmt: skip
    for what in chosen:
        name = f"d.{what.partition(' ')[0]}"
        spoil = put(name, files[what])
        yield Case(f"file/test {what}", [*TEST, "--data.test_path", name], spoil, "any", (re.escape(name),), how=what)
        if what not in ("json UTF-16", "parquet magic"):
            words = ["predict", "--data.test_path", name, *QUIET]
            yield Case(f"file/predict {what}", words, spoil, "any", (re.escape(name),), how=what)

    def parquet(columns: Callable[[], dict[str, Any]]) -> Callable[[], None]:
        def work() -> None:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(columns()), "d.parquet")

        return work

    for what, make in {
        "good": lambda: {"instruction": ["a", "b"], "output": ["c", "d"]},
        "no columns": dict,
        "no rows": lambda: {"instruction": [], "output": []},
        "numbers": lambda: {"instruction": [1, 2], "output": [3, 4]},
        "bytes": lambda: {"instruction": [b"a", b"\xff"], "output": [b"c", b"d"]},
        "nested": lambda: {"instruction": [{"a": 1}, {"a": 2}], "output": ["c", "d"]},
        "lists": lambda: {"instruction": ["a", "b"], "output": [["c"], ["d"]]},
        "nulls": lambda: {"instruction": [None, None], "output": ["c", "d"]},
        "other columns": lambda: {"x": ["a", "b"]},
        "numbers out": lambda: {"instruction": ["a", "b"], "output": [3.5, float("nan")]},
    }.items():
        words = fit("LoRA", "--adapter.rank", "2", "--data.path", "d.parquet")
        expect = "fine" if what == "good" else "any"
        yield Case(f"file/fit parquet {what}", words, parquet(make), expect, ("d.parquet",), how=f"parquet: {what}")
        if what == "good":
            for share in (0.2, 0.9):
                spoil = both(parquet(make), cut("d.parquet", share))
                yield Case(f"file/fit parquet cut {share}", words, spoil, says=("d.parquet",), how="parquet cut")
            for share in (0.1, 0.4, 0.7):
                spoil = both(parquet(make), flip("d.parquet", share, 30))
                yield Case(
                    f"file/fit parquet overwritten {share}", words, spoil, "any", ("d.parquet",), how="overwritten"
                )
    for what, spoil in {
        "folder": as_folder("d.json"),
        "pipe": as_fifo("d.json"),
        "dangling link": as_link("d.json", "nowhere"),
        "link to itself": as_link("d.json", "d.json"),
        "link to zero": as_link("d.json", "/dev/zero"),
    }.items():
        for name in ("d.json",) if what != "pipe" else ("d.json", "d.parquet"):
            made = spoil if name == "d.json" else as_fifo(name)
            words = fit("LoRA", "--adapter.rank", "2", "--data.path", name)
            yield Case(f"file/fit {name} {what}", words, made, says=(re.escape(name),), how=what)
    for online in (False, True):
        spoil, word = (_online, "online") if online else (None, "offline")
        yield Case(
            f"hub/{word} data set",
            fit("LoRA", "--adapter.rank", "2", "--data.path", "nobody-here/nothing-at-all"),
            spoil,
            says=("nobody-here/nothing-at-all",),
            within=5,
        )
        yield Case(f"hub/{word} base", _based("nobody-here/nothing"), spoil, says=("nobody-here/nothing",), within=5)
        words = [*base_test(), "--model.base", "nobody-here/nothing"]
        yield Case(f"hub/{word} test base", words, spoil, says=("nobody-here/nothing",), within=5)
        yield Case(f"hub/{word} short base", _based("no-such-model"), spoil, says=("no-such-model",), within=5)
        words = ["plan", "--model.base", "nobody-here/nothing", "--adapter", "LoRA"]
        yield Case(f"hub/{word} plan", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["test", "--adapter_path", "nobody-here/nothing", *_DATA, *QUIET]
        yield Case(f"hub/{word} adapter", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["export", "--adapter_path", "nobody-here/nothing", "--out", "out"]
        yield Case(f"hub/{word} export", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["export", "--out", "out", "--push", "nobody-here/nothing"]
        yield Case(f"hub/{word} push", words, spoil, says=("nobody-here/nothing",), within=10)
        yield Case(f"hub/{word} fetch", ["data", "fetch", "gsm8k"], spoil, says=("fetch",), within=10, leads_out=True)
        yield Case(
            f"hub/{word} published set",
            fit("LoRA", "--adapter.rank", "2", "--data", "gsm8k", "--data.files", "{}"),
            spoil,
            "any",
        )
        yield Case(
            f"hub/{word} coded data set",
            fit("LoRA", "--adapter.rank", "2", "--data.path", "own/data"),
            both(
                spoil or (lambda: None),
                lambda: write("own/data/data.py", f"import os\nos.makedirs({CANARY!r})\n"),
            ),
            "any",
        )


# ---- what a run holds


def run_file_cases() -> Iterator[Case]:
    """Broken files of a finished run, and the commands that read them."""
    results, metrics = RUN / "results.json", RUN / "metrics.csv"
    config, environment = RUN / "config.yaml", RUN / "environment.json"
    copy = lambda: shutil.copytree(RUN, "runs/lora-2")  # noqa: E731
    compare = ["compare", "lora-1", "lora-2"]

    def sets(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        return json_with(results, lambda found: [change(found["sets"]), None])

    first = lambda found: found[next(iter(found))]  # noqa: E731
    kinds: dict[str, Callable[[], Any]] = {
        "missing": remove(results),
        "empty": put(results, ""),
        "no JSON": put(results, "x"),
        "cut": cut(results, 0.5),
        "null": put(results, "null"),
        "a list": put(results, "[]"),
        "a number": put(results, "3"),
        "an empty object": put(results, "{}"),
        "binary": put(results, os.urandom(300)),
        "deep": put(results, '{"sets": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "UTF-16": put(results, '{"sets": {}}'.encode("utf-16")),
        "a folder": as_folder(results),
        "a pipe": as_fifo(results),
        "a dangling link": as_link(results, "nowhere"),
        "sets null": json_with(results, place("sets", value=None)),
        "sets a list": json_with(results, place("sets", value=[1])),
        "sets a text": json_with(results, place("sets", value="x")),
        "sets empty": json_with(results, place("sets", value={})),
        "sets of texts": sets(lambda found: found.update(dict.fromkeys(found, "x"))),
        "sets of nulls": sets(lambda found: found.update(dict.fromkeys(found))),
        "sets of lists": sets(lambda found: found.update({key: [1] for key in found})),
        "a set that climbs": sets(lambda found: found.update({"../../../elsewhere/x": first(found)})),
        "a set that is absolute": sets(lambda found: found.update({"/etc/passwd": first(found)})),
        "a set of no name": sets(lambda found: found.update({"": first(found)})),
        "a set of a long name": sets(lambda found: found.update({"a" * 5000: first(found)})),
        "n missing": sets(lambda found: first(found).pop("n")),
        "n text": sets(lambda found: first(found).update(n="x")),
        "n null": sets(lambda found: first(found).update(n=None)),
        "n huge": sets(lambda found: first(found).update(n=10**30)),
        "settings text": sets(lambda found: first(found).update(settings="x")),
        "settings null": sets(lambda found: first(found).update(settings=None)),
        "digest number": sets(lambda found: first(found).update(predictions_sha256=3)),
        "digest null": sets(lambda found: first(found).update(predictions_sha256=None)),
        "digest another": sets(lambda found: first(found).update(predictions_sha256="0" * 64)),
        "digest that climbs": sets(lambda found: first(found).update(predictions_sha256="../../x", n=1)),
        "protocol that climbs": sets(
            lambda found: first(found).update(settings={"protocol": "../../../../elsewhere/x"}, n=1)
        ),
        "model a list": sets(lambda found: first(found).update(model=[1])),
        "accuracy text": sets(lambda found: first(found).update(accuracy="x")),
        "accuracy nan": sets(lambda found: first(found).update(accuracy=float("nan"))),
        "others a list": json_with(results, place("others", value=[1])),
        "others null": json_with(results, place("others", value=None)),
        "data a list": json_with(results, place("data", value=[1])),
        "protocol a list": json_with(results, place("protocol", value=[1])),
        "average text": json_with(results, place("average", value="x")),
    }
    for what, spoil in kinds.items():
        yield Case(f"results/test {what}", TEST, spoil, "any", ("results.json",), how=f"results.json: {what}")
        yield Case(
            f"results/compare {what}", compare, both(copy, spoil), "any", ("results|run",), how=f"results.json: {what}"
        )
    yield Case("results/test n 1", [*TEST, "--overwrite"], sets(lambda found: first(found).update(n=1)), "any")
    for what in ("no JSON", "a list", "sets of texts", "a pipe"):
        words = ["predict", "--data.test_path", "sums.json", *QUIET]
        yield Case(f"results/predict {what}", words, kinds[what], "any", how=f"results.json: {what}")
        yield Case(f"results/validate {what}", ["validate", *QUIET], kinds[what], "any", how=f"results.json: {what}")

    def predictions(work: Callable[[Path], Any]) -> Callable[[], None]:
        return lambda: [work(file) for file in sorted((RUN / "predictions").glob("*.jsonl"))] and None

    def lines_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        def work(file: Path) -> None:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                change(row)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            from adapters_pl.evaluation.results import digest

            sets(lambda found: found[file.stem].update(predictions_sha256=digest(file.read_bytes())))()

        return predictions(work)

    broken = {
        "missing": predictions(lambda file: file.unlink()),
        "empty": predictions(lambda file: file.write_text("")),
        "blank": predictions(lambda file: file.write_text("\n\n")),
        "no JSON": predictions(lambda file: file.write_text("x\n")),
        "cut": predictions(lambda file: os.truncate(file, file.stat().st_size // 2)),
        "a folder": predictions(lambda file: as_folder(file)()),
        "a pipe": predictions(lambda file: as_fifo(file)()),
        "numbers": predictions(lambda file: file.write_text("1\n2\n")),
        "binary": predictions(lambda file: file.write_bytes(os.urandom(500))),
        "deep": predictions(lambda file: file.write_text("[" * 100_000 + "\n")),
        "id missing": lines_with(lambda row: row.pop("id")),
        "id list": lines_with(lambda row: row.update(id=[1])),
        "ids the same": lines_with(lambda row: row.update(id="x")),
        "correct text": lines_with(lambda row: row.update(correct="x")),
        "correct missing": lines_with(lambda row: row.pop("correct")),
        "output missing": lines_with(lambda row: row.pop("output")),
        "gold nan": lines_with(lambda row: row.update(gold=float("nan"))),
        "row text": lines_with(lambda row: row.update(row="x")),
    }
    for what, spoil in broken.items():
        yield Case(f"predictions/compare {what}", compare, both(copy, spoil), "any", ("run|lora-1",), how=what)
        if what in (
            "empty",
            "no JSON",
            "cut",
            "a folder",
            "a pipe",
            "numbers",
            "deep",
            "correct missing",
            "output missing",
        ):
            words = [*TEST, "--data.eval_batch_size", "1"]
            # The figures are another test's of the same rows, so that the two are compared.
            spoil = both(spoil, sets(lambda found: first(found).update(predictions_sha256="0" * 64)))
            yield Case(f"predictions/test {what}", words, spoil, "any", how=f"predictions: {what}")

    def partial(content: str | bytes) -> Callable[[], None]:
        return lambda: (
            [write(file.with_suffix(".partial.jsonl"), content) for file in (RUN / "predictions").glob("*.jsonl")]
            and None
        )

    for what, content in {
        "empty": "",
        "no JSON": "x",
        "list": "[]\n",
        "other settings": '{"settings": {"a": 1}}\n{"row": 0}\n',
        "binary": os.urandom(300),
        "deep": "[" * 100_000,
    }.items():
        yield Case(f"predictions/test partial {what}", TEST, partial(content), "any", how=f"partial.jsonl: {what}")
    for what, spoil in {
        "missing": remove(metrics),
        "empty": put(metrics, ""),
        "binary": put(metrics, os.urandom(300)),
        "no steps": put(metrics, "a,b\n1,2\n"),
        "steps of text": put(metrics, "step,val_loss\nx,y\n"),
        "short rows": put(metrics, "step,val_loss\n1\n"),
        "cut": cut(metrics, 0.6),
        "NUL": put(metrics, "step,\0\n1,2\n"),
        "a folder": as_folder(metrics),
        "a pipe": as_fifo(metrics),
        "long field": put(metrics, "step,x\n1," + "a" * 500_000 + "\n"),
        "open quote": put(metrics, 'step,x\n1,"a\n'),
    }.items():
        yield Case(f"metrics/fit {what}", RESUME, spoil, "any", ("metrics.csv",), how=f"metrics.csv: {what}")
    for file, name in ((config, "config.yaml"), (environment, "environment.json")):
        for what, spoil in {
            "missing": remove(file),
            "empty": put(file, ""),
            "broken": put(file, "{[x"),
            "a list": put(file, "[1]"),
            "binary": put(file, os.urandom(300)),
            "a folder": as_folder(file),
            "a pipe": as_fifo(file),
            "a dangling link": as_link(file, "nowhere"),
        }.items():
            yield Case(f"about/test {name} {what}", TEST, spoil, "any", how=f"{name}: {what}")
            yield Case(f"about/fit {name} {what}", RESUME, spoil, "any", how=f"{name}: {what}")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}
    for what, content in {"broken": "{[x", "a list": "[1]", "binary": b"\xff\xfe", "deep": "[" * 100_000}.items():
        words = fit("LoRA", "--adapter.rank", "2")
        yield Case(
            f"about/requeued environment {what}", words, put(environment, content), "any", how=what, environment=slurm
        )
    words = fit("LoRA", "--adapter.rank", "2")
    yield Case("about/restart count text", words, None, "any", environment={**slurm, "SLURM_RESTART_COUNT": "x"})
    for what, folder in {"checkpoints": RUN / "checkpoints", "predictions": RUN / "predictions"}.items():
        spoil = both(remove(folder), put(folder, "x"))
        yield Case(f"about/test {what} a file", TEST, spoil, "any", (what,), how=f"{what} a file")
        yield Case(f"about/fit {what} a file", RESUME, spoil, "any", how=f"{what} a file")
    yield Case("about/fit disk full", RESUME, _small_files, "any", how="no file may be larger than 4 KiB")
    yield Case(
        "about/export disk full", ["export", "--out", "out"], _small_files, "any", how="no file larger than 4 KiB"
    )
    yield Case("about/test disk full", TEST, _small_files, "any", how="no file may be larger than 4 KiB")


def _small_files() -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    resource.setrlimit = lambda *_: None  # type: ignore[assignment]


# ---- the other commands


def command_cases() -> Iterator[Case]:
    """``export``, ``plan``, ``data``, ``compare`` and ``recipes`` with nonsense."""
    export = ["export", "--out", "out"]
    for words, spoil, expect, says in (
        (["export"], None, "refused", ("--out",)),
        (["export", "--out"], None, "refused", ("--out",)),
        (["export", "--out", ""], None, "refused", ("--out",)),
        (["export", "--out", "."], None, "refused", ("--out",)),
        (["export", "--out", "base"], None, "refused", ("--out base",)),
        (["export", "--out", "sums.json"], None, "refused", ("sums.json",)),
        (["export", "--out", "sums.json/x"], None, "refused", ("sums.json",)),
        (["export", "--out", "/proc/x"], None, "refused", ("/proc/x",)),
        (["export", "--out", "/dev/null"], None, "refused", ("/dev/null",)),
        (["export", "--out", "a" * 300], None, "refused", ("--out",)),
        (["export", "--out", "a/" * 3000], None, "refused", ("--out",)),
        (["export", "--out", "\udcff"], None, "any", ()),
        (["export", "--out", "é ☃"], None, "fine", ()),
        (["export", "--out", "x/y/z"], None, "fine", ()),
        (["export", "--out", "link"], as_link("link", "nowhere"), "any", ("link",)),
        (["export", "--out", "link"], as_link("link", "link"), "any", ("link",)),
        (["export", "--out", "pipe"], as_fifo("pipe"), "refused", ("pipe",)),
        ([*export, "--ckpt_path", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--ckpt_path", ""], None, "refused", ("ckpt_path",)),
        ([*export, "--ckpt_path", "sums.json"], None, "refused", ("sums.json",)),
        ([*export, "--ckpt_path", "base"], None, "refused", ("base",)),
        ([*export, "--ckpt_path", "null"], None, "refused", ("ckpt_path",)),
        ([*export, "--ckpt_path", "best"], None, "any", ()),
        ([*export, "--adapter_path", ""], None, "refused", ("adapter_path",)),
        ([*export, "--adapter_path", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--adapter_path", "sums.json"], None, "refused", ("sums.json",)),
        ([*export, "--adapter_path", "base"], None, "refused", ("base",)),
        ([*export, "--adapter_path", "\udcff"], None, "refused", ()),
        ([*export, "--adapter_path", "adapter", "--ckpt_path", "last"], None, "refused", ("ckpt_path",)),
        ([*export, "--base", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--base", ""], None, "any", ()),
        ([*export, "--base", "sums.json"], None, "refused", ("sums.json",)),
        ([*export, "--base", "runs"], None, "refused", ("runs",)),
        ([*export, "--base", "quickstart"], None, "refused", ()),
        ([*export, "--dtype", "int8"], None, "refused", ("dtype",)),
        ([*export, "--quantization", "3bit"], None, "refused", ("quantization",)),
        ([*export, "--merge", "--quantization", "4bit"], None, "any", ()),
        ([*export, "--merge", "--quantization", "8bit"], None, "any", ()),
        ([*export, "--merge"], None, "fine", ()),
        ([*export, "--merge", "yes"], None, "refused", ()),
        ([*export, "--merge", "--base", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--no_such"], None, "refused", ("no_such",)),
        ([*export, "stray"], None, "refused", ("stray",)),
        ([*export, "--push", ""], None, "any", ()),
        ([*export, "--push", "a/b/c/d"], None, "refused", ("a/b/c/d",)),
        ([*export, "--push", "../x"], None, "refused", ("x",)),
        ([*export, "--config", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--trainer.default_root_dir", "nowhere"], None, "refused", ("nowhere",)),
        ([*export, "--trainer.default_root_dir", "sums.json"], None, "refused", ("sums.json",)),
        ([*export, "--merge"], remove("base"), "refused", ("base",)),
        (export, remove("base"), "refused", ("base",)),
        ([*export, "--merge"], cut("base/model.safetensors", 0.5), "refused", ("base",)),
        (
            [*export, "--merge"],
            tensors_with("base/model.safetensors", lambda t: [next(iter(t.values())).fill_(float("nan"))]),
            "refused",
            ("base",),
        ),
        (
            [*export, "--merge"],
            stored_with(lambda s: [value.fill_(1e30) for value in s["state_dict"].values()]),
            "any",
            (),
        ),
        (
            [*export, "--merge", "--dtype", "float16"],
            stored_with(lambda s: [value.fill_(1e4) for value in s["state_dict"].values()]),
            "any",
            (),
        ),
    ):
        name = f"export/{' '.join(map(_short, words[1:])) or 'nothing'}"
        elsewhere = words[-1].startswith("/")  # where the user says
        yield Case(name + (" (spoilt)" if spoil else ""), words, spoil, expect, says, leads_out=elsewhere)
    for adapter in ("PrefixTuning", "PromptTuning", "PTuning", "SeriesAdapter", "ParallelAdapter"):
        yield Case(
            f"export/merge {adapter}",
            [*export, "--merge"],
            _trained_as(adapter),
            says=(adapter,),
            how=f"a run of {adapter}",
        )
    for words in (
        [],
        ["--adapter", "LoRA"],
        ["--model.base", "base"],
        ["--model.base", "nowhere", "--adapter", "LoRA"],
        ["--model.base", "sums.json", "--adapter", "LoRA"],
        ["--model.base", "base", "--adapter", "NoSuch"],
        ["--model.base", "base", "--adapter", "LoRA", "--adapter.rank", "0"],
        ["--model.base", "base", "--adapter", "LoRA", "--adapter.rank", "x"],
        ["--model.base", "base", "--adapter", "LoRA", "--adapter.rank", "1000000000000"],
        ["--model.base", "base", "--adapter", "LoRA", "--adapter.target_modules", "(.*)*(.*)*(.*)*x!"],
        ["--model.base", "base", "--adapter", "LoRA", "--data.batch_size", "x"],
        ["--model.base", "base", "--adapter", "LoRA", "--data", "NoSuch"],
        ["--model.base", "base", "--adapter", "LoRA", "--data", "InstructionJSON", "--data.path", "nowhere.json"],
        ["--model.base", "base", "--adapter", "LoRA", "--trainer.devices", "x"],
        ["--model.base", "base", "--adapter", "LoRA", "--trainer.devices", "1000"],
        ["--model.base", "base", "--adapter", "LoRA", "--trainer.precision", "weird"],
        ["--model.base", "base", "--adapter", "LoRA", "--trainer.strategy", "no_such"],
        ["--model.base", "base", "--adapter", "LoRA", "--model.lr", "x"],
        ["--model.base", "base", "--adapter", "LoRA", "--no_such", "1"],
        ["--model.base", "base", "--adapter", "LoRA", "stray"],
        ["--model.base", "base", "--adapter", "[LoRA, LoRA]"],
        ["--model.base", "base", "--adapter", "LoRA", "--ckpt_path", "last"],
        ["--model.base", "base", "--adapter", "LoRA", "--adapter_path", "adapter"],
        ["--model.base", "base", "--adapter", "LoRA", "--model.attn_implementation", "no_such"],
        ["--model.base", "base", "--adapter", "LoRA", "--model.quantization", "3bit"],
        ["--model.base", "base", "--adapter", "LoRA", "--data.cutoff", "99999999999999999999"],
        ["--model.base", "base", "--adapter", "LoRA", "--data.batch_size", "99999999999999999999"],
        ["--model.base", "base", "--adapter", "LoRA", "--trainer.accumulate_grad_batches", "-1"],
        ["--config"],
        ["--config", "nowhere"],
        ["--config", "lora_llama7b"],
        ["--config", "quickstart"],
    ):
        yield Case(f"plan/{' '.join(map(_short, words)) or 'nothing'}", ["plan", *words], expect="any")
    for words in (
        [],
        ["no_such"],
        ["list", "x"],
        ["list", "--root", "nowhere"],
        ["list", "--root", ""],
        ["list", "--root", "sums.json"],
        ["list", "--root", "\udcff"],
        ["list"],
        ["fetch"],
        ["fetch", "no_such"],
        ["fetch", ""],
        ["fetch", "gsm8k", "--no_such"],
        ["fetch", "InstructionJSON"],
        ["fetch", "word_problems"],
        ["fetch", "../x"],
        ["verify"],
        ["verify", "no_such"],
        ["verify", "gsm8k"],
        ["verify", "--root", "nowhere"],
        ["verify", "--root", "sums.json"],
        ["verify", "word_problems"],
        ["show"],
        ["show", "no_such"],
        ["show", "gsm8k"],
        ["show", "gsm8k", "--rows", "x"],
        ["show", "gsm8k", "--rows", "-1"],
        ["show", "gsm8k", "--rows", "9" * 30],
        ["show", "gsm8k", "--split", "no_such"],
        ["show", "gsm8k", "--split", "train"],
        ["show", "gsm8k", "--root", "nowhere"],
        ["show", "word_problems"],
        ["show", "arithmetic"],
        ["show", "math_10k", "--split", "test"],
        ["show", "a", "b"],
        ["show", ""],
        ["list", "--help"],
        ["show", "--help"],
        ["--config", "x"],
    ):
        name = f"data-command/{' '.join(map(_short, words)) or 'nothing'}"
        yield Case(name, ["data", *words], expect="any", leads_out="fetch" in words)  # into the cache
    for adapter, settings in ADAPTERS.items():
        words = ["plan", "--model.base", "base", "--adapter", adapter, *settings]
        yield Case(f"plan/of {adapter}", words, expect="fine")
        yield Case(f"fit/of {adapter}", fit(adapter, *settings), expect="fine")
    yield Case("fit/resumed", RESUME, expect="fine")
    yield Case("fit/tested", TEST, expect="fine")
    yield Case("fit/compared", ["compare", "lora-1", "lora-1"], expect="fine")
    published = "dataset/gsm8k/test.json"
    for what, spoil in {
        "empty": put(published, ""),
        "broken": put(published, "[{"),
        "another": put(published, '[{"instruction": "x"}]'),
        "a folder": lambda: Path(published).mkdir(parents=True),
        "a pipe": lambda: (Path(published).parent.mkdir(parents=True), os.mkfifo(published)),
        "a dangling link": lambda: as_link(published, "nowhere")(),
        "deep": put(published, "[" * 100_000),
        "binary": put(published, os.urandom(500)),
    }.items():
        for action in ("list", "verify", "show gsm8k"):
            if action != "list" or what in ("a folder", "a pipe", "a dangling link"):
                name = f"data-command/{action} published {what}"
                yield Case(name, ["data", *action.split()], spoil, "any", how=f"{published}: {what}")
    for words in (
        [],
        ["lora-1"],
        ["lora-1", "lora-1"],
        ["lora-1", "no_such"],
        ["no_such", "no_such"],
        ["", ""],
        [".", "."],
        ["..", ".."],
        ["base", "runs"],
        ["sums.json", "sums.json"],
        ["lora-1", "lora-1", "--seed", "x"],
        ["lora-1", "lora-1", "--seed", "-1"],
        ["lora-1", "lora-1", "--seed", "9" * 400],
        ["lora-1", "lora-1", "--root", "nowhere"],
        ["lora-1", "lora-1", "--root", "sums.json"],
        ["lora-1", "lora-1", "--root"],
        ["lora-1", "lora-1", "--no_such"],
        ["\udcff", "\udcfe"],
        ["a" * 5000, "b"],
        ["lora-1\0", "b"],
        ["--config", "x"],
    ):
        yield Case(f"compare/{' '.join(map(_short, words)) or 'none'}", ["compare", *words], expect="any")
    yield Case("compare/no runs at all", ["compare", "lora-1", "lora-2"], remove("runs"))
    yield Case("compare/runs a file", ["compare", "lora-1", "lora-2"], both(remove("runs"), put("runs", "x")))
    yield Case("recipes/broken recipe", ["recipes"], put("configs/x.yaml", b"\xff\xfe# hello"), "any", ("x.yaml",))
    yield Case(
        "recipes/recipe a folder", ["recipes"], lambda: Path("configs/x.yaml").mkdir(parents=True), "any", ("x.yaml",)
    )
    yield Case(
        "recipes/recipe a pipe",
        ["recipes"],
        lambda: (Path("configs").mkdir(), os.mkfifo("configs/x.yaml")),
        "any",
        ("x.yaml",),
    )
    yield Case("recipes/recipe a dangling link", ["recipes"], as_link("configs/x.yaml", "nowhere"), "any", ("x.yaml",))
    yield Case("recipes/configs a file", ["recipes"], put("configs", "x"), "any")


def _trained_as(adapter: str) -> Callable[[], None]:
    """A run of another method, which is then the newest; whatever it prints is not looked at."""

    def work() -> None:
        from adapters_pl.cli.main import main

        assert main(fit(adapter, *ADAPTERS[adapter])) == 0

    return work


FAMILIES = (
    value_cases,
    key_cases,
    config_cases,
    checkpoint_cases,
    adapter_cases,
    base_cases,
    data_cases,
    run_file_cases,
    command_cases,
)


def cases() -> Iterator[Case]:
    """All of them; a name that comes again gets a number."""
    seen: dict[str, int] = {}
    for family in FAMILIES:
        for case in family():
            seen[case.name] = number = seen.get(case.name, 0) + 1
            if number > 1:
                case.name += f" ({number})"
            yield case
