"""One tested row after another: which worked examples stand before it, and what is recorded of its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from adapters_pl.answers import Protocol, option_texts
from adapters_pl.errors import UserError
from adapters_pl.generation import Generation
from adapters_pl.metrics import majority

if TYPE_CHECKING:
    from adapters_pl.data.registry import Example
    from adapters_pl.scoring import Scored


def prompt_hash(prompt: str) -> str:
    """Sixteen hexadecimal digits that stand for a prompt."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw_shots(pool: Sequence[Example], tested: Iterable[Example], count: int, seed: int) -> list[Example]:
    """``count`` worked examples from the training rows ``pool``; no tested question is among them.

    A row counts as tested if it asks the same as a tested one, but for case and white space.

    Raises:
        UserError: there are too few rows with a response that are not tested.
    """
    asked = {asks(example) for example in tested}
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    shots: list[Example] = []
    for index in order:
        if len(shots) == count:
            break
        if pool[index].response and (question := asks(pool[index])) not in asked:
            asked.add(question)
            shots.append(pool[index])
    if len(shots) < count:
        raise UserError(f"data.shots is {count}, but only {len(shots)} training rows are not tested themselves.")
    return shots


def asks(example: Example) -> str:
    """What tells questions apart: their words and signs, but for case and white space."""
    return " ".join(f"{example.instruction} {example.input}".split()).casefold()


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
