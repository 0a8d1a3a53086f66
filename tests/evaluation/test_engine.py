"""The engine answers and scores every row as it is answered alone, in every batch, with every adapter."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from adapters_pl import PromptTuning, load_adapter, save_adapter
from adapters_pl.data.questions import Choices, Pair
from adapters_pl.evaluation import engine as engine_module
from adapters_pl.evaluation.engine import Decoding, TransformersEngine
from adapters_pl.evaluation.generation import seed_of
from adapters_pl.evaluation.held import layers_to_hold
from adapters_pl.evaluation.scoring import log_likelihoods, score
from tests.conftest import TINY
from tests.helpers.answering import alone, answered, let_some_end, prompts, talkative
from tests.helpers.methods import METHODS, perturb

LIMIT = 8
SIZES = (1, 3, 20)
#: Every way into a model: at a weight, around a sublayer, before the keys, before the embeddings.
INTO_LLAMA = ["lora", "lora-dora", "ia3", "series", "parallel-both", "prefix", "prompt", "ptuning"]
CELLS = [*(("llama", method) for method in INTO_LLAMA), *(("bloom", method) for method in INTO_LLAMA[-3:])]


@pytest.fixture
def left_to_transformers(monkeypatch):
    """How many rows were in the batches that were left to transformers' own ``generate``."""
    rows, own = [], engine_module.generate

    def noted(model, tokenizer, input_ids, *args, **kwargs):
        rows.append(len(input_ids))
        return own(model, tokenizer, input_ids, *args, **kwargs)

    monkeypatch.setattr(engine_module, "generate", noted)
    return rows


def adapted(name, method):
    model, adapter = talkative(name), METHODS[method]()
    adapter.attach_to(model)
    perturb(model, adapter)
    return model.eval()


# ---- greedy


@pytest.mark.parametrize("name", TINY)
def test_every_row_is_answered_as_it_is_alone(name, tokenizer, left_to_transformers):
    model, rows = talkative(name), prompts()
    let_some_end(model, rows, LIMIT)
    expected = alone(model, tokenizer, rows, LIMIT)
    assert {written.finish for written in expected} == {"stop", "length"}
    assert len({written.tokens for written in expected}) > 2
    assert len({written.text for written in expected}) > 4
    for size in SIZES:
        assert answered(model, tokenizer, rows, LIMIT, size) == expected, size
    streamed = layers_to_hold(model, 100) is not None
    assert left_to_transformers == ([] if streamed else [1] * 12 + [3] * 4 + [12])


def test_all_but_a_few_architectures_are_streamed():
    assert sum(layers_to_hold(talkative(name), 100) is None for name in TINY) <= 2


def test_a_window_that_slides_over_a_row_is_left_to_transformers(tokenizer, left_to_transformers):
    rows = prompts()
    for window, streamed in ((4096, True), (12, False)):
        model = talkative("mistral", sliding_window=window)
        let_some_end(model, rows, LIMIT)
        expected = alone(model, tokenizer, rows, LIMIT)
        left_to_transformers.clear()
        assert answered(model, tokenizer, rows, LIMIT, 5) == expected
        assert (left_to_transformers == []) == streamed


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_every_row_is_answered_as_it_is_alone_with_an_adapter(name, method, tokenizer, left_to_transformers):
    rows = prompts()
    model = adapted(name, method)
    let_some_end(model, rows, LIMIT)
    expected = alone(model, tokenizer, rows, LIMIT)
    assert {written.finish for written in expected} == {"stop", "length"}
    for size in SIZES:
        assert answered(model, tokenizer, rows, LIMIT, size) == expected, size
    assert left_to_transformers == []
    base = talkative(name)
    base.generation_config = model.generation_config
    assert answered(base, tokenizer, rows, LIMIT, 20) != expected


def test_a_model_below_float32_is_streamed_without_drafts(tokenizer, monkeypatch):
    """A draft would show in the rounding."""
    model, rows = talkative("llama"), prompts()
    made = []
    monkeypatch.setattr(engine_module, "Drafts", lambda: made.append(1))
    answered(model, tokenizer, rows, LIMIT, 20)
    assert made == [1]
    answered(model.bfloat16(), tokenizer, rows, LIMIT, 20)
    assert made == [1]


