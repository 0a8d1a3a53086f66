"""The reasoning datasets: one small class each, all of them Lightning data modules."""

from adapters_pl.data.arithmetic import (
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
from adapters_pl.data.base import ReasoningDataModule
from adapters_pl.data.commonsense import (
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
from adapters_pl.data.instruction_json import InstructionJSON
from adapters_pl.data.registry import SETS, SUITES, Example, set_named, sets_of
from adapters_pl.data.suites import AlpacaCleaned, Arithmetic, Commonsense
from adapters_pl.data.word_problems import FreshWordProblems, UnseenWordProblems, WordProblems

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
