"""The other commands with nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.hostile_cases.common import (
    ADAPTERS,
    RESUME,
    TEST,
    as_fifo,
    as_link,
    both,
    cut,
    fit,
    put,
    remove,
    shortened,
    stored_with,
    tensors_with,
)
from tests.helpers.hostile_inputs import Case


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
        name = f"export/{' '.join(map(shortened, words[1:])) or 'nothing'}"
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
        yield Case(f"plan/{' '.join(map(shortened, words)) or 'nothing'}", ["plan", *words], expect="any")
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
        name = f"data-command/{' '.join(map(shortened, words)) or 'nothing'}"
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
        yield Case(f"compare/{' '.join(map(shortened, words)) or 'none'}", ["compare", *words], expect="any")
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
