"""One tested row after another: which worked examples stand before it, and what is recorded of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapters_pl.answers import Protocol, option_texts
from adapters_pl.evaluation.generation import Generation
from adapters_pl.evaluation.metrics import majority

if TYPE_CHECKING:
    from adapters_pl.data.example import Example
    from adapters_pl.evaluation.scoring import Scored


def read(protocol: Protocol, example: Example, text: str) -> str | None:
    """The answer that ``protocol`` reads in ``text`` for ``example``."""
    # What the options stand for only matters for letters; option words are looked for as they are.
    question = f"{example.instruction} {example.input}"
    texts = option_texts(question, example.options) if example.kind == "letter" else None
    return protocol.extract(text, example.kind or "text", example.options, set_name=example.set, option_texts=texts)


def judge_one(protocol: Protocol, example: Example, generation: Generation) -> dict[str, Any]:
    """The record of one generated answer; ``correct`` is ``None`` without a gold one."""
    prediction = read(protocol, example, generation.text)
    return {
        "id": example.id,
        "output": generation.text,
        "prediction": prediction,
        "gold": example.answer,
        "correct": _right(protocol, example, prediction),
        "finish": generation.finish,
        "tokens": generation.tokens,
    }


def judge_samples(protocol: Protocol, example: Example, generations: Sequence[Generation]) -> dict[str, Any]:
    """The record of several sampled answers: the majority's answer, and whether any of them is right (pass@k).

    ``output`` and ``finish`` are those of the first sample that gives the majority's answer.
    """
    predictions = [read(protocol, example, generation.text) for generation in generations]
    voted = majority(predictions)
    shown = generations[predictions.index(voted)]
    right = [_right(protocol, example, prediction) for prediction in predictions]
    return {
        **judge_one(protocol, example, shown),
        "tokens": sum(generation.tokens for generation in generations),
        "samples": [generation.text for generation in generations],
        "sample_predictions": predictions,
        "sample_correct": right,
        "passed": None if example.answer is None else any(right),
    }


def judge_scored(protocol: Protocol, example: Example, scored: Scored) -> dict[str, Any]:
    """The record of scored options: ``prediction`` by the sum, ``prediction_normalised`` per character."""
    best, normalised = scored.best(), scored.best_normalised()
    return {
        "id": example.id,
        "output": "",
        "prediction": best,
        "gold": example.answer,
        "correct": _right(protocol, example, best),
        "finish": "scored",
        "tokens": 0,
        "prediction_normalised": normalised,
        "correct_normalised": _right(protocol, example, normalised),
        "scores": dict(zip(scored.choices.options, scored.sums, strict=True)),
    }


def _right(protocol: Protocol, example: Example, prediction: str | None) -> bool | None:
    return None if example.answer is None else protocol.match(prediction, example.answer, example.kind or "text")
