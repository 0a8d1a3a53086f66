"""Whatever is done with held rows, each of them goes on as it would alone."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import PrefixTuning, PromptTuning
from adapters_pl.evaluation.held import TOLERATED, Held, Reading, arguments, holds, layers_to_hold
from tests.conftest import tiny_model
from tests.helpers.answering import prompts
from tests.helpers.methods import perturb

CPU = torch.device("cpu")
VIRTUAL = 4
#: Rotated positions, learnt ones, those that a mask is counted for, and keys that an adapter puts before the text's.
KINDS = ["llama_gqa", "gpt2", "bloom", "falcon", "llama_gqa,prefix", "bloom,prefix", "opt,prompt"]


@pytest.fixture(params=KINDS)
def model(request):
    name, _, method = request.param.partition(",")
    model = tiny_model(name)
    if method:
        adapter = {"prefix": PrefixTuning, "prompt": PromptTuning}[method](VIRTUAL)
        adapter.attach_to(model)
        perturb(model, adapter)
    model.virtual = VIRTUAL if method else 0
    return model.eval()


def reading(model):
    def call(given):
        with torch.no_grad():
            return model(**arguments(type(model).forward, given)).logits

    return Reading(call, layers_to_hold(model, 200), 0, CPU)


def next_logits(model, text):
    """The logits after a text, by a plain forward pass over it alone."""
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0, -1]


def check(model, held, texts, width=None):
    """What is held are these texts: the logits after one token more are those of each of them alone."""
    assert held.mask.sum(dim=1).tolist() == [len(text) for text in texts]
    assert held.virtual == model.virtual
    assert held.cache.get_seq_length() == model.virtual + held.mask.shape[1]
    if width is not None:
        assert held.mask.shape[1] == width
    copy = held.select(range(len(texts)))
    new = torch.tensor([[11 + place] for place in range(len(texts))])
    logits = copy.read(reading(model).call, new, torch.ones_like(new))[:, -1]
    for place, text in enumerate(texts):
        expected = next_logits(model, [*text, 11 + place])
        torch.testing.assert_close(logits[place], expected, atol=1e-4, rtol=0, msg=f"row {place}")


def read(model, rows):
    return reading(model).read(rows)[0]


SHORT, LONG, MIDDLE = [5, 6, 7], [8, 9, 10, 20, 30, 40, 50, 60], [70, 71, 72, 73]


def test_rows_are_read_as_each_is_alone(model):
    held, logits = reading(model).read([SHORT, LONG, MIDDLE])
    for row, found in zip((SHORT, LONG, MIDDLE), logits.flatten(0, -2), strict=True):
        torch.testing.assert_close(found, next_logits(model, row), atol=1e-4, rtol=0)
    check(model, held, [SHORT, LONG, MIDDLE], width=len(LONG))


def test_rows_are_read_behind_a_head_that_was_read_once(model):
    rows = prompts()[:5]
    reads = reading(model)
    reads.share(rows)
    calls, own = [], reads.call
    reads.call = lambda given: calls.append(given["input_ids"].shape) or own(given)
    held, logits = reads.read(rows)
    longest = max(map(len, rows))
    assert calls == [(5, longest - 10)]
    for row, found in zip(rows, logits.flatten(0, -2), strict=True):
        torch.testing.assert_close(found, next_logits(model, row), atol=1e-4, rtol=0)
    check(model, held, rows, width=longest)
    # The head is there for the next rows too, as it was.
    check(model, reads.read(rows[3:])[0], rows[3:])
    reads.share([SHORT, LONG])
    check(model, reads.read([SHORT, LONG])[0], [SHORT, LONG])


def test_some_rows_each_as_often_as_it_is_named(model):
    held = read(model, [SHORT, LONG, MIDDLE])
    check(model, held.select([2, 0, 2]), [MIDDLE, SHORT, MIDDLE])
    check(model, held, [SHORT, LONG, MIDDLE])


@pytest.mark.parametrize(("first", "second"), [([SHORT, MIDDLE], [LONG]), ([LONG], [SHORT, MIDDLE]), ([LONG], [LONG])])
def test_rows_of_both(model, first, second):
    joined = read(model, first).joined(read(model, second))
    check(model, joined, [*first, *second], width=len(LONG))


def test_what_was_wrong_is_forgotten(model):
    held = read(model, [SHORT, LONG, MIDDLE])
    new = torch.tensor([[21, 22, 23], [24, 25, 26], [27, 28, 29]])
    held.read(reading(model).call, new, torch.ones_like(new))
    held.forget(torch.tensor([[False, True, True], [False, False, False], [False, False, True]]))
    texts = [[*SHORT, 21], [*LONG, 24, 25, 26], [*MIDDLE, 27, 28]]
    check(model, held, texts, width=len(LONG) + 3)
    # And what comes behind it stands where it would without.
    held.read(reading(model).call, new[:, :1], torch.ones(3, 1, dtype=torch.long))
    texts = [[*text, token] for text, token in zip(texts, new[:, 0].tolist(), strict=True)]
    check(model, held, texts)
    check(model, held.joined(read(model, [SHORT])).select([3, 1, 0]), [SHORT, texts[1], texts[0]])


def with_padding(model, columns):
    """Three rows with so many columns of padding among their tokens, and their texts."""
    held, texts = read(model, [SHORT, LONG, MIDDLE]), [[*SHORT], [*LONG], [*MIDDLE]]
    call, right = reading(model).call, 0
    while held.mask.shape[1] < len(LONG) + columns:
        new = torch.tensor([[31, 32, 33, 34]] * 3)
        held.read(call, new, torch.ones_like(new))
        # One of the rows keeps its tokens.
        held.forget((torch.arange(3) != right)[:, None] & torch.ones(3, 4, dtype=torch.bool))
        texts[right] += [31, 32, 33, 34]
        right = (right + 1) % 3
    return held, texts


def test_padding_is_dropped_where_there_is_much_of_it(model):
    held, texts = with_padding(model, 2 * TOLERATED)
    longest = max(map(len, texts))
    assert held.mask.shape[1] > longest + TOLERATED
    tidied = held.tidied()
    check(model, tidied, texts, width=longest)
    check(model, tidied.joined(read(model, [LONG])), [*texts, LONG])
    again, others = with_padding(model, 2)
    check(model, tidied.joined(again).select([3, 0]).tidied(), [others[0], texts[0]])


def test_a_little_padding_is_left_as_it_is():
    held, _ = with_padding(plain(), TOLERATED // 4)
    assert held.tidied() is held
    mask = torch.ones(2, TOLERATED + 5, dtype=torch.long)
    mask[:, :TOLERATED] = 0
    states = [torch.randn(2, 1, TOLERATED + 5, 2) for _ in range(2)]
    held = Held(1, mask, states)
    assert held.tidied() is held
    mask = torch.cat([torch.zeros(2, 1, dtype=torch.long), mask], dim=1)
    states = [torch.cat([torch.zeros(2, 1, 1, 2), part], dim=2) for part in states]
    found = Held(1, mask, states).tidied()
    assert found.mask.tolist() == [[1] * 5] * 2
    assert torch.equal(found.states[0], states[0][:, :, -5:])


def plain():
    model = tiny_model("llama")
    model.virtual = 0
    return model


def test_tokens_are_added_without_a_copy_until_the_room_is_used_up():
    model = plain()
    held = read(model, [SHORT, LONG])
    begins = set()
    text = [[*SHORT], [*LONG]]
    for step in range(150):
        new = torch.tensor([[step + 3], [step + 4]])
        held.read(reading(model).call, new, torch.ones_like(new))
        begins.add(held.states[0].data_ptr())
        text = [[*row, int(token)] for row, token in zip(text, new, strict=True)]
    assert len(begins) <= 4
    check(model, held, text)


# ---- which models can be held


def test_a_state_that_takes_in_every_token_is_not_held():
    assert layers_to_hold(tiny_model("llama"), 100) == 2
    assert layers_to_hold(tiny_model("mistral", sliding_window=300), 100) == 2
    assert layers_to_hold(tiny_model("mistral", sliding_window=100), 100) is None
    assert layers_to_hold(tiny_model("gemma3_text", sliding_window=50), 100) is None
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 320, "state_size": 4}
    assert layers_to_hold(MambaForCausalLM(MambaConfig(**sizes)), 100) is None


def test_a_model_that_wants_more_than_ids_mask_and_positions_is_not_held(monkeypatch):
    model = tiny_model("llama")
    own = type(model).prepare_inputs_for_generation
    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", lambda self, *args, **kw: own(self, *args, **kw))
    assert layers_to_hold(model, 100) is None


def test_positions_that_are_counted_in_the_mask_hold(model):
    assert holds(reading(model))


@pytest.mark.parametrize("method", [None, PromptTuning])
def test_positions_that_are_counted_by_place_do_not(method):
    model = tiny_model("llama")
    if method:
        adapter = method(VIRTUAL)
        adapter.attach_to(model)
        adapter.follow_peft(model)
    else:
        decoder = model.get_decoder()
        own = decoder.forward
        decoder.forward = lambda *args, position_ids=None, **kwargs: own(*args, **kwargs)
    assert not holds(reading(model.eval()))


def test_a_mask_that_is_not_looked_at_does_not_hold():
    model = tiny_model("llama")
    decoder = model.get_decoder()
    own = decoder.forward
    decoder.forward = lambda *args, attention_mask=None, **kwargs: own(*args, **kwargs)
    assert not holds(reading(model))
