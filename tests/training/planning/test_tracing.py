"""A step traced on tensors without contents is a step as torch's own profiler sees it on real ones."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from adapters_pl import IA3, CausalLMModule, LoRA, PrefixTuning, PromptTuning, SeriesAdapter
from adapters_pl.adapters import branch
from adapters_pl.training.planning.tracing import (
    Step,
    generation_peak,
    optimizer_bytes,
    training_peak,
    validation_peak,
)
from tests.conftest import tiny_config, tiny_model, tiny_tokenizer

ROWS, TOKENS = 4, 64


def allocated(run):
    """The most bytes that ``run`` had allocated at one moment, by the allocator's own account."""
    run()
    torch.manual_seed(0)  # how many elements dropout drops is chance
    gc.collect()  # else garbage from before is collected within, and counts as memory that was given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def batch():
    ids = torch.randint(3, 100, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # a batch has padding somewhere, and then attention is given a mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def training(module, parameters, accumulates=False, autocast=False):
    """A step in Lightning's order, with the gradients of an earlier one around."""

    def step():
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = module.label_losses(module.hidden_states(given), given["labels"]).sum()
        if not accumulates:
            for parameter in parameters:
                parameter.grad = None
        loss.backward()
        for parameter in parameters:
            parameter.grad = None

    given = batch()
    return step


def both(name, adapter, attention="eager", checkpointing=False, dtype=torch.float32):
    """A module with a real base and the adapter in it, the adapter's parameters, and the same base without contents."""
    real = tiny_model(name).to(dtype)
    with torch.device("meta"):
        skeleton = tiny_model(name)
    for model in (real, skeleton):
        if attention == "sdpa":
            model.set_attn_implementation("sdpa")
        adapter.attach_to(model, seed=0 if model is real else None)
    module = CausalLMModule()
    module.source.config = tiny_config(name)
    module.model = real.train()
    if checkpointing:
        real.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module, list(adapter.adapter_parameters(real).values()), skeleton


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("name", "adapter", "attention"),
    [
        ("llama_gqa", LoRA(rank=4), "sdpa"),
        ("llama_gqa", LoRA(rank=4, dora=True), "eager"),
        ("gemma3_text", SeriesAdapter(8), "sdpa"),
        ("mistral", PrefixTuning(), "sdpa"),
        ("bloom", LoRA(rank=4, modules_to_save=["ln_f"]), "eager"),
        ("gptj", PrefixTuning(), "eager"),
        ("gpt2", IA3(), "eager"),
        ("falcon", PromptTuning(), "eager"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_peak_is_that_of_a_real_step(name, adapter, attention, checkpointing):
    module, parameters, skeleton = both(name, adapter, attention, checkpointing)
    measured = allocated(training(module, parameters))
    del module._modules["model"]
    estimate = training_peak(module, skeleton, Step(ROWS, TOKENS, checkpointing=checkpointing))
    # Checkpointing keeps the random state of every layer, 5 KiB each, which is nothing in a larger model.
    least = measured - 3 * 5056 if checkpointing else measured
    assert least * 0.999 <= estimate <= measured * 1.001


@pytest.mark.parametrize("adapter", [LoRA(rank=4), PrefixTuning(virtual_tokens=5)], ids=["LoRA", "prefix"])
@pytest.mark.parametrize("name", ["llama_gqa", "opt"])
@pytest.mark.parametrize("new", [8, 300])
def test_writing_answers_takes_what_a_real_one_takes(name, adapter, new):
    module, _, skeleton = both(name, adapter, "sdpa")
    given = batch()
    module.model.eval()
    settings = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    ids, mask = given["input_ids"], given["attention_mask"].flip(1)  # prompts are padded in front

    def write():
        module.model.generate(input_ids=ids, attention_mask=mask, **settings)

    measured = allocated(write)
    del module._modules["model"]
    estimate = generation_peak(module, skeleton, Step(ROWS, TOKENS), new)
    assert estimate == pytest.approx(measured, rel=0.1)
    # After a long answer it is the cache that counts, and no longer the prompts.
    assert (estimate > 1.1 * generation_peak(module, skeleton, Step(ROWS, TOKENS), 1)) == (new == 300)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, {}),
        (torch.float32, {"accumulates": True}),
        (torch.float32, {"autocast": torch.bfloat16}),
        (torch.bfloat16, {"autocast": torch.bfloat16}),
    ],
    ids=["bfloat16", "accumulation", "mixed", "mixed bfloat16"],
)
def test_dtypes_and_accumulation_count(dtype, options):
    module, parameters, skeleton = both("llama", LoRA(rank=32), "sdpa", dtype=dtype)
    measured = allocated(training(module, parameters, "accumulates" in options, "autocast" in options))
    del module._modules["model"]
    estimate = training_peak(module, skeleton, Step(ROWS, TOKENS, dtype, **options))
    assert estimate == pytest.approx(measured, rel=0.01)


