"""Broken adapter directories."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.helpers.hostile_cases.common import (
    DATA,
    QUIET,
    SHORT,
    Canary,
    SystemCanary,
    as_fifo,
    as_folder,
    as_link,
    both,
    broken_weights,
    cut,
    json_with,
    pickled,
    place,
    put,
    remove,
    shortened,
    tensors_with,
    torch_pickled,
)
from tests.helpers.hostile_inputs import Case


def adapter_cases() -> Iterator[Case]:
    """Broken adapter directories."""
    config, weights = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
    short = [*DATA, *SHORT, *QUIET]
    ways = {
        "test": ["test", "--adapter_path", "adapter", *short[:-6], *QUIET],
        "fit": ["fit", "--adapter_path", "adapter", *short],
        "export": ["export", "--adapter_path", "adapter", "--out", "out"],
    }
    ways["test"] = ["test", "--adapter_path", "adapter", *DATA, "--data.test_path", "sums.json", *SHORT[:4], *QUIET]
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
            name = f"adapterdir/test {key}={shortened(repr(value))}"
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name += f" {names[name]}"
            spoil = json_with(config, change)
            how = f"adapter_config.json {key}: {shortened(repr(value))}"
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
