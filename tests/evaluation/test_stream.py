"""Rows leave the batch when they end and others enter; what each of them is shown is its own text, and nothing else."""

from __future__ import annotations

import random
import zlib

import pytest
import torch

from adapters_pl.evaluation.drafts import Drafts
from adapters_pl.evaluation.held import Reading
from adapters_pl.evaluation.stream import AT_ONCE, stream

VOCABULARY = 40
CPU = torch.device("cpu")


class Oracle:
    """A model whose next token is any function of all that a row is shown; its keys are the ids themselves."""

    def __init__(self, next_of):
        self.next_of = next_of
        #: The ids of every pass, (B, T), padding left out.
        self.read = []

    def __call__(self, call):
        ids, mask, positions = call["input_ids"], call["attention_mask"], call["position_ids"]
        states = ids[:, None, :, None].float()
        seen = call["past_key_values"].update(states, states, 0)[0][:, 0, :, 0].long()
        assert seen.shape == mask.shape
        assert ids.shape == positions.shape
        begin = mask.shape[1] - ids.shape[1]
        self.read.append([row[shown.bool()].tolist() for row, shown in zip(ids, mask[:, begin:], strict=True)])
        logits = torch.zeros(*ids.shape, VOCABULARY)
        for row in range(len(ids)):
            for column in range(ids.shape[1]):
                end = begin + column + 1
                if mask[row, end - 1]:
                    text = seen[row, :end][mask[row, :end].bool()].tolist()
                    assert positions[row, column] == len(text) - 1
                    logits[row, column, self.next_of(text)] = 1
        return logits[:, -call["logits_to_keep"] :]


def chance(text):
    """Any token, by the whole text."""
    return zlib.crc32(bytes(text)) % VOCABULARY


def cycle(text):
    """The tokens 5 to 11, round and round."""
    return 5 + (text[-1] - 4) % 7


def alone(next_of, prompt, ends, limit):
    """What comes after ``prompt``, token by token."""
    text = list(prompt)
    while len(text) < len(prompt) + limit and not (len(text) > len(prompt) and text[-1] in ends):
        text.append(next_of(text))
    return text[len(prompt) :]


class Told:
    """Drafts of whatever ``guess`` says of a text."""

    def __init__(self, guess):
        self.guess = guess

    def begin(self, prompt):
        row = Told(self.guess)
        row.text = list(prompt)
        return row

    def next(self):
        return self.guess(self.text)

    def add(self, tokens, drafted):
        assert 1 <= len(tokens) <= drafted + 1
        self.text += tokens


def half_right(next_of, length):
    """Drafts that go wrong at a place that depends on the text."""

    def guess(text):
        right, text = zlib.crc32(bytes(text)) % (length + 1), list(text)
        begin = len(text)
        for place in range(length):
            text.append(next_of(text) if place < right else (next_of(text) + 1) % VOCABULARY)
        return text[begin:]

    return Told(guess)


def all_right(next_of, length):
    def guess(text):
        text, begin = list(text), len(text)
        for _ in range(length):
            text.append(next_of(text))
        return text[begin:]

    return Told(guess)


DRAFTS = {
    "none": lambda next_of: None,
    "seen": lambda next_of: Drafts(2, 4),
    "half-right": lambda next_of: half_right(next_of, 5),
    "right": lambda next_of: all_right(next_of, 5),
    "wrong": lambda next_of: Told(lambda text: [(next_of(text) + 1) % VOCABULARY, 3, 3]),
}


def run(prompts, next_of=chance, ends=(), limit=8, size=3, drafts=None, places=None):
    """The tokens of every prompt, and the model that was asked."""
    model = Oracle(next_of)

    def choose(asked, scores):
        assert scores.shape == (len(asked), VOCABULARY)
        if places is not None:
            places.extend(asked)
        return scores.argmax(dim=-1)

    found = list(stream(Reading(model, 1, 0, CPU), prompts, ends, limit, size, choose, drafts))
    assert sorted(place for place, _ in found) == list(range(len(prompts)))
    return [tokens for _, tokens in sorted(found)], model


def several(draw, count, head):
    begins = [draw.randrange(VOCABULARY) for _ in range(head)]
    prompts = [begins + [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 12))] for _ in range(count)]
    return [draw.choice(prompts) if draw.random() < 0.3 else prompt for prompt in prompts]


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("seed", range(12))
def test_every_row_has_the_tokens_that_it_has_alone(seed, kind):
    draw = random.Random(seed)
    prompts = several(draw, draw.randrange(1, 14), draw.choice([0, 3, 12]))
    next_of = draw.choice([chance, cycle])
    ends, limit = draw.sample(range(VOCABULARY), draw.choice([0, 1, 6])), draw.randrange(1, 12)
    places = []
    found, _ = run(prompts, next_of, ends, limit, draw.choice([1, 2, 3, 5, 20]), DRAFTS[kind](next_of), places)
    assert found == [alone(next_of, prompt, ends, limit) for prompt in prompts]
    # Numbers are drawn for a token once, whatever was drafted.
    assert sorted(places) == [place for place, tokens in enumerate(found) for _ in tokens]


