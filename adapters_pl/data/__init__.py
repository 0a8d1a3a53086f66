"""The reasoning datasets, all of them Lightning data modules; ``GSM8K`` and the others are made from their rows."""

from adapters_pl.answers import SUITES, sets_of
from adapters_pl.data.example import Example
from adapters_pl.data.module import SETS, ReasoningDataModule, set_named
from adapters_pl.data.sets import CLASSES

globals().update(CLASSES)

__all__ = ["SETS", "SUITES", "Example", "ReasoningDataModule", "set_named", "sets_of", *CLASSES]
