"""Generation: the same answer in every batch."""

from __future__ import annotations

import pytest
import torch

from adapters_pl.generation import generate, left_pad
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


def answers(model, tokenizer, rows, size):
    found = []
    for i in range(0, len(rows), size):
        ids, mask = left_pad(rows[i : i + size], tokenizer.pad_token_id)
        found += generate(model, tokenizer, ids, mask, max_new_tokens=10)
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
