"""Arithmetic reasoning: word problems whose answer is a number (LLM-Adapters, section 3.1)."""

from __future__ import annotations

from adapters_pl.data.base import ReasoningDataModule


class GSM8K(ReasoningDataModule):
    """Grade-school word problems of two to eight steps (Cobbe et al. 2021, arXiv 2110.14168)."""

    set_name = "gsm8k"
    kind = "number"
    test_file = "dataset/gsm8k/test.json"


class SVAMP(ReasoningDataModule):
    """One-unknown problems varied so that patterns alone fail (Patel et al. 2021, arXiv 2103.07191)."""

    set_name = "SVAMP"
    kind = "number"
    test_file = "dataset/SVAMP/test.json"


class AddSub(ReasoningDataModule):
    """Addition and subtraction problems (Hosseini et al. 2014, EMNLP)."""

    set_name = "AddSub"
    kind = "number"
    test_file = "dataset/AddSub/test.json"


class Math10K(ReasoningDataModule):
    """LLM-Adapters' arithmetic training mixture with model-written rationales (section 3.2)."""

    set_name = "Math10K"
    kind = "number"
    train_file = "ft-training_set/math_10k.json"
    judged_on = ("AddSub", "gsm8k", "SVAMP")
