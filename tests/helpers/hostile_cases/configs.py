"""Configurations: keys that are typed, files that are named, and what a checkpoint records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers.hostile_cases.common import (
    CANARY,
    DATA,
    LAST,
    QUIET,
    RESUME,
    SHORT,
    TEST,
    as_fifo,
    as_folder,
    as_link,
    based,
    both,
    coded_base,
    evil_module,
    fit,
    ours_with,
    place,
    put,
    shortened,
)
from tests.helpers.hostile_inputs import Case


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
        yield Case(f"keys/{shortened(word)}", fit("LoRA", "--adapter.rank", "2", word), expect="any")
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
        yield Case(f"words/{' '.join(map(shortened, words)) or 'none' * (not words)}", words, expect=expect)


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
    data = [*DATA, *SHORT, *QUIET]
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


def class_cases() -> Iterator[Case]:
    """Classes and switches that a checkpoint records."""

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
    for words in (TEST, RESUME):
        kernel = ours_with(place("config", "model", "init_args", "attn_implementation", value="someone/kernel"))
        yield Case(f"class/{words[0]} attention of the hub", words, kernel, "fine", how="attn_implementation: a kernel")
    yield Case("class/fit coded base", based("coded"), coded_base, says=("coded",), how="auto_map")
    yield Case(
        "class/plan coded base", ["plan", "--model.base", "coded", "--adapter", "LoRA"], coded_base, says=("coded",)
    )
