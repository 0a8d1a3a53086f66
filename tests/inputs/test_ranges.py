"""Ranges stand in signatures, and hold for constructors and for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from adapters_pl import GSM8K, CausalLMModule, LoRA, PTuning, SeriesAdapter, UserError
from adapters_pl.inputs.ranges import AtLeast1, NotNegative, Share, in_words, refuse_out_of_range


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoRA(rank=0), "LoRA: rank is 0; it must be at least 1"),
        (lambda: LoRA(dropout=1.0), "LoRA: dropout is 1.0; it must be at least 0 and below 1"),
        (lambda: LoRA(rank=None), "LoRA: rank is null; it must be at least 1"),
        (lambda: LoRA(name=None), "LoRA: name is null; give a value"),
        (lambda: SeriesAdapter(reduction_factor=float("nan")), "reduction_factor is nan; it must be above 0"),
        (lambda: PTuning(lstm_layers=-1), "PTuning: lstm_layers is -1"),
        (lambda: CausalLMModule(lr=float("inf")), "model.lr is inf; it must be at least 0"),
        (lambda: GSM8K(batch_size=0), "data.batch_size is 0; it must be at least 1"),
        (lambda: GSM8K(cutoff=7), "data.cutoff is 7; it must be at least 8"),
        (lambda: GSM8K(samples=None), "data.samples is null"),
    ],
)
def test_a_constructor_refuses_what_its_signature_does_not_allow(make, says):
    with pytest.raises(UserError, match=says):
        make()


def number(count: AtLeast1 = 1, rate: NotNegative = 0.5, share: Share | None = None) -> None:
    """A signature."""


def parsed(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(number)
    return parser.parse_args(list(words))


@pytest.mark.parametrize("words", [("--count", "0"), ("--count", "1.5"), ("--count", "true"), ("--rate", "nan")])
def test_the_parser_refuses_it_too(words):
    with pytest.raises(ArgumentError, match="Not of type"):
        parsed(*words)


def test_what_is_parsed_is_a_plain_number(tmp_path):
    """A number of a class of its own could not be read back from a checkpoint."""
    found = parsed("--count", "3", "--rate", "1", "--share", "0.5")
    assert [type(found[key]) for key in ("count", "rate", "share")] == [int, float, float]
    torch.save(found.as_dict(), tmp_path / "found")
    assert torch.load(tmp_path / "found", weights_only=True)["count"] == 3


def test_a_value_of_another_type_is_left_to_whoever_looks_at_types():
    assert refuse_out_of_range("", number, {"count": "many", "rate": [1]}) is None


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (str, "text"),
        (bool, "true or false"),
        (AtLeast1 | None, "whole number, at least 1, or null"),
        (Share, "number, at least 0 and below 1"),
        (Literal["keep", "drop"], "keep or drop"),
        (list[str] | None, "list of text, or null"),
        (dict[str, str], "mapping from text to text"),
        (str | list[str] | None, "text, list of text, or null"),
        (Path, "Path"),
    ],
)
def test_a_type_is_said_in_words(hint, words):
    assert in_words(hint) == words
