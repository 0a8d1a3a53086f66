"""The wording of "did you mean", and how much of an error is shown."""

from __future__ import annotations

import pytest

from adapters_pl.inputs.errors import (
    LONGEST_LINE,
    LONGEST_LIST,
    LONGEST_WORD,
    MOST_LINES,
    UserError,
    did_you_mean,
    shortened,
)


@pytest.mark.parametrize(
    ("name", "choices", "words"),
    [
        ("rnk", ["rank", "alpha"], "did you mean 'rank'?"),
        ("BOOLQ", ["boolq", "gsm8k"], "did you mean 'boolq'?"),
        ("svamp", ["SVAMP", "gsm8k"], "did you mean 'SVAMP'?"),
        ("arc-challenge", ["ARC-Challenge", "gsm8k"], "did you mean 'ARC-Challenge'?"),
        ("alpha", ["alpha1", "alpha22", "rank"], "did you mean 'alpha1' or 'alpha22'?"),
        ("zzz", ["rank", "alpha"], "known: alpha, rank"),
        ("zzz", ["rank", "alpha", "rank"], "known: alpha, rank"),
        ("zzz", [], "none is known"),
    ],
)
def test_the_nearest_names_are_offered_else_all(name, choices, words):
    assert did_you_mean(name, choices) == words


def test_at_most_so_many_names_are_offered():
    names = ["name1", "name2", "name3", "name4"]
    assert did_you_mean("name", names).count(" or ") == 2
    assert did_you_mean("name", names, most=1).count(" or ") == 0


def test_any_iterable_of_names_will_do():
    assert did_you_mean("rnk", (name for name in ("rank",))) == "did you mean 'rank'?"


def test_a_user_error_is_not_caught_as_one_of_pythons_own():
    assert UserError.__mro__[1] is Exception


def test_what_is_short_stays_as_it_is():
    message = f"model.base: there is none.\nknown: {', '.join(['a-name'] * 200)}"
    assert shortened(message) == message


def test_what_a_terminal_would_obey_is_a_box():
    assert shortened("a\x1b[2Jb\x9bc\r\u202ed\ne") == "a□[2Jb□c□□d\ne"


def test_words_lines_and_texts_that_are_too_long_keep_their_ends():
    word = shortened(f"data.path {'a' * 999}z is not there: do this.")
    assert len(word) == len("data.path  is not there: do this.") + LONGEST_WORD - 1  # an odd number is left
    assert word.startswith("data.path aaa")
    assert word.endswith("az is not there: do this.")
    line = shortened(f"data.path '{'a b ' * 9999}' is not there: do this.")
    assert LONGEST_LINE - 2 < len(line) <= LONGEST_LINE
    assert line.startswith("data.path 'a b ")
    assert line.endswith("b ' is not there: do this.")
    lines = shortened("\n".join(map(str, range(999)))).splitlines()
    assert len(lines) == MOST_LINES
    assert (lines[0], lines[MOST_LINES // 2], lines[-1]) == ("0", "...", "998")


@pytest.mark.parametrize("before", ["known: ", "pass one of "])
def test_a_list_of_choices_may_be_longer_but_not_without_end(before):
    assert "..." not in shortened(f"{'a ' * 100}{before}{'name, ' * 100}")
    assert len(shortened(f"{'a ' * 999}{before}{'name, ' * 9999}")) < LONGEST_LINE + LONGEST_LIST + 9
