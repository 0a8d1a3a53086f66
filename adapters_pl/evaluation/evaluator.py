"""From sets to records: an engine answers, a protocol asks and judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from adapters_pl.answers import Protocol, SetSpec, option_texts, protocol_named, spec_named
from adapters_pl.data.example import Example
from adapters_pl.data.questions import Asking, Questions, Reader, ask, draw_shots
from adapters_pl.evaluation.engine import Decoding, Engine
from adapters_pl.evaluation.generation import Generation, seed_of
from adapters_pl.evaluation.metrics import majority
from adapters_pl.evaluation.scoring import Scored

#: What is kept of one answer: ``row``, ``id``, ``prompt_hash``, ``output``, ``prediction``, ``gold``, ``correct``
#: (``None`` without gold), ``finish``, ``tokens``, and what a protocol adds.
Record = dict[str, Any]


class Evaluator:
    """Answers the rows of sets, and judges the answers. It needs no Trainer and no LightningModule.

    Args:
        engine: writes and scores.
        protocol: how answers are asked for, read and judged: ``strict``, ``llm_adapters`` or ``loglikelihood``.
        asking: how sets are asked, instead of ``protocol`` and ``how``.
        how: more of how sets are asked, see :class:`~adapters_pl.data.questions.Asking`: ``template``, ``shots``,
            ``samples``, ``temperature``, ``max_new_tokens``, ``seed``.
    """

    def __init__(self, engine: Engine, protocol: str = "strict", *, asking: Asking | None = None, **how: Any) -> None:
        self.engine = engine
        self.asking = asking or Asking(protocol_named(protocol), **how)

    def answer(
        self, spec: SetSpec | str, examples: Sequence[Example], pool: Sequence[Example] = ()
    ) -> Iterator[Record]:
        """The records of ``examples``, as they are answered.

        Args:
            spec: the set, or its name.
            examples: its rows, for example ``GSM8K(root=...).examples("test")``.
            pool: the rows that worked examples are drawn from, where there are shots.

        Raises:
            UserError: a row has no options and needs them, or does not fit the context.
        """
        spec = spec_named(spec) if isinstance(spec, str) else spec
        by_row = {
            row: example if example.kind else replace(example, kind=spec.kind, options=example.options or spec.options)
            for row, example in enumerate(examples)
        }
        shots = draw_shots(pool, by_row.values(), self.asking.shots, self.asking.seed) if self.asking.shots else []
        reader = Reader(self.engine.tokenizer, self.engine.context)
        # One's own rows may answer in any form; the published ones all begin alike.
        leads = spec.test is not None
        found = ask(spec.name, by_row, self.asking, reader, shots=shots, with_leads=leads)
        yield from self.records(found, list(by_row))

    def records(self, questions: Questions, rows: Sequence[int]) -> Iterator[Record]:
        """The records of some rows of a set, as they are answered."""
        judged = self._scored(questions, rows) if not self.asking.protocol.generates else self._written(questions, rows)
        for row, record in judged:
            yield {"row": row, "prompt_hash": questions.hashes[row], **record}

    def _scored(self, questions: Questions, rows: Sequence[int]) -> Iterator[tuple[int, Record]]:
        for place, scored in self.engine.score([questions.choices[row] for row in rows]):
            yield rows[place], judge_scored(self.asking.protocol, questions.examples[rows[place]], scored)

    def _written(self, questions: Questions, rows: Sequence[int]) -> Iterator[tuple[int, Record]]:
        asking = self.asking
        prompts = [questions.prompts[row] for row in rows]
        if not asking.temperature:
            decoding = Decoding(questions.max_new_tokens, asking.protocol.beams)
            for place, written in self.engine.generate(prompts, decoding):
                yield rows[place], judge_one(asking.protocol, questions.examples[rows[place]], written)
            return
        decoding, count = Decoding(questions.max_new_tokens, temperature=asking.temperature), asking.samples
        # By the row's name, so that no batch matters.
        names = [f"{questions.name}/{questions.examples[row].id}" for row in rows]
        seeds = [seed_of(asking.seed, name, sample) for name in names for sample in range(count)]
        samples: list[dict[int, Generation]] = [{} for _ in rows]
        for place, written in self.engine.generate(
            [prompt for prompt in prompts for _ in range(count)], decoding, seeds
        ):
            number, sample = divmod(place, count)
            samples[number][sample] = written
            if len(samples[number]) == count:
                several = [samples[number][sample] for sample in range(count)]
                yield rows[number], judge_samples(asking.protocol, questions.examples[rows[number]], several)


class _Pulled:
    """Records of a set, taken from the evaluator no further than they are asked for."""

    def __init__(self, records: Iterator[Record], within: Callable[[], AbstractContextManager[None]]) -> None:
        self._records, self._within = records, within
        #: By row: what was asked for, and what ended before it; until it is taken.
        self.found: dict[int, Record] = {}

    def until(self, rows: Sequence[int]) -> list[Record]:
        """Answer until ``rows`` are found; the records that are new."""
        missing = {row for row in rows if row not in self.found}
        new: list[Record] = []
        if not missing:
            return new
        with self._within():
            for record in self._records:
                new.append(record)
                self.found[record["row"]] = record
                missing.discard(record["row"])
                if not missing:
                    return new
        raise RuntimeError(f"The engine has not answered the rows {sorted(missing)}.")


class Answers:
    """The records of one test or prediction, set by set, and what an interrupted one had answered.

    A set is answered in one stream, in which rows take each other's places; a batch only says how far it has to come.

    Args:
        evaluator: answers.
        adapted: within it the model answers with its adapters.
        base_alone: within it the model is the base, whose answers stand beside; ``None`` leaves them out.
        known: records of an interrupted test, by set and row: those rows are not answered again.
        coming: the rows of a set, by its name, that will be asked for batch by batch; each batch is a stream of its own
            if not given.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        adapted: Callable[[], AbstractContextManager[None]] = nullcontext,
        base_alone: Callable[[], AbstractContextManager[None]] | None = None,
        known: Mapping[str, Mapping[int, Record]] | None = None,
        coming: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.adapted, self.base_alone = adapted, base_alone
        self.known, self.coming = known or {}, coming
        #: One record a row, in no particular order.
        self.records: dict[str, list[Record]] = {}
        #: The records that were completed for the last batch, some of them of rows of later ones.
        self.newest: list[Record] = []
        #: Seconds that were spent on answers with the adapters, by set, and the tokens written in them.
        self.effort: dict[str, tuple[float, int]] = {}
        self._pulled: dict[str, list[_Pulled]] = {}
        self._complete: dict[str, dict[int, Record]] = {}

    def add(self, questions: Questions, rows: Sequence[int]) -> list[Record]:
        """Answer the rows that are not known yet; the records of all of them, in their order."""
        name = questions.name
        complete = self._complete.setdefault(name, dict(self.known.get(name, {})))
        new = [row for row in rows if row not in complete]
        if self.coming is None or name not in self._pulled:
            asked = [row for row in (self.coming(name) if self.coming else rows) if row not in complete]
            contexts = [self.adapted, *([self.base_alone] if self.base_alone else [])]
            self._pulled[name] = [_Pulled(self.evaluator.records(questions, asked), within) for within in contexts]
        adapted, *base = self._pulled[name]
        self._pull(name, adapted, new)
        for pulled in base:
            pulled.until(new)
            self.evaluator.engine.settle()
        ready = [row for row in adapted.found if all(row in pulled.found for pulled in base)]
        self.newest = [adapted.found.pop(row) for row in ready]
        for record in self.newest:
            for pulled in base:
                beside = pulled.found.pop(record["row"])
                record["base_prediction"], record["base_correct"] = beside["prediction"], beside["correct"]
            complete[record["row"]] = record
        records = [complete[row] for row in rows]
        self.records.setdefault(name, []).extend(records)
        return records

    def end(self) -> None:
        """Let go of what only answering needs: caches of rows, and a second set of weights."""
        self._pulled.clear()
        self.adapted = nullcontext

    def _pull(self, name: str, adapted: _Pulled, rows: Sequence[int]) -> None:
        began = time.monotonic()
        written = sum(record["tokens"] for record in adapted.until(rows))
        self.evaluator.engine.settle()
        seconds, tokens = self.effort.get(name, (0.0, 0))
        self.effort[name] = (seconds + time.monotonic() - began, tokens + written)


# ---- one answer


def read(protocol: Protocol, example: Example, text: str) -> str | None:
    """The answer that ``protocol`` reads in ``text`` for ``example``."""
    # What the options stand for only matters for letters; option words are looked for as they are.
    question = f"{example.instruction} {example.input}"
    texts = option_texts(question, example.options) if example.kind == "letter" else None
    return protocol.extract(text, example.kind or "text", example.options, set_name=example.set, option_texts=texts)


def judge_one(protocol: Protocol, example: Example, generation: Generation) -> Record:
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


def judge_samples(protocol: Protocol, example: Example, generations: Sequence[Generation]) -> Record:
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


def judge_scored(protocol: Protocol, example: Example, scored: Scored) -> Record:
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
