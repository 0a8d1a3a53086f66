"""What an estimate is made of: weights by arithmetic, what strategies divide, and what a configuration comes to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from adapters_pl import CausalLMModule, LoRA, SeriesAdapter
from adapters_pl.models.base import load_config, meta_model
from adapters_pl.training.planning.memory import MemoryModel, Setup
from tests.conftest import tiny_config, tiny_model

SHAPES = Path(__file__).resolve().parents[2] / "helpers/shapes"
LLAMA = str(SHAPES / "llama7b.json")
WEIGHTS = 6_738_415_616
LORA = 4 * 56_098_816


@pytest.fixture(scope="module")
def llama():
    """LLaMA-7B with the paper's LoRA."""
    module = CausalLMModule(LLAMA, dtype="bfloat16")
    skeleton = meta_model(module.config)
    adapter = LoRA()
    adapter.attach_to(skeleton, seed=None)
    return MemoryModel(module, skeleton, [adapter])


def tiny(adapter, name="llama", **changes):
    """A tiny base with an adapter."""
    module = CausalLMModule()
    module.source.config = tiny_config(name, **changes)
    with torch.device("meta"):
        skeleton = tiny_model(name, **changes)
    adapter.attach_to(skeleton, seed=None)
    return MemoryModel(module, skeleton, [adapter])


# ---- what is held


def test_weights_gradients_and_adamw_are_what_arithmetic_gives(llama):
    held = llama.held(Setup(dtype=torch.bfloat16))
    buffers = 2 * 4 * 64  # the rotary frequencies, twice
    assert held.base == 2 * WEIGHTS + buffers
    assert (held.adapter, held.gradients, held.activations) == (LORA, LORA, 0)
    assert held.optimizer == pytest.approx(2 * LORA, rel=1e-5)
    assert held.total == held.base + 4 * LORA + (held.optimizer - 2 * LORA)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float16, 2)])
def test_the_base_has_its_dtype_and_the_adapter_float32(llama, dtype, size):
    held = llama.held(Setup(dtype=dtype))
    assert held.base == pytest.approx(size * WEIGHTS, rel=1e-6)
    assert held.adapter == LORA


