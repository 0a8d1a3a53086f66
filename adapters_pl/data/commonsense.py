"""Commonsense reasoning: questions whose answer is one of a few options (LLM-Adapters, section 3.1)."""

from __future__ import annotations

from adapters_pl.data.base import ReasoningDataModule


class BoolQ(ReasoningDataModule):
    """Yes-or-no questions that people really asked (Clark et al. 2019, arXiv 1905.10044)."""

    set_name = "boolq"
    kind = "choice"
    options = ("true", "false")
    train_file = "dataset/boolq/train.json"
    test_file = "dataset/boolq/test.json"


class ARCChallenge(ReasoningDataModule):
    """Science questions that retrieval and co-occurrence answer wrongly (Clark et al. 2018, arXiv 1803.05457)."""

    set_name = "ARC-Challenge"
    kind = "choice"
    options = ("answer1", "answer2", "answer3", "answer4", "answer5")
    train_file = "dataset/ARC-Challenge/train.json"
    test_file = "dataset/ARC-Challenge/test.json"
