"""The reasoning datasets: one small class each, all of them Lightning data modules."""

from adapters_pl.data.arithmetic import GSM8K, SVAMP, AddSub, Math10K
from adapters_pl.data.base import ReasoningDataModule
from adapters_pl.data.commonsense import ARCChallenge, BoolQ
from adapters_pl.data.instruction_json import InstructionJSON
from adapters_pl.data.registry import SETS, Example, set_named
from adapters_pl.data.word_problems import FreshWordProblems, UnseenWordProblems, WordProblems

__all__ = [
    "GSM8K",
    "SETS",
    "SVAMP",
    "ARCChallenge",
    "AddSub",
    "BoolQ",
    "Example",
    "FreshWordProblems",
    "InstructionJSON",
    "Math10K",
    "ReasoningDataModule",
    "UnseenWordProblems",
    "WordProblems",
    "set_named",
]