def test_answers_that_are_long_are_shown_whole_although_padding_is_dropped():
    """Enough wrong drafts that their columns are dropped in between, again and again."""
    prompts = [[7, 8, 9], [1], [2, 3], [1]]
    wrong = Told(lambda text: [VOCABULARY - 1 - chance(text)] * 6)
    found, model = run(prompts, limit=90, size=2, drafts=wrong)
    assert found == [alone(chance, prompt, (), 90) for prompt in prompts]
    assert sum(len(ids) for read in model.read for ids in read) > 4 * 90 * 3


# ---- what is read


def test_the_head_is_read_once_and_equal_prompts_are_one():
    head = list(range(20, 30))
    prompts = [[*head, 1, 2], [*head, 3], [*head, 1, 2], [*head, 1, 2], [*head, 3]]
    found, model = run(prompts, limit=2, size=5)
    assert model.read[:2] == [[head], [[1, 2], [3]]]
    assert [len(read) for read in model.read[2:]] == [5]
    assert found == [alone(chance, prompt, (), 2) for prompt in prompts]


@pytest.mark.parametrize("prompts", [[[*range(9), 1], [*range(9), 2]], [[*range(9)], [*range(9), 2]]])
def test_of_every_prompt_a_token_is_left_behind_the_head(prompts):
    _, model = run(prompts, limit=1)
    shared = [*range(9)][: min(map(len, prompts)) - 1]
    assert model.read[0] == [shared]
    assert sorted(model.read[1]) == sorted(prompt[len(shared) :] for prompt in prompts)


def test_a_short_head_or_a_row_alone_is_read_with_the_rest():
    assert run([[1, 2, 3, 4], [1, 2, 3, 5]], limit=1)[1].read == [[[1, 2, 3, 4], [1, 2, 3, 5]]]
    assert run([[*range(20)]], limit=1)[1].read == [[[*range(20)]]]


def test_the_longest_prompts_come_first():
    prompts = [[1] * 3, [2] * 9, [3] * 6, [4] * 12]
    _, model = run(prompts, limit=1, size=2)
    assert model.read == [[[4] * 12, [2] * 9], [[3] * 6, [1] * 3]]


def test_a_row_that_has_ended_is_not_read_again_and_another_takes_its_place():
    """The row of 9 is long, and three short ones come and go beside it."""
    prompts = [[9, 9, 9], [1, 1], [2], [3]]

    def next_of(text):
        return 30 if text[0] != 9 and len(text) > 3 else 20

    ends, limit = (30,), 12
    found, model = run(prompts, next_of, ends, limit, size=2)
    assert found == [alone(next_of, prompt, ends, limit) for prompt in prompts]
    assert [len(tokens) for tokens in found] == [12, 3, 4, 4]
    assert max(map(len, model.read)) == 2
    written = sum(map(len, found)) - len(prompts)  # an answer's last token is never read
    assert sum(len(ids) for read in model.read for ids in read) == written + sum(map(len, prompts))
    # Batch by batch it would be 12 + 4 passes, and the third row would begin when the first has ended.
    assert len(model.read) == 11 + 3


def test_nothing_is_read_without_prompts_and_one_token_takes_one_pass():
    assert run([])[1].read == []
    assert len(run([[1], [2, 3]], limit=1)[1].read) == 1


# ---- drafts


def test_drafts_of_what_was_written_before_save_passes():
    prompts = [[5, 6, 7], [9, 10], [11]]
    plain, slow = run(prompts, cycle, limit=40, size=3)
    found, quick = run(prompts, cycle, limit=40, size=3, drafts=Drafts(3, 4))
    assert found == plain
    assert len(slow.read) == 40
    assert len(quick.read) <= 20


@pytest.mark.parametrize("length", [1, 2, 5])
def test_right_drafts_of_some_tokens_save_as_many_passes(length):
    found, model = run([[1, 2]], limit=1 + 6 * (length + 1), size=1, drafts=all_right(chance, length))
    assert found == [alone(chance, [1, 2], (), 1 + 6 * (length + 1))]
    assert len(model.read) == 1 + 6
    assert {len(read[0]) for read in model.read[1:]} == {length + 1}


@pytest.mark.parametrize("limit", range(1, 9))
def test_no_draft_goes_beyond_the_longest_answer(limit):
    found, model = run([[1, 2], [3]], limit=limit, size=2, drafts=all_right(chance, 20))
    assert found == [alone(chance, prompt, (), limit) for prompt in ([1, 2], [3])]
    for place in range(2):
        # The last token is never read.
        assert sum(len(read[place]) for read in model.read[1:]) == limit - 1


@pytest.mark.parametrize("end", range(5, 12))
def test_an_end_token_inside_a_draft_ends_the_answer(end):
    [found], model = run([[5]], cycle, [end], 30, 1, all_right(cycle, 10))
    assert found == alone(cycle, [5], [end], 30)
    assert found.index(end) == len(found) - 1
    assert len(model.read) <= 2


def test_no_step_reads_more_than_it_should_for_guesses():
    prompts = [[number, number] for number in range(12)]
    for size in (1, 5, 12):
        _, model = run(prompts, limit=20, size=size, drafts=all_right(chance, 50))
        assert all(len(read) * max(map(len, read)) <= AT_ONCE for read in model.read[1:])
    many = [[number] for number in range(VOCABULARY)]
    _, model = run(many, limit=3, size=VOCABULARY, drafts=all_right(chance, 50))
    assert len(model.read) == 3
