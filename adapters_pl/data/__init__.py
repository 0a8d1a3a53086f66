"""The reasoning datasets: one small class each, all of them Lightning data modules."""

from adapters_pl.answers import SUITES, sets_of
from adapters_pl.data.example import Example
from adapters_pl.data.module import SETS, ReasoningDataModule, set_named
from adapters_pl.data.sets.arithmetic import (
    GSM8K,
    MAWPS,
    SVAMP,
    AddSub,
    AQuA,
    Math7K,
    Math10K,
    Math14K,
    Math50K,
    MathData,
    MathQA,
    MultiArith,
    SingleEq,
)
from adapters_pl.data.sets.commonsense import (
    PIQA,
    SIQA,
    ARCChallenge,
    ARCEasy,
    BoolQ,
    Commonsense15K,
    Commonsense170K,
    HellaSwag,
    OpenBookQA,
    WinoGrande,
)
from adapters_pl.data.sets.instruction_json import InstructionJSON
from adapters_pl.data.sets.suites import AlpacaCleaned, Arithmetic, Commonsense
from adapters_pl.data.sets.word_problems import FreshWordProblems, UnseenWordProblems, WordProblems

__all__ = [
    "GSM8K",
    "MAWPS",
    "PIQA",
    "SETS",
    "SIQA",
    "SUITES",
    "SVAMP",
    "AQuA",
    "ARCChallenge",
    "ARCEasy",
    "AddSub",
    "AlpacaCleaned",
    "Arithmetic",
    "BoolQ",
    "Commonsense",
    "Commonsense15K",
    "Commonsense170K",
    "Example",
    "FreshWordProblems",
    "HellaSwag",
    "InstructionJSON",
    "Math7K",
    "Math10K",
    "Math14K",
    "Math50K",
    "MathData",
    "MathQA",
    "MultiArith",
    "OpenBookQA",
    "ReasoningDataModule",
    "SingleEq",
    "UnseenWordProblems",
    "WinoGrande",
    "WordProblems",
    "set_named",
    "sets_of",
]
