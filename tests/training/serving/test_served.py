"""What vLLM can serve and what it is given; none of it needs vLLM."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters_pl import (
    IA3,
    CausalLMModule,
    InstructionJSON,
    LoRA,
    ParallelAdapter,
    PrefixTuning,
    PromptTuning,
    SeriesAdapter,
    UserError,
)
from adapters_pl.training import module as module_file
from adapters_pl.training.adapted import BaseSource
from adapters_pl.training.serving import served
from adapters_pl.training.serving.served import lora_rank, refuse_unserved, served_as_lora, written
from adapters_pl.training.serving.vllm_engine import cache_gib
from tests.conftest import tiny_config
from tests.helpers.training import trainer

PLAIN = {"peft_type": "LORA", "r": 8, "bias": "none", "init_lora_weights": True, "modules_to_save": None}


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(served, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("more", "rank"),
    [
        ({}, 8),
        ({"use_rslora": True, "r": 33}, 33),
        ({"rank_pattern": {}, "alpha_pattern": {}}, 8),
        ({"use_dora": True}, None),
        ({"bias": "all"}, None),
        ({"rank_pattern": {"q_proj": 4}}, None),
        ({"alpha_pattern": {"q_proj": 4}}, None),
        ({"modules_to_save": ["lm_head"]}, None),
        ({"fan_in_fan_out": True}, None),
        ({"init_lora_weights": "pissa"}, None),
        ({"r": 1024}, None),
        ({"r": None}, None),
        ({"peft_type": "IA3"}, None),
    ],
)
def test_plain_lora_is_taken_as_it_is(more, rank):
    assert lora_rank({**PLAIN, **more}) == rank


def test_the_way_is_the_methods(make_base):
    source = BaseSource(str(make_base()))

    def as_lora(adapter):
        return served_as_lora(source.skeleton(), adapter)

    assert as_lora(LoRA(rank=4))
    assert as_lora(LoRA(rank=4, rslora=True))
    assert as_lora(LoRA(rank=4, init="pissa"))
    assert not as_lora(LoRA(rank=4, dora=True))
    assert not as_lora(IA3())
    for adapter in (SeriesAdapter(), ParallelAdapter(), PrefixTuning(), PromptTuning()):
        with pytest.raises(
            UserError, match=rf"vllm serves LoRA, and what can be merged: {type(adapter).__name__}.*tran"
        ):
            as_lora(adapter)


@pytest.mark.parametrize(
    ("base", "adapters", "data", "processes", "message"),
    [
        ({"quantization": "4bit"}, [], {}, 1, "quantised to 4bit"),
        ({"random_init": True}, [], {}, 1, "weights are random"),
        ({"add_tokens": ["<x>"]}, [], {}, 1, "tokens were added"),
        ({"trust_remote_code": True}, [], {}, 1, "code of its own"),
        ({}, [], {}, 2, "2 processes"),
        ({}, [], {"protocol": "llm_adapters"}, 1, "protocol llm_adapters searches with 4 beams"),
        ({}, [], {"protocol": "loglikelihood"}, 1, "options are scored by transformers alone"),
        ({}, [LoRA(name="a"), LoRA(name="b")], {}, 1, "2 adapters"),
        ({}, [LoRA(dora=True)], {}, 1, "LoRA is merged into the base.*add --model.test_base false"),
    ],
)
def test_what_cannot_be_served_is_refused(make_base, rows_file, base, adapters, data, processes, message):
    source = BaseSource(str(make_base()), **base)
    asked = InstructionJSON(path=str(rows_file), **data)
    with pytest.raises(UserError, match=rf"^model\.engine vllm: .*{message}"):
        refuse_unserved(source, adapters, asked, test_base=True, processes=processes)


@pytest.mark.parametrize(("adapters", "test_base"), [([LoRA()], True), ([], True), ([LoRA(dora=True)], False)])
def test_the_rest_is_served_and_nothing_is_left_on_the_base(make_base, rows_file, monkeypatch, adapters, test_base):
    source, asked = BaseSource(str(make_base())), InstructionJSON(path=str(rows_file))
    skeleton = source.skeleton()
    before = [name for name, _ in skeleton.named_modules()]
    monkeypatch.setattr(BaseSource, "skeleton", lambda self: skeleton)
    refuse_unserved(source, adapters, asked, test_base=test_base, processes=1)
    assert [name for name, _ in skeleton.named_modules()] == before


def test_where_vllm_is_missing_the_extra_is_named(make_base, rows_file, monkeypatch):
    monkeypatch.setattr(served, "find_spec", lambda name: None)
    asked = InstructionJSON(path=str(rows_file))
    with pytest.raises(UserError, match=r"pip install 'adapters-pl\[vllm\]'"):
        refuse_unserved(BaseSource(str(make_base())), [], asked, test_base=True, processes=1)


def test_a_refusal_comes_before_the_base_is_loaded(make_base, rows_file, tmp_path):
    module = CausalLMModule(str(make_base()), engine="vllm")
    with pytest.raises(UserError, match=r"model\.engine vllm serves LoRA"):
        trainer(tmp_path, PrefixTuning()).test(module, InstructionJSON(test_path=str(rows_file)))
    assert "model" not in module._modules


# ---- what is written


def adapted(base, adapter):
    module = CausalLMModule(str(base))
    module.add_adapter(adapter)
    with torch.no_grad():
        for parameter in module.adapter_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 9)[None]).logits


def test_a_lora_is_written_beside_the_base_that_is_there(make_base, tmp_path):
    module = adapted(make_base(), LoRA(rank=4, dropout=0.0))
    found = written(module.source, module.model, module.adapters["default"], tmp_path)
    assert (found.base, found.lora, found.rank) == (make_base(), tmp_path / "lora", 4)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 4


def test_anything_else_is_written_merged_and_the_model_stays_as_it_was(make_base, tmp_path):
    module = adapted(make_base(), LoRA(rank=4, dropout=0.0, dora=True))
    before = logits(module.model)
    found = written(module.source, module.model, module.adapters["default"], tmp_path)
    assert (found.base, found.lora) == (tmp_path / "merged", None)
    assert torch.equal(logits(module.model), before)
    assert not [name for name in load_file(found.base / "model.safetensors") if "adapters" in name]
    merged = AutoModelForCausalLM.from_pretrained(found.base).eval()
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mergeable", [True, False])
def test_a_lora_is_merged_where_that_is_asked_for_and_possible(make_base, tmp_path, monkeypatch, mergeable):
    module = adapted(make_base(), LoRA(rank=4, dropout=0.0))
    adapter = module.adapters["default"]
    if not mergeable:

        def refuse(model):
            raise UserError("no")

        monkeypatch.setattr(adapter, "merge", refuse)
    found = written(module.source, module.model, adapter, tmp_path, merged=True)
    assert (found.lora is None) == mergeable
    assert found.base == (tmp_path / "merged" if mergeable else make_base())


def test_a_base_that_is_no_directory_is_written_without_the_adapter(make_base, tmp_path, monkeypatch):
    module = adapted(make_base(), LoRA(rank=4, dropout=0.0))
    monkeypatch.setattr(served, "_on_the_disk", lambda source: None)
    found = written(module.source, module.model, module.adapters["default"], tmp_path)
    with module.base_alone():
        alone = logits(module.model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(found.base).eval()), alone)
    assert found.lora is not None


def test_room_for_keys_and_values_is_that_of_the_texts():
    config = tiny_config("llama_gqa", num_hidden_layers=32, hidden_size=4096, num_attention_heads=32)
    # Two heads of 128 numbers, keys and values, 32 layers: 64 KiB a token in float32.
    assert cache_gib(config, "float32", batch_size=16, longest=1024) == 1
    assert cache_gib(config, "float32", batch_size=16, longest=1025) == 2
    assert cache_gib(config, "bfloat16", batch_size=16, longest=2048) == 1


# ---- who is asked


def test_a_test_asks_the_served_model_and_lets_go_of_it(make_base, rows_file, tmp_path, monkeypatch):
    """With a stand-in for vLLM that answers as transformers do."""
    happened = []
    module = CausalLMModule(str(make_base()), engine="vllm")

    def serve(source, model, adapters, data, test_base):
        engine = CausalLMModule.engine(module, data.eval_batch_size)

        @contextmanager
        def base_alone():
            with module.base_alone():
                happened.append("base alone")
                yield

        engine.base_alone, engine.close = base_alone, lambda: happened.append("closed")
        assert list(adapters) == ["default"]
        assert data.eval_sets
        assert test_base
        happened.append("served")
        return engine

    monkeypatch.setattr(module_file, "serve", serve)
    data = InstructionJSON(test_path=str(rows_file), limit_test=3, max_new_tokens=4, eval_batch_size=2)
    trainer(tmp_path, LoRA(rank=4)).test(module, data, verbose=False)
    assert happened[0] == "served"
    assert happened[-1] == "closed"
    assert "base alone" in happened
    ((_, records),) = module.records.items()
    assert len(records) == 3
    assert all("base_prediction" in record for record in records)
    assert module.identity()["engine"] == "vllm"
    assert "engine" not in CausalLMModule(str(make_base())).__dict__