def test_a_true_precision_changes_everything(llama):
    held = llama.held(Setup(dtype=torch.float32, precision="bf16-true"))
    assert held.base == pytest.approx(2 * WEIGHTS, rel=1e-6)
    assert (held.adapter, held.gradients) == (LORA // 2, LORA // 2)


@pytest.mark.parametrize(("kind", "bits"), [("8bit", 8), ("4bit", 4 + 8 / 64 + 32 / 64 / 256)])
def test_quantised_layers_hold_their_bits_and_the_rest_its_dtype(llama, kind, bits):
    rest = 2 * 32000 * 4096 + (2 * 32 + 1) * 4096
    rows = 32 * (4 * 4096 + 2 * 11008 + 4096) if kind == "8bit" else 0
    held = llama.held(Setup(dtype=torch.bfloat16, quantization=kind))
    assert held.base == pytest.approx((WEIGHTS - rest) * bits / 8 + 2 * rest + 4 * rows, rel=1e-6)


def test_quantised_layers_are_as_large_as_bitsandbytes_makes_them(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    weight = torch.randn(512, 256)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    real = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    model = tiny(LoRA(rank=4), **sizes)
    name = "model.layers.0.mlp.up_proj.weight"
    assert model._base_sizes(Setup(quantization="4bit"))[name] == pytest.approx(real, rel=0.01)


def test_a_shared_weight_counts_once():
    alone, shared = (tiny(LoRA(rank=4), tie_word_embeddings=tie).held(Setup()).base for tie in (False, True))
    assert alone - shared == 4 * 320 * 32


def test_what_is_saved_beside_the_parameters_counts_as_the_adapters():
    trained = tiny(LoRA(rank=4, modules_to_save=["lm_head"])).held(Setup())
    plain = tiny(LoRA(rank=4)).held(Setup())
    assert trained.adapter - plain.adapter == trained.gradients - plain.gradients == 4 * 320 * 32
    kept = tiny(LoRA(rank=4, init="pissa")).held(Setup())
    assert kept.adapter == 2 * plain.adapter
    assert kept.gradients == plain.gradients
    assert kept.base == plain.base


@pytest.mark.parametrize("name", ["SGD", "Adafactor"])
def test_another_optimizer_has_another_state(name):
    model = tiny(LoRA(rank=4))
    model.module.optimizer_factory = lambda groups: getattr(torch.optim, name)(groups, lr=0.1)
    held = model.held(Setup())
    assert held.optimizer < 0.7 * held.adapter


def test_an_optimizer_that_needs_its_device_is_taken_for_adamw():
    def refuse(groups):
        raise RuntimeError("no kernel for meta tensors")

    model = tiny(LoRA(rank=4))
    model.module.optimizer_factory = refuse
    held = model.held(Setup())
    assert 2 * held.adapter <= held.optimizer < 2.1 * held.adapter


# ---- what strategies do


def test_under_ddp_every_device_holds_all_and_the_gradients_twice(llama):
    one, ddp = (llama.held(Setup(devices=4, division=division, accelerator="cuda")) for division in ("one", "ddp"))
    assert ddp.gradients == 2 * one.gradients
    assert (ddp.base, ddp.adapter, ddp.optimizer) == (one.base, one.adapter, one.optimizer)


def test_under_fsdp_a_device_holds_its_part_and_the_layers_that_are_whole(llama):
    setup = Setup(dtype=torch.bfloat16, devices=4, nodes=2, division="fsdp", accelerator="cuda")
    held = llama.held(setup)
    assert held.gradients == LORA // 8
    assert held.adapter == LORA // 8
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + LORA // 32
    outside = 2 * (2 * 32000 * 4096 + 4096)
    assert held.base == pytest.approx(2 * WEIGHTS / 8 + 3 * layer + outside, rel=1e-4)


def test_with_offload_the_parts_stay_on_the_host(llama):
    setup = Setup(dtype=torch.bfloat16, devices=4, division="fsdp", accelerator="cuda")
    plain, offloaded = llama.held(setup), llama.held(replace(setup, cpu_offload=True))
    assert plain.total - offloaded.total == pytest.approx((2 * WEIGHTS + 4 * LORA) / 4, rel=1e-4)
    assert (offloaded.adapter, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.host == pytest.approx(2 * WEIGHTS + 4 * LORA, rel=1e-4)


def test_the_host_holds_every_processs_base_unless_it_is_mapped_from_the_file(llama):
    stored = Setup(devices=2, division="ddp", accelerator="cuda", dtype=torch.float32)
    assert llama.held(stored).host == 0
    converted = replace(stored, dtype=torch.bfloat16)
    assert llama.held(converted).host == pytest.approx(2 * 2 * WEIGHTS, rel=1e-6)
    assert llama.held(replace(converted, division="fsdp")).host == pytest.approx(2 * WEIGHTS, rel=1e-6)


def test_processes_on_a_cpu_add_up():
    model = tiny(LoRA(rank=4))
    one, two = (model.estimate(Setup(2, tokens=16, devices=n, division="ddp")) for n in (1, 2))
    assert one.total == two.total
    assert two.host == 2 * one.host == 2 * one.total


# ---- activations


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    model = tiny(SeriesAdapter(8), num_hidden_layers=6)

    def activations(**changes):
        return model.estimate(Setup(**{"batch_size": 2, "tokens": 32, **changes})).activations

    assert 1.9 * activations() < activations(batch_size=4) < 2.1 * activations()
    assert 1.9 * activations() < activations(tokens=64)
    assert activations(activation_checkpointing=True) < 0.8 * activations()
    assert activations(eval_batch_size=64) > activations()
    assert activations(eval_batch_size=1) == activations()


def test_written_answers_count_where_best_is_chosen_by_them():
    model = tiny(LoRA(rank=4))
    plain = Setup(eval_batch_size=16, tokens=16)
    written = replace(plain, eval_new_tokens=400)
    assert model.estimate(written).activations > 2 * model.estimate(plain).activations
    assert model.estimate(replace(written, eval_beams=4)).activations > 3 * model.estimate(written).activations


@pytest.mark.parametrize(
    ("monitor", "data", "tokens", "beams"),
    [
        ("val_loss", {}, 0, 1),
        ("val_accuracy", {}, 256, 1),
        ("val_accuracy", {"max_new_tokens": 32, "protocol": "llm_adapters"}, 32, 4),
        ("val_accuracy", {"protocol": "loglikelihood"}, 0, 1),
        ("val_accuracy", {"val_size": 0}, 0, 1),
    ],
)
def test_the_answers_of_a_validation_are_as_long_as_the_data_says(monitor, data, tokens, beams):
    setup = Setup.of(CausalLMModule("quickstart", monitor=monitor), {}, data)
    assert (setup.eval_new_tokens, setup.eval_beams) == (tokens, beams)


def test_a_step_is_traced_once(monkeypatch):
    from adapters_pl.training.planning import memory

    model, traced = tiny(LoRA(rank=4)), []
    monkeypatch.setattr(memory, "training_peak", lambda *given: traced.append(given[2]) or 10**6)
    for setup in (Setup(), Setup(), Setup(devices=2, division="ddp"), Setup(batch_size=2)):
        model.estimate(setup)
    assert [step.rows for step in traced] == [4, 2]


def test_a_model_that_cannot_be_traced_has_an_estimate_without_activations():
    model = tiny(LoRA(rank=4))
    model.module.token_losses = lambda logits, targets: logits.tolist()
    estimate = model.estimate(Setup())
    assert estimate.activations == 0
    assert estimate.total == model.held(Setup()).total
    assert "NotImplementedError" in estimate.problem


# ---- from a configuration


def trainer(**given):
    empty = dict.fromkeys(("accelerator", "devices", "strategy", "num_nodes", "precision", "accumulate_grad_batches"))
    return Namespace(**{**empty, **given})


def test_a_configuration_says_what_the_memory_depends_on():
    module = CausalLMModule(LLAMA, dtype="bfloat16", quantization="4bit", activation_checkpointing=True)
    data = Namespace(batch_size=2, eval_batch_size=6, cutoff=512, val_size=10)
    given = trainer(accelerator="gpu", devices=3, strategy="ddp", num_nodes=2, precision="bf16-mixed")
    assert Setup.of(module, given, data) == Setup(
        batch_size=2,
        eval_batch_size=6,
        tokens=512,
        dtype=torch.bfloat16,
        precision="bf16-mixed",
        quantization="4bit",
        activation_checkpointing=True,
        accelerator="cuda",
        devices=3,
        nodes=2,
        division="ddp",
    )


@pytest.mark.parametrize("stored", [torch.float16, "bfloat16", None])
def test_the_dtype_is_what_the_weights_are_stored_in_unless_another_is_asked_for(stored):
    module = CausalLMModule()
    module.source.config = tiny_config("llama", dtype=stored)
    expected = {"bfloat16": torch.bfloat16, None: torch.float32}.get(stored, stored)
    assert Setup.of(module, trainer(), {}).dtype == expected
    module.source.dtype = "bfloat16"
    assert Setup.of(module, trainer(), {}).dtype == torch.bfloat16


def test_without_data_its_defaults_count():
    setup = Setup.of(CausalLMModule(LLAMA), trainer(accelerator="cpu"), {})
    assert (setup.batch_size, setup.eval_batch_size, setup.tokens) == (4, 8, 256)
    assert (setup.devices, setup.division, setup.dtype) == (1, "one", torch.float32)


@pytest.mark.parametrize(("most", "rows"), [(1024, 4), (1000, 3), (100, 1)])
def test_a_number_of_tokens_per_batch_says_how_many_rows_there_are(most, rows):
    setup = Setup.of(CausalLMModule(LLAMA), trainer(), {"max_tokens_per_batch": most, "batch_size": 9, "cutoff": 256})
    assert (setup.batch_size, setup.by_tokens) == (rows, True)


def test_rows_are_never_longer_than_the_context():
    context = load_config(LLAMA).max_position_embeddings
    assert Setup.of(CausalLMModule(LLAMA), trainer(), {"cutoff": 10**6}).tokens == context


@pytest.mark.parametrize(
    ("given", "data", "eval_rows"),
    [({}, {"val_size": 0}, 0), ({"limit_val_batches": 0}, {"val_size": 9}, 0), ({}, {"eval_batch_size": 3}, 3)],
)
def test_a_run_without_validation_has_no_validation_batch(given, data, eval_rows):
    assert Setup.of(CausalLMModule(LLAMA), trainer(**given), data).eval_batch_size == eval_rows


@pytest.mark.parametrize(
    ("strategy", "division", "offload"),
    [
        ("auto", "ddp", False),
        ("ddp", "ddp", False),
        ("fsdp", "fsdp", False),
        ("fsdp_cpu_offload", "fsdp", True),
        (
            Namespace(class_path="adapters_pl.training.strategies.FullyShardedStrategy", init_args=Namespace()),
            "fsdp",
            False,
        ),
        (
            Namespace(
                class_path="adapters_pl.training.strategies.FullyShardedStrategy", init_args=Namespace(cpu_offload=True)
            ),
            "fsdp",
            True,
        ),
        (Namespace(class_path="lightning.pytorch.strategies.DDPStrategy"), "ddp", False),
    ],
    ids=str,
)
def test_a_strategy_divides_or_repeats(strategy, division, offload):
    setup = Setup.of(CausalLMModule(LLAMA), trainer(accelerator="gpu", devices=2, strategy=strategy), {})
    assert (setup.division, setup.cpu_offload) == (division, offload)
    alone = Setup.of(CausalLMModule(LLAMA), trainer(accelerator="gpu", devices=1, strategy=strategy), {})
    assert alone.division == "one"
