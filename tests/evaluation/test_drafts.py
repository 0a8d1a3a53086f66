"""Drafts are what followed the last tokens before, and they grow while they are right."""

from __future__ import annotations

import pytest

from adapters_pl.evaluation.drafts import Drafts


def test_a_draft_is_what_followed_the_same_tokens_in_the_prompt():
    draft = Drafts(known=2, most=3).begin([5, 6, 7, 8, 9, 5, 6])
    assert draft.next() == [7, 8, 9]


def test_nothing_is_drafted_where_nothing_like_the_last_tokens_stood_before():
    drafts = Drafts(known=3, most=3)
    assert drafts.begin([5, 6, 7, 8]).next() == []
    assert drafts.begin([9, 6, 7]).next() == []
    assert drafts.begin([6, 7]).next() == []
    assert drafts.begin([]).next() == []


def test_a_draft_never_follows_from_the_last_tokens_themselves():
    """They stand at the end of the text, and nothing has followed them yet."""
    assert Drafts(known=2, most=3).begin([5, 6, 7]).next() == []


def test_a_row_learns_from_answers_before_it_and_from_its_own():
    drafts = Drafts(known=2, most=4)
    first = drafts.begin([1, 2])
    first.add([3, 4], 0)
    first.add([5], 0)
    assert drafts.begin([9, 1, 2]).next() == [3, 4, 5]
    own = drafts.begin([7, 7, 8])
    own.add([6], 0)
    own.add([7, 8], 0)
    assert own.next() == [6, 7, 8]


def test_the_last_place_where_the_tokens_stood_counts():
    draft = Drafts(known=2, most=1).begin([5, 6, 7, 5, 6, 8, 5, 6])
    assert draft.next() == [8]


def test_a_text_that_grows_is_drafted_as_it_is_now():
    drafts = Drafts(known=2, most=4)
    writer = drafts.begin([1])
    writer.add([2, 3], 0)
    reader = drafts.begin([1, 2])
    assert reader.next() == [3]
    writer.add([4, 5], 0)
    assert reader.next() == [3, 4, 5]


def test_tokens_at_the_border_of_what_was_there_are_learnt_too():
    draft = Drafts(known=3, most=2).begin([5, 6])
    for token in (7, 8, 9, 5, 6, 7):
        draft.add([token], 0)
    assert draft.next() == [8, 9]


@pytest.mark.parametrize(
    ("came", "drafted", "length"),
    [
        ([[8]], [8], 1),  # none of eight was right
        ([[1, 2, 9]], [8], 2),  # two were
        ([[9]], [0], 8),  # nothing was drafted
        ([[9], [1, 9]], [8, 1], 2),  # the one that was drafted was right
        ([[9], [1, 9], [1, 2, 9]], [8, 1, 2], 4),
        ([[1, 2, 3, 4, 5, 6, 7, 8, 9]], [8], 8),  # never more than the most
        ([[9], [1, 9], [9]], [8, 1, 2], 1),
    ],
)
def test_how_far_it_pays_to_guess(came, drafted, length):
    drafts = Drafts(known=1, most=8)
    drafts.begin([]).add([200, *range(101, 120)], 0)
    draft = drafts.begin([50])
    for tokens, count in zip(came, drafted, strict=True):
        draft.add(tokens, count)
    draft.add([200], 0)
    assert draft.next() == list(range(101, 101 + length))


def test_the_prompts_of_other_rows_are_no_source():
    """Those of all rows of a set would fill the memory."""
    drafts = Drafts(known=2, most=4)
    drafts.begin([1, 2, 3, 4])
    assert drafts.begin([1, 2]).next() == []
    assert not drafts.seen
