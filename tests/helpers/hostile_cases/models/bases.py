"""Broken base directories, tokenizers and chat templates."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.hostile_cases.common import (
    CANARY,
    Canary,
    SystemCanary,
    as_fifo,
    as_folder,
    as_link,
    base_test,
    both,
    broken_weights,
    cut,
    evil_module,
    fit,
    json_with,
    pickled,
    place,
    plan,
    put,
    remove,
    shortened,
    torch_pickled,
    write,
)
from tests.helpers.hostile_inputs import Case


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
            name = f"{key}={shortened(repr(value))}"
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
