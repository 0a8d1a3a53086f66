"""Generation: the same answer in every batch."""

from __future__ import annotations

import pytest
import torch

from adapters_pl.data.tokens import left_pad
from adapters_pl.evaluation.generation import Generation, SeededSampling, as_generation, end_tokens, generate, seed_of
from tests.conftest import TINY, tiny_model, tiny_tokenizer


def prompts(count=12):
    generator = torch.Generator().manual_seed(4)
    return [
        [
            1,
            *torch.randint(
                3, 300, (int(torch.randint(3, 30, (1,), generator=generator)),), generator=generator
            ).tolist(),
        ]
        for _ in range(count)
    ]


def answers(model, tokenizer, rows, size, seeds=None, temperature=1.0, **decoding):
    found = []
    for i in range(0, len(rows), size):
        ids, mask = left_pad(rows[i : i + size], tokenizer.pad_token_id)
        sampling = SeededSampling(seeds[i : i + size], temperature) if seeds else None
        found += generate(model, tokenizer, ids, mask, max_new_tokens=10, sampling=sampling, **decoding)
    return found


@pytest.mark.parametrize("name", TINY)
def test_answers_do_not_depend_on_the_batch(name, tokenizer):
    model, rows = tiny_model(name), prompts()
    alone = answers(model, tokenizer, rows, 1)
    assert len({generation.text for generation in alone}) > 6
    assert answers(model, tokenizer, rows, 5) == alone
    assert answers(model, tokenizer, rows[::-1], 12)[::-1] == alone


def test_answers_do_not_depend_on_the_batch_where_padding_is_the_end_token():
    """As with LLaMA's tokenizer: the ids do not tell which of them are padding."""
    model, rows, tokenizer = tiny_model("llama"), prompts(), tiny_tokenizer(pad_token="<eos>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert answers(model, tokenizer, rows, 5) == answers(model, tokenizer, rows, 1)


def test_left_padding():
    ids, mask = left_pad([[5, 6, 7], [8]], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_generation_equals_iterated_full_forwards_and_stops_at_the_end_token(tokenizer):
    model = tiny_model("llama")
    for row in prompts(4):
        ids = torch.tensor([row])
        new = []
        while len(new) < 10:
            with torch.no_grad():
                new.append(int(model(ids).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
        (found,) = answers(model, tokenizer, [row], 1)
        stopped = new[-1] == tokenizer.eos_token_id
        kept = new[:-1] if stopped else new
        assert (found.text, found.tokens) == (tokenizer.decode(kept, skip_special_tokens=True), len(kept))
        assert found.finish == ("stop" if stopped else "length")


def test_the_end_token_ends_an_answer_and_is_not_part_of_it(tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        # All logits are equal, so the smallest id wins; make the end token the smallest above them.
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.generation_config.eos_token_id = [0, 2]
    (found,) = answers(model, tokenizer, [[1, 5, 6]], 1)
    assert (found.text, found.tokens, found.finish) == ("", 0, "stop")


def test_the_bases_own_sampling_settings_are_set_aside(tokenizer):
    model, rows = tiny_model("llama"), prompts(3)
    plain = answers(model, tokenizer, rows, 3)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 50.0
    model.generation_config.repetition_penalty = 9.0
    assert answers(model, tokenizer, rows, 3) == plain


# ---- beams and samples


@pytest.mark.parametrize("name", ["llama", "bloom", "opt", "gptj"])
def test_beams_do_not_depend_on_the_batch(name, tokenizer):
    model, rows = tiny_model(name), prompts()
    alone = answers(model, tokenizer, rows, 1, beams=4)
    assert len({generation.text for generation in alone}) > 6
    assert alone != answers(model, tokenizer, rows, 1)
    assert answers(model, tokenizer, rows, 5, beams=4) == alone
    assert answers(model, tokenizer, rows[::-1], 12, beams=4)[::-1] == alone


def log_likelihood(model, row, new):
    with torch.no_grad():
        logits = model(torch.tensor([[*row, *new]])).logits[0, len(row) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(new)[:, None]).sum().item()


def test_beams_find_what_is_likelier_than_greedy_and_are_the_references(tokenizer):
    """The reference passes temperature, top_p and top_k as well, which a search without sampling ignores."""
    model, rows = tiny_model("llama"), prompts(6)
    for row in rows:
        ids = torch.tensor([row])
        ours, greedy = (answers(model, tokenizer, [row], 1, beams=beams)[0] for beams in (4, 1))
        reference = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, max_new_tokens=10, do_sample=False, pad_token_id=0
        )[0, len(row) :]
        end = (reference == 2).nonzero()
        kept = reference[: int(end[0])] if len(end) else reference
        assert ours.text == tokenizer.decode(kept, skip_special_tokens=True)
        assert ours.tokens == len(kept)
        if ours.tokens == greedy.tokens == 10:
            found, plain = (tokenizer.encode(g.text, add_special_tokens=False) for g in (ours, greedy))
            if len(found) == len(plain) == 10:
                assert log_likelihood(model, row, found) >= log_likelihood(model, row, plain) - 1e-4


@pytest.mark.parametrize("name", ["llama", "bloom", "opt", "gptj"])
def test_a_sample_depends_on_its_row_and_seed_alone(name, tokenizer):
    model, rows = tiny_model(name), prompts()
    seeds = [seed_of(1, f"row {i}") for i in range(len(rows))]
    alone = answers(model, tokenizer, rows, 1, seeds, temperature=1.0)
    assert answers(model, tokenizer, rows, 5, seeds, temperature=1.0) == alone
    assert answers(model, tokenizer, rows[::-1], 12, seeds[::-1], temperature=1.0)[::-1] == alone
    others = [seed_of(1, f"row {i}", sample=1) for i in range(len(rows))]
    again = answers(model, tokenizer, rows, 12, others, temperature=1.0)
    assert sum(a != b for a, b in zip(alone, again, strict=True)) > 6


def test_samples_are_drawn_from_the_softmax():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).repeat(20_000, 1)
    drawn = SeededSampling([seed_of(0, str(i)) for i in range(len(logits))], 0.7)(None, logits).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(logits)
    # Three standard errors of a share are at most 0.0106 here.
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.7, -1), atol=0.011)


def test_some_rows_alone_draw_what_they_draw_among_all():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    seeds = [seed_of(0, str(i)) for i in range(5)]
    noisy = SeededSampling(seeds, 0.7)(None, logits)
    drawn = SeededSampling(seeds, 0.7)
    drawn(None, logits)
    assert torch.equal(drawn.of([3, 1])(None, logits[[3, 1]]), noisy[[3, 1]])


# ---- ends


def test_an_answer_is_cut_before_its_first_end_token(tokenizer):
    ids = tokenizer("the answer is", add_special_tokens=False)["input_ids"]
    assert as_generation(tokenizer, [*ids, 9, 5, 2], [2, 9]) == Generation("the answer is", len(ids), "stop")
    assert as_generation(tokenizer, ids, [2, 9]) == Generation("the answer is", len(ids), "length")
    assert as_generation(tokenizer, [9, *ids], [2, 9]) == Generation("", 0, "stop")


@pytest.mark.parametrize(("named", "expected"), [(None, [2]), (7, [2, 7]), ([9, 7, 2], [2, 7, 9])])
def test_the_models_end_tokens_stand_beside_the_tokenizers(tokenizer, named, expected):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = named
    assert end_tokens(model, tokenizer) == expected
