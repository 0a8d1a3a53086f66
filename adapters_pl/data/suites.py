"""Suites, which test many sets in one run, and a training set without a test of its own."""

from __future__ import annotations

from adapters_pl.data.base import ReasoningDataModule
from adapters_pl.data.registry import SUITES


class Arithmetic(ReasoningDataModule):
    """LLM-Adapters' six arithmetic sets; what counts is the mean of their accuracies (section 4)."""

    set_name = "Arithmetic"
    judged_on = SUITES["Arithmetic"]


class Commonsense(ReasoningDataModule):
    """LLM-Adapters' eight commonsense sets; what counts is the mean of their accuracies (section 4)."""

    set_name = "Commonsense"
    judged_on = SUITES["Commonsense"]


class AlpacaCleaned(ReasoningDataModule):
    """Stanford Alpaca's instructions with their faults mended; what to test on is the user's to say."""

    set_name = "AlpacaCleaned"
    train_file = "ft-training_set/alpaca_data_cleaned.json"
