"""From text to ids, labels and padded batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from adapters_pl.data.sampler import StepIndices, StepSampler
from adapters_pl.data.tokens import (
    Collate,
    TokenRow,
    TrainingRows,
    encode_prompt,
    encode_rows,
    fit_to_cutoff,
)
from tests.conftest import tiny_tokenizer
from tests.helpers.texts import TEXT

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
BOS, EOS, PAD = 1, 2, 0
NO = -100


# ---- encoding


@pytest.mark.parametrize("which", ["tokenizer", "closing_tokenizer"])
def test_a_prompt_begins_once_and_never_ends(which, request):
    tokenizer = request.getfixturevalue(which)
    ids = encode_prompt(tokenizer, "12\n")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "1", "2", "Ċ"]


def test_a_tokenizer_without_a_beginning_adds_none(tokenizer):
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert encode_prompt(bare, "12\n") == encode_prompt(tokenizer, "12\n")[1:]


@pytest.mark.parametrize("which", ["tokenizer", "closing_tokenizer"])
def test_a_response_has_no_beginning_and_one_end(which, request):
    tokenizer = request.getfixturevalue(which)
    ids = encode_rows(tokenizer, ["12\n"], ["34"])[1][0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["3", "4", "<eos>"]


def test_a_response_is_cut_out_of_the_whole_text_where_the_border_allows_it(spacing_tokenizer):
    # By itself it would begin with a space: [3, 6].
    assert encode_rows(spacing_tokenizer, ["c"], ["ab"])[1][0] == [6, EOS]


def test_a_response_that_would_merge_with_the_prompt_is_encoded_by_itself(spacing_tokenizer):
    assert spacing_tokenizer("cab")["input_ids"] == [BOS, 3, 7, 6]
    assert encode_prompt(spacing_tokenizer, "ca") == [BOS, 3, 7, 4]
    assert encode_rows(spacing_tokenizer, ["ca"], ["b"])[1][0] == [3, 5, EOS]


@pytest.mark.parametrize("which", ["tokenizer", "closing_tokenizer"])
@PROPERTY
@given(prompt=TEXT, response=TEXT)
def test_prompt_and_response_together_spell_the_text(which, prompt, response, request):
    tokenizer = request.getfixturevalue(which)
    ids = encode_prompt(tokenizer, prompt) + encode_rows(tokenizer, [prompt], [response])[1][0]
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert BOS not in ids[1:]
    assert EOS not in ids[:-1]
    assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == prompt + response


@pytest.mark.parametrize("which", ["tokenizer", "closing_tokenizer", "spacing_tokenizer"])
@pytest.mark.parametrize(("prompt", "response"), [("c", "ab"), ("ca", "b"), ("abc", "cab")])
def test_training_begins_with_exactly_what_generation_is_given(which, prompt, response, request):
    tokenizer = request.getfixturevalue(which)
    training = TokenRow(0, encode_prompt(tokenizer, prompt), encode_rows(tokenizer, [prompt], [response])[1][0])
    generation = TokenRow(0, encode_prompt(tokenizer, prompt), [])
    trained = Collate(PAD)([TrainingRows([training])[0]])
    generated = Collate(PAD)([TrainingRows([generation])[0]])
    fed = generated["prompt_ids"][0].tolist()
    assert trained["input_ids"][0, : len(fed)].tolist() == fed
    assert trained["prompt_ids"][0].tolist() == fed


# ---- labels

ROW = TokenRow(4, [BOS, 5, 6], [7, 8, EOS])


@pytest.mark.parametrize(
    ("train_on_prompt", "labels"), [(False, [NO, NO, NO, 7, 8, EOS]), (True, [NO, 5, 6, 7, 8, EOS])]
)
def test_labels_are_the_response_and_the_prompt_only_if_asked(train_on_prompt, labels):
    rows = TrainingRows([ROW, TokenRow(5, [BOS], [EOS])], train_on_prompt)
    assert rows[0] == {"row": ROW, "labels": labels, "prompt": ROW.prompt}
    assert rows[1]["labels"] == [NO, EOS]
    assert rows.label_counts() == [sum(label != NO for label in labels), 1]
    assert len(rows) == 2


def test_a_batch_of_a_step_carries_the_steps_labels():
    rows = TrainingRows([ROW, ROW])
    sampler = StepSampler([10, 20], batch_size=1, shuffle=False, accumulate=2)
    assert [rows.__getitems__(batch)[0]["loss_tokens"] for batch in sampler] == [30, 30]


def test_an_empty_batch_has_rows_but_no_labels():
    indices = StepIndices([0])
    indices.loss_tokens, indices.empty = 30, True
    [item] = TrainingRows([ROW]).__getitems__(indices)
    assert item == {"row": ROW, "labels": [NO] * 6, "prompt": ROW.prompt, "loss_tokens": 30}


def test_rows_asked_for_outside_a_step_know_no_step():
    assert "loss_tokens" not in TrainingRows([ROW]).__getitems__([0])[0]


# ---- the cutoff


@pytest.mark.parametrize(
    ("prompt", "response", "cutoff", "expected"),
    [
        ([1, 5, 6], [7, 2], 5, [1, 5, 6]),
        ([1, 5, 6], [7, 2], 4, [1, 6]),
        ([1, 5, 6], [7, 2], 3, [1]),
        ([1, 5, 6, 7], [2], 3, [1, 7]),
    ],
)
def test_the_prompt_loses_its_beginning_and_the_response_nothing(prompt, response, cutoff, expected):
    assert fit_to_cutoff(TokenRow(3, prompt, response), cutoff) == TokenRow(3, expected, response)


@PROPERTY
@given(
    inner=st.lists(st.integers(3, 99), max_size=20),
    answer=st.lists(st.integers(3, 99), max_size=20),
    room=st.integers(1, 24),
)
def test_a_fitted_row(inner, answer, room):
    row = TokenRow(0, [BOS, *inner], [*answer, EOS])
    cutoff = len(row.response) + room
    fitted = fit_to_cutoff(row, cutoff)
    assert fitted.length == min(row.length, cutoff)
    assert fitted.prompt[0] == BOS
    kept = len(fitted.prompt) - 1
    assert fitted.prompt[1:] == inner[len(inner) - kept :]
    assert fitted.response == row.response


# ---- batches


@pytest.fixture
def items():
    """A long and a short row; the padding token of the batch will be the end token."""
    return TrainingRows([TokenRow(4, [BOS, 5, 6], [7, 8, EOS]), TokenRow(9, [BOS, 5, 6, 7], [EOS])]).__getitems__(
        [0, 1]
    )


def test_whole_texts_are_padded_on_the_right(items):
    batch = Collate(pad_id=EOS)(items)
    assert batch["input_ids"].tolist() == [[BOS, 5, 6, 7, 8, EOS], [BOS, 5, 6, 7, EOS, EOS]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 1, 0]]


def test_prompts_are_padded_on_the_left(items):
    batch = Collate(pad_id=EOS)(items)
    assert batch["prompt_ids"].tolist() == [[EOS, BOS, 5, 6], [BOS, 5, 6, 7]]
    assert batch["prompt_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_the_end_is_learnt_and_padding_never_even_where_they_are_one_token(items):
    batch = Collate(pad_id=EOS)(items)
    assert batch["labels"].tolist() == [[NO, NO, NO, 7, 8, EOS], [NO, NO, NO, NO, EOS, NO]]


def test_a_batch_names_its_rows_and_counts_its_labels(items):
    batch = Collate(PAD)(items)
    assert batch["row_ids"].tolist() == [4, 9]
    assert batch["loss_tokens"] == 4
    assert {batch[key].dtype for key in ("input_ids", "labels", "prompt_ids", "row_ids")} == {torch.long}


def test_a_batch_of_a_step_counts_the_steps_labels():
    indices = StepIndices([0])
    indices.loss_tokens = 321
    assert Collate(PAD)(TrainingRows([ROW]).__getitems__(indices))["loss_tokens"] == 321
