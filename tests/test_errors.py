"""The wording of "did you mean"."""

from __future__ import annotations

import pytest

from adapters_pl.errors import UserError, did_you_mean


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
