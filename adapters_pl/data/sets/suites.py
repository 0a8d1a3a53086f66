"""Suites, which test many sets in one run, and a training set without a test of its own."""

from __future__ import annotations

from adapters_pl.answers import SPECS, SUITES, SetSpec
from adapters_pl.data.module import ReasoningDataModule


class Arithmetic(ReasoningDataModule):
    """LLM-Adapters' six arithmetic sets; what counts is the mean of their accuracies (section 4)."""

    spec = SetSpec("Arithmetic", judged_on=SUITES["Arithmetic"])


class Commonsense(ReasoningDataModule):
    """LLM-Adapters' eight commonsense sets; what counts is the mean of their accuracies (section 4)."""

    spec = SetSpec("Commonsense", judged_on=SUITES["Commonsense"])


class AlpacaCleaned(ReasoningDataModule):
    """Stanford Alpaca's instructions with their faults mended; what to test on is the user's to say."""

    spec = SPECS["AlpacaCleaned"]