def test_beams_are_left_to_transformers(tokenizer, left_to_transformers):
    model, rows = talkative("llama"), prompts()
    let_some_end(model, rows, LIMIT)
    expected = alone(model, tokenizer, rows, LIMIT, beams=3)
    assert expected != alone(model, tokenizer, rows, LIMIT)
    for size in SIZES:
        assert answered(model, tokenizer, rows, LIMIT, size, beams=3) == expected
    assert sum(left_to_transformers) == 3 * len(rows)


# ---- sampled


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "phi3"])
def test_a_sample_depends_on_its_row_and_seed_alone(name, tokenizer):
    model = talkative(name)
    model.generation_config.eos_token_id = list(range(2, 40))
    rows = [row for row in prompts(9) for _ in range(2)]
    seeds = [seed_of(1, f"row {place // 2}", place % 2) for place in range(len(rows))]
    expected = alone(model, tokenizer, rows, LIMIT, seeds, 0.8)
    assert {written.finish for written in expected} == {"stop", "length"}
    assert sum(one != other for one, other in zip(expected[::2], expected[1::2], strict=True)) > 6
    for size in SIZES:
        assert answered(model, tokenizer, rows, LIMIT, size, seeds, 0.8) == expected, size
    assert answered(model, tokenizer, rows[::-1], LIMIT, 5, seeds[::-1], 0.8)[::-1] == expected


@pytest.mark.parametrize(
    ("decoding", "seeds"),
    [
        (Decoding(4, temperature=1.0), None),
        (Decoding(4, temperature=1.0), [1]),
        (Decoding(4, beams=2, temperature=1.0), [1, 2]),
    ],
    ids=["no-seeds", "too-few", "beams"],
)
def test_sampling_needs_a_seed_a_row_and_one_beam(tokenizer, decoding, seeds):
    engine = TransformersEngine(talkative("llama"), tokenizer)
    with pytest.raises(ValueError, match="Sampling takes one beam, and one seed a prompt"):
        list(engine.generate([[1, 5], [1, 6, 7]], decoding, seeds))


# ---- models that count positions by place


def by_place(tmp_path):
    """A tiny LLaMA with a soft prompt that counts positions by place in the padded row, as PEFT does."""
    model, adapter = talkative("llama"), PromptTuning(5)
    adapter.attach_to(model)
    perturb(model, adapter)
    return load_adapter(talkative("llama"), save_adapter(model, adapter, tmp_path / "adapter"), follow_peft=True)


def without_positions(tmp_path):
    """A tiny LLaMA that takes no notice of the positions it is given."""
    model = talkative("llama")
    decoder = model.get_decoder()
    own = decoder.forward
    decoder.forward = lambda *args, position_ids=None, **kwargs: own(*args, **kwargs)
    return model


@pytest.mark.parametrize(("make", "size"), [(by_place, 1), (without_positions, 1), (without_positions, 5)])
def test_a_model_that_counts_positions_by_place_is_left_to_transformers(
    tmp_path, tokenizer, left_to_transformers, make, size
):
    model, rows = make(tmp_path), prompts()
    assert layers_to_hold(model, 100) == 2
    let_some_end(model, rows, LIMIT)
    expected = alone(model, tokenizer, rows, LIMIT)
    assert answered(model, tokenizer, rows, LIMIT, size) == expected
    assert sum(left_to_transformers) == len(rows)


@pytest.mark.parametrize("make", [by_place, without_positions])
def test_a_model_that_counts_positions_by_place_scores_right(tmp_path, tokenizer, make):
    model = make(tmp_path)
    engine = TransformersEngine(model, tokenizer, 3)
    for place, scored in engine.score(CHOICES):
        assert list(scored.sums) == pytest.approx([forward_sum(model, pair) for pair in CHOICES[place].pairs], abs=1e-4)


# ---- scored