def test_a_validation_batch_keeps_nothing_for_a_backward_pass():
    module, _, skeleton = both("llama", LoRA(rank=4))
    given = batch()
    module.model.eval()

    @torch.no_grad()
    def losses():
        module.label_losses(module.hidden_states(given), given["labels"])

    measured = allocated(losses)
    del module._modules["model"]
    step = Step(ROWS, TOKENS)
    assert validation_peak(module, skeleton, step) == pytest.approx(measured, rel=0.001)
    assert validation_peak(module, skeleton, step) < 0.6 * training_peak(module, skeleton, step)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
@pytest.mark.parametrize("adapter", [LoRA(rank=4), LoRA(rank=4, dora=True)], ids=["LoRA", "DoRA"])
def test_a_quantised_base_keeps_what_bitsandbytes_keeps(tmp_path, kind, adapter):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    module = CausalLMModule(str(tmp_path), quantization=kind, attn_implementation="sdpa")
    real = module.build_base().train()
    adapter.attach_to(real)
    measured = allocated(training(module, list(adapter.adapter_parameters(real).values())))
    del module._modules["model"]
    with torch.device("meta"):
        skeleton = tiny_model("llama", hidden_size=128, intermediate_size=256)
    skeleton.set_attn_implementation("sdpa")
    adapter.attach_to(skeleton, seed=None)
    plain = training_peak(module, skeleton, Step(ROWS, TOKENS))
    estimate = training_peak(module, skeleton, Step(ROWS, TOKENS, quantization=kind))
    assert estimate == pytest.approx(measured, rel=0.02)
    # The 8-bit product keeps its input, the 4-bit one nothing.
    assert estimate > plain if kind == "8bit" else estimate >= plain


@pytest.mark.parametrize(("p", "on_cpu"), [(0.125, 1), (0.5, 4)], ids=["positions", "factors"])
def test_cudas_dropout_keeps_a_byte_an_element_and_a_cpus_eight_for_each_zero_or_four_for_all(p, on_cpu):
    def peak(dropout, cuda):
        module, _, skeleton = both("llama", LoRA(rank=4, dropout=dropout, target_modules=["q_proj"]))
        del module._modules["model"]
        return training_peak(module, skeleton, Step(ROWS, TOKENS, cuda=cuda))

    assert peak(0.0, True) == peak(0.0, False)
    # 32 float32 features in the second layer; in the first one no gradient goes through the dropout.
    assert peak(p, False) - peak(p, True) == ROWS * TOKENS * 32 * (on_cpu - 1)


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5])
def test_the_peak_with_dropout_is_what_a_step_allocates(p):
    module, parameters, skeleton = both("llama", LoRA(rank=4, dropout=p))
    measured = allocated(training(module, parameters))
    del module._modules["model"]
    # How many positions are drawn is chance.
    assert training_peak(module, skeleton, Step(ROWS, TOKENS)) == pytest.approx(measured, rel=0.01)


def test_a_trace_leaves_everything_as_it_was():
    module, _, skeleton = both("llama", LoRA(rank=4), "sdpa")
    del module._modules["model"]

    def replaced():
        functional = nn.functional
        functions = [functional.linear, functional.dropout, functional.scaled_dot_product_attention]
        return [*functions, branch.draw_positions, branch.Dropout.SPARSE]

    functions = replaced()
    names = list(skeleton.state_dict())
    for checkpointing in (True, False):
        training_peak(module, skeleton, Step(ROWS, TOKENS, checkpointing=checkpointing, cuda=checkpointing))
    assert functions == replaced()
    assert list(skeleton.state_dict()) == names
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert not skeleton.training
    assert not skeleton.is_gradient_checkpointing
    assert "model" not in module._modules


def test_a_step_that_fails_leaves_everything_as_it_was():
    module, _, skeleton = both("llama", LoRA(rank=4))
    del module._modules["model"]
    linear = nn.functional.linear
    module.token_losses = lambda logits, targets: logits.tolist()
    with pytest.raises(NotImplementedError):
        training_peak(module, skeleton, Step(ROWS, TOKENS, checkpointing=True))
    assert nn.functional.linear is linear
    assert not skeleton.training
    assert not skeleton.is_gradient_checkpointing


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adafactor(p),
    ],
    ids=["AdamW", "SGD", "momentum", "Adafactor"],
)
def test_an_optimizers_state_is_what_it_really_holds(make):
    shapes = [(64, 32), (16,)]
    optimizer = make([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    state, beside = optimizer_bytes(make([nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]))
    assert state == pytest.approx(sum(held), abs=16)
    assert 0 <= beside <= 3 * 4 * (64 * 32 + 16)
