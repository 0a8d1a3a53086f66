"""The same answers from vLLM as from transformers; run where vLLM is installed."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from adapters_pl import CausalLMModule, InstructionJSON, LoRA
from tests.helpers.training import trainer

#: A head of 32 numbers, the smallest that vLLM's attention on CPUs takes.
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """vLLM begins in a quarter of the time where it has no process of its own."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def records(base, rows_file, tmp_path, engine, adapter, test_base=True, **data):
    module = CausalLMModule(str(base), engine=engine, test_base=test_base, dtype="float32")
    asked = InstructionJSON(test_path=str(rows_file), limit_test=6, eval_batch_size=3, **data)
    run = trainer(tmp_path, adapter)

    def moved(trainer, pl_module, stage):
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in pl_module.adapter_parameters().values():
                parameter.add_(torch.randn_like(parameter) * 0.05)

    adapter.on_test_start = lambda trainer, module: moved(trainer, module, "test")
    run.test(module, asked, verbose=False)
    ((_, found),) = module.records.items()
    return sorted(found, key=lambda record: record["row"])


@pytest.mark.parametrize(
    ("settings", "test_base"),
    [({}, True), ({}, False), ({"rslora": True}, True), ({"init": "pissa"}, True), ({"dora": True}, False)],
    ids=["lora", "lora merged", "rslora", "pissa", "dora merged"],
)
def test_texts_are_those_of_transformers(make_base, rows_file, tmp_path, settings, test_base):
    def answered(engine):
        adapter = LoRA(rank=8, dropout=0.0, **settings)
        return records(make_base(**SHAPE), rows_file, tmp_path, engine, adapter, test_base, max_new_tokens=8)

    ours, theirs = answered("transformers"), answered("vllm")
    assert [record.keys() for record in theirs] == [record.keys() for record in ours]
    for key in ("output", "finish", "tokens", "prediction", *(["base_prediction"] if test_base else [])):
        assert [record[key] for record in theirs] == [record[key] for record in ours]
