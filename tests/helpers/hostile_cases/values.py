"""Wrong values for every argument."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.helpers.hostile_cases.common import (
    ADAPTERS,
    HUGE,
    fit,
    shortened,
)
from tests.helpers.hostile_inputs import Case

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


def value_cases() -> Iterator[Case]:
    """A wrong value for every argument; whether a value is wrong is not said here, what it ends in is."""
    for adapter, keys in _ADAPTER_VALUES.items():
        for key, values in keys.items():
            for value in values:
                words = fit(adapter, *ADAPTERS[adapter], f"--adapter.{key}={value}")
                yield Case(f"adapter/{adapter}.{key}={shortened(value)}", words, expect="any", says=(key,))
    for key, values in _MODEL_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--model.{key}={value}")
            yield Case(f"model/{key}={shortened(value)}", words, expect="any", says=(f"{key}|{re.escape(value[:30])}",))
    for key, values in _DATA_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--data.{key}={value}")
            said = f"{key}|{re.escape(value.strip('[]')[:30])}" if value.strip("[]{}") else key
            yield Case(f"data/{key}={shortened(value)}", words, expect="any", says=(said,))
    for key in ("train_rows", "test_rows", "problem_seed", "shuffle_answers"):
        for value in ("", "-1", "0", "x", "1.5", "nan"):
            words = fit("LoRA", "--adapter.rank", "2")
            at = words.index("--data")
            words = [*words[:at], "--data", "WordProblems", *words[at + 4 :]]
            words += ["--data.train_rows", "8", "--data.test_rows", "2", f"--data.{key}={value}"]
            yield Case(f"data/WordProblems.{key}={shortened(value)}", words, expect="any", says=(key,))
    for key, values in _TRAINER_VALUES.items():
        for value in values:
            words = fit("LoRA", "--adapter.rank", "2", f"--trainer.{key}={value}")
            says = (f"{key}|{re.escape(value[:30])}",)
            elsewhere = value.startswith("/")  # where the user says
            yield Case(f"trainer/{key}={shortened(value)}", words, expect="any", says=says, leads_out=elsewhere)
    for value in ("", "abc", "-1", "1.5", "nan", "[]", HUGE, "4294967296", "null", "true"):
        words = fit("LoRA", "--adapter.rank", "2", f"--seed_everything={value}")
        yield Case(f"trainer/seed_everything={shortened(value)}", words, expect="any", says=("seed",))
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