def choices(count=9):
    """Rows whose options differ in number and in length; some share all but the last token."""
    generator = torch.Generator().manual_seed(8)
    found = []
    for number, row in enumerate(prompts(count)):
        shared = torch.randint(3, 300, (3,), generator=generator).tolist()
        ends = [[*shared, 11], [*shared, 12], [*shared[:2], 13, 14], shared, [9], [10, *shared], [15, 16, 17, 18, 19]]
        pairs = tuple(Pair(row, end) for end in ends[: 2 + number % 6])
        found.append(Choices(tuple(map(str, range(len(pairs)))), pairs, (1,) * len(pairs)))
    return found


CHOICES = choices()


def forward_sum(model, pair):
    """The log-likelihood of a continuation by a plain forward pass over its row alone."""
    with torch.no_grad():
        logits = model(torch.tensor([pair.context + pair.continuation])).logits[0]
    logs = torch.log_softmax(logits[len(pair.context) - 1 : -1].double(), -1)
    return logs.gather(1, torch.tensor(pair.continuation)[:, None]).sum().item()


def sums(engine, wanted):
    found = dict(engine.score(wanted))
    assert sorted(found) == list(range(len(wanted)))
    return [list(found[place].sums) for place in range(len(wanted))]


@pytest.mark.parametrize("name", [*TINY, "llama,prefix", "bloom,prompt", "llama,lora"])
def test_options_are_scored_as_by_a_plain_forward_over_each_alone(name, tokenizer):
    base, _, method = name.partition(",")
    model = adapted(base, method) if method else talkative(name)
    expected = [[forward_sum(model, pair) for pair in each.pairs] for each in CHOICES]
    engine = TransformersEngine(model, tokenizer)
    plainly = score(CHOICES, partial(log_likelihoods, engine, pad_id=0, device="cpu"))
    for size in (1, 3, 20):
        found = sums(TransformersEngine(model, tokenizer, size), CHOICES)
        for one, wanted, plain in zip(found, expected, plainly, strict=True):
            assert one == pytest.approx(wanted, abs=1e-4)
            assert one == pytest.approx(plain.sums, abs=1e-4)


class Reads:
    """Counts the ids that a model is shown, padding left out."""

    def __init__(self, model):
        self.model, self.shown = model, []

    def __call__(self, batch):
        width = batch["input_ids"].shape[1]
        self.shown.append(int(batch["attention_mask"][:, -width:].sum()))
        return self.model.get_decoder()(**batch).last_hidden_state


def shared(texts):
    """How many tokens all of them begin with."""
    columns = list(zip(*texts, strict=False))
    return next((place for place, tokens in enumerate(columns) if len({*tokens}) > 1), len(columns))


def test_contexts_are_read_once_and_their_head_once_for_all(tokenizer):
    model = talkative("llama")
    reads = Reads(model)
    engine = TransformersEngine(model, tokenizer, 20, hidden_states=reads)
    expected = sums(engine, CHOICES)
    reads.shown.clear()
    assert sums(engine, CHOICES) == expected
    texts = {}  # of each context, what is read behind it: a last token is never read, only predicted
    for pair in (pair for each in CHOICES for pair in each.pairs):
        texts.setdefault(tuple(pair.context), set()).add(tuple(pair.continuation[:-1]))
    assert len(texts) < len(CHOICES)
    leads = {context: shared(those) for context, those in texts.items()}
    assert sum(map(bool, leads.values())) > 1
    contexts = sum(len(context) - 10 + lead for context, lead in leads.items())
    branches = sum(len(text) - leads[context] for context, those in texts.items() for text in those)
    assert reads.shown == [10, contexts, branches]


def test_one_row_with_options_of_one_token_is_one_forward_pass(tokenizer):
    model = talkative("llama")
    reads = Reads(model)
    engine = TransformersEngine(model, tokenizer, hidden_states=reads)
    each = Choices(("a", "b"), (Pair([1, 5, 6], [7]), Pair([1, 5, 6], [8])), (1, 1))
    sums(engine, [each])
    reads.shown.clear()
    [found] = sums(engine, [each])
    assert found == pytest.approx([forward_sum(model, pair) for pair in each.pairs], abs=1e-5)
    assert sum(reads.shown) == 3


def test_nothing_is_scored_without_rows(tokenizer):
    assert list(TransformersEngine(talkative("llama"), tokenizer).score([])) == []
