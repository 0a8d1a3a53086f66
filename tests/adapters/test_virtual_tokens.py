"""Prefix, prompt and P-tuning: virtual tokens are exactly what text in front would be, however they are used."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from adapters_pl import PrefixTuning, PromptTuning, PTuning, UserError, load_adapter, save_adapter
from adapters_pl.adapters import adapter_layers
from tests.conftest import TINY, tiny_model, tiny_tokenizer
from tests.helpers.methods import logits, perturb, tokens

METHODS = {"prefix": PrefixTuning, "prompt": PromptTuning, "ptuning": PTuning}
TEXT = "the answer is how many apples"


@pytest.fixture(params=list(TINY))
def with_tokenizer(request, tmp_path):
    """A model whose tokenizer is found by its name."""
    model = tiny_model(request.param)
    tiny_tokenizer().save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    return model


@pytest.mark.parametrize("method", [PrefixTuning, PromptTuning])
@pytest.mark.parametrize("count", [3, 11])
def test_begun_as_a_text_it_is_the_base_that_has_read_the_text(with_tokenizer, method, count):
    base = copy.deepcopy(with_tokenizer)
    adapter = method(count, init_text=TEXT)
    adapter.attach_to(with_tokenizer)
    ids = tiny_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    assert 3 < len(ids) < 11  # cut in one case, repeated in the other
    text = torch.tensor((ids * 3)[:count])
    given = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = base(torch.cat([text.expand(2, -1), given], dim=1)).logits[:, count:]
        assert torch.allclose(with_tokenizer(given).logits, expected, atol=1e-5)
        ones = torch.ones_like(given)
        assert torch.allclose(with_tokenizer(given, attention_mask=ones).logits, expected, atol=1e-5)
        tuple_output = with_tokenizer(given, return_dict=False)[0]
        assert torch.allclose(tuple_output, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(TINY))
def test_answers_do_not_depend_on_the_batch_the_cache_or_the_beams_it_is_asked_with(name, method):
    model = tiny_model(name)
    adapter = METHODS[method](5)
    adapter.attach_to(model)
    perturb(model, adapter)
    batch = tokens()
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 3):
        batched = model.generate(**batch, num_beams=beams, **settings)
        assert torch.equal(batched, model.generate(**batch, num_beams=beams, use_cache=False, **settings))
        for row in range(3):
            alone = batch["input_ids"][row, 2 * row :][None]
            answer = model.generate(alone, attention_mask=torch.ones_like(alone), num_beams=beams, **settings)
            assert torch.equal(answer[0, -5:], batched[row, -5:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(TINY))
def test_activation_checkpointing_changes_no_gradient(name, method):
    found = []
    for checkpointed in (False, True):
        model = tiny_model(name, hidden_dropout=0.0, dropout=0.0, resid_pdrop=0.0, resid_dropout=0.0)
        for key in ("attn_pdrop", "embd_pdrop", "attention_dropout", "embed_dropout"):
            assert not getattr(model.config, key, None) or name in ("gpt2", "gptj")
        adapter = METHODS[method](5)
        adapter.attach_to(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        model(**tokens()).logits.square().mean().backward()
        found.append([p.grad for p in adapter.adapter_parameters(model).values()])
        assert not any(getattr(module, "_can_checkpoint_with_cache", False) for module in model.modules())
    assert all(grad.abs().sum() > 0 for grad in found[0])
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, atol=1e-7, rtol=1e-4)


def test_three_prefixes_are_one_long_prefix():
    model, both = tiny_model("llama"), tiny_model("llama")
    for name, count in (("one", 3), ("two", 2), ("three", 2)):
        PrefixTuning(count, name=name).attach_to(both, seed=7)
    parameters = [p for p in both.parameters() if p.ndim == 2 and p.shape[1] == 128]
    PrefixTuning(7).attach_to(model)
    with torch.no_grad():
        next(iter(adapter_layers(model).values())).prompt_embeddings.copy_(torch.cat(parameters))
    assert torch.allclose(logits(both), logits(model), atol=1e-5)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for use_cache in (True, False):
        answer = both.generate(**tokens(), use_cache=use_cache, **settings)
        assert torch.equal(answer, model.generate(**tokens(), **settings))


@pytest.mark.parametrize("order", [("prefix", "prompt"), ("prompt", "prefix")])
def test_a_prefix_and_a_prompt_work_together(order):
    """The prefix stands first whatever the order of injection, as its keys come before all others."""
    model = tiny_model("llama")
    for kind in order:
        METHODS[kind](4, name=kind).attach_to(model)
    ids = tokens(1)["input_ids"]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))
    prompt = next(p for name, p in model.named_parameters() if ".prompt." in name)
    alone = tiny_model("llama")
    PrefixTuning(4, name="prefix").attach_to(alone)
    embedded = torch.cat([prompt[None], alone.get_input_embeddings()(ids)], dim=1)
    with torch.no_grad():
        expected = alone(inputs_embeds=embedded).logits[:, 4:]
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert torch.allclose(model(**inputs, position_ids=torch.arange(9)[None]).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("method", "extra"), [("prefix", 0), ("prompt", 5), ("ptuning", 5)])
@pytest.mark.parametrize("name", list(TINY))
def test_logits_are_those_of_the_given_tokens_or_of_the_virtual_ones_too(name, method, extra):
    model = tiny_model(name)
    METHODS[method](5).attach_to(model)
    with torch.no_grad():
        given = model(**tokens(), output_hidden_states=True)
        everything = model(**tokens(), return_virtual=True)
    assert given.logits.shape == (3, 9, 320)
    assert everything.logits.shape == (3, 9 + extra, 320)
    assert {states.shape[1] for states in given.hidden_states} == {9}
    assert torch.equal(everything.logits[:, extra:], given.logits)


def test_a_loaded_adapter_may_return_the_virtual_tokens_by_default(tmp_path):
    model, adapter = tiny_model("llama"), PromptTuning(4)
    adapter.attach_to(model)
    save_adapter(model, adapter, tmp_path)
    loaded = load_adapter(tiny_model("llama"), tmp_path, return_virtual=True)
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, model(**tokens(), return_virtual=True).logits)
        assert torch.equal(loaded(**tokens(), return_virtual=False).logits, model(**tokens()).logits)


def test_a_cache_goes_on_where_the_caller_left_it():
    for method in (PrefixTuning, PromptTuning):
        model = tiny_model("llama")
        method(4).attach_to(model)
        ids = tokens(1, 8)["input_ids"]
        with torch.no_grad():
            uncached = model(ids).logits
            first = model(ids[:, :5], past_key_values=DynamicCache(config=model.config))
            rest = model(ids[:, 5:], past_key_values=first.past_key_values)
        assert torch.allclose(torch.cat([first.logits, rest.logits], dim=1), uncached, atol=1e-5)


def test_no_cache_comes_back_where_none_was_asked_for():
    model = tiny_model("llama")
    PrefixTuning(4).attach_to(model)
    with torch.no_grad():
        assert model(**tokens(), use_cache=False).past_key_values is None
        assert model(**tokens(), use_cache=True).past_key_values.get_seq_length() == 13


def test_a_prepared_mask_is_refused():
    model = tiny_model("llama")
    PromptTuning(4).attach_to(model)
    with pytest.raises(UserError, match=r"attention mask of shape \(B, T\)"):
        model(torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixTuning(0), "virtual_tokens is 0"),
        (lambda: PTuning(0), "virtual_tokens is 0"),
        (lambda: PTuning(encoder_hidden=0), "encoder_hidden is 0"),
        (lambda: PrefixTuning(projection=0), "projection is 0"),
        (lambda: PrefixTuning(projection=4, init_text="a"), "cannot begin as a text"),
        (lambda: PromptTuning(init_text="a").attach_to(tiny_model("llama")), "with its tokenizer"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_empty_text_is_refused(with_tokenizer):
    with pytest.raises(UserError, match="holds no token"):
        PromptTuning(3, init_text="").attach_to(with_tokenizer)


def test_a_vocabulary_prompt_begins_as_rows_of_the_embedding():
    model = tiny_model("llama")
    PromptTuning(4).attach_to(model)
    table = model.get_input_embeddings().weight
    for row in next(iter(adapter_layers(model).values())).prompt_embeddings:
        assert (table == row).all(dim=1).any()


@pytest.mark.parametrize("method", [PromptTuning, PTuning])
def test_a_loaded_one_counts_positions_as_peft_does_or_as_training_did(method, tmp_path):
    model = tiny_model("llama")
    adapter = method(5)
    adapter.attach_to(model)
    perturb(model, adapter)
    folder = save_adapter(model, adapter, tmp_path / "adapter")
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    row = torch.arange(7, 16)[None]
    padded = torch.cat([torch.zeros(1, 12, dtype=torch.long), row], dim=1)
    mask = (padded != 0).long()
    texts = {}
    for follow in (True, False):
        loaded = load_adapter(tiny_model("llama"), folder, follow_peft=follow)
        alone = loaded.generate(row, attention_mask=torch.ones_like(row), **settings)[:, row.shape[1] :]
        left = loaded.generate(padded, attention_mask=mask, **settings)[:, padded.shape[1] :]
        with torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            states = loaded(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
            texts[follow] = (states - loaded(row).logits[:, -1]).abs().max().item()
        if not follow:
            assert torch.equal(alone, left)
    assert texts[True] > 1e-3
    assert texts[False] < 1e-4
