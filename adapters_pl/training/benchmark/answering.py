"""The arms of a benchmark of answers: what each of them answers with, all rows in every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from adapters_pl.data.questions import Questions
from adapters_pl.data.tokens import left_pad
from adapters_pl.evaluation.evaluator import Answers, Evaluator
from adapters_pl.evaluation.generation import Generation, as_generation, end_tokens, generate
from adapters_pl.inputs.errors import UserError
from adapters_pl.training.benchmark.pace import Job, Pace

#: The reference way is so slow that it answers one row of so many.
REFERENCE_SHARE = 8


def _ours(job: Job, pace: Pace) -> None:
    """As ``test`` answers, without the base's column."""
    module, data = job.module, job.data
    sets = _prepared(job)
    pace.wait()
    while True:
        with torch.inference_mode():
            answers = Answers(Evaluator(module.engine(data.eval_batch_size), asking=data.asking), module.folded())
            for questions in sets:
                answers.add(questions, data.rows_here(questions.name))
        records = [record for questions in sets for record in answers.records[questions.name]]
        said = "output" if data.asking.protocol.generates else "prediction"
        pace.end_answers(sum(record["tokens"] for record in records), [record[said] for record in records])


def _generate(job: Job, pace: Pace) -> None:
    """The ``generate`` of transformers on the same rows sorted by length, in batches of the same size."""
    module, size = job.module, job.data.eval_batch_size
    prompts = list(_prompts(job, _prepared(job)))
    pad = module.tokenizer.pad_token_id
    beams = job.data.asking.protocol.beams
    pace.wait()
    while True:
        found: list[Generation] = []
        for begin in range(0, len(prompts), size):
            batch = prompts[begin : begin + size]
            ids, mask = left_pad([ids for ids, _ in batch], pad if isinstance(pad, int) else 0)
            limit = max(limit for _, limit in batch)
            device = module.computes_on
            found += generate(module.model, module.tokenizer, ids.to(device), mask.to(device), limit, beams)
        pace.end_answers(sum(one.tokens for one in found), [one.text for one in found])


def _reference(job: Job, pace: Pace) -> None:
    """As the paper's code evaluates: row by row, four beams, no cache; one row of ``REFERENCE_SHARE``."""
    module = job.module
    prompts = list(_prompts(job, _prepared(job)))[::REFERENCE_SHARE]
    ends = end_tokens(module.model, module.tokenizer)
    model: Any = module.model
    pace.wait()
    while True:
        found = []
        for ids, limit in prompts:
            given = torch.tensor([ids], device=module.computes_on)
            how: dict[str, Any] = {"max_new_tokens": limit, "num_beams": 4, "do_sample": False, "use_cache": False}
            with torch.no_grad():
                written = model.generate(given, attention_mask=torch.ones_like(given), eos_token_id=ends, **how)
            found.append(as_generation(module.tokenizer, written[0, len(ids) :].tolist(), ends))
        pace.end_answers(sum(one.tokens for one in found), [one.text for one in found])


def _harness(job: Job, pace: Pace) -> None:
    """The options of the same rows, scored by lm-evaluation-harness's ``HFLM`` in batches of the same size."""
    from lm_eval.models.huggingface import HFLM

    module, sets = job.module, _prepared(job)
    theirs = HFLM(pretrained=module.model, tokenizer=module.tokenizer, batch_size=job.data.eval_batch_size)
    rows = [questions.choices[row] for questions in sets for row in job.data.rows_here(questions.name)]
    requests = [(("", ""), pair.context, pair.continuation) for choices in rows for pair in choices.pairs]
    pace.wait()
    while True:
        sums = iter(theirs._loglikelihood_tokens(requests, disable_tqdm=True))
        best = []
        for choices in rows:
            scores = [next(sums)[0] for _ in choices.options]
            best.append(choices.options[scores.index(max(scores))])
        pace.end_answers(0, best)


#: What answers by writing, and what by scoring options.
WRITING: dict[str, Callable[[Job, Pace], None]] = {"adapters-pl": _ours, "generate": _generate, "reference": _reference}
SCORING: dict[str, Callable[[Job, Pace], None]] = {"adapters-pl": _ours, "lm-eval": _harness}


def refuse(job: Job, arms: list[str]) -> None:
    """Raise ``UserError`` for a job that one of ``arms`` cannot answer as the others do."""
    if job.data.asking.temperature:
        raise UserError("bench --eval compares greedy answers: leave out --data.temperature and --data.samples.")
    if "lm-eval" in arms:
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            raise UserError(
                "bench --eval with --data.protocol loglikelihood needs lm-eval: pip install lm-eval"
            ) from None


def _prepared(job: Job) -> list[Questions]:
    """The sets as they are asked; the model answers with its adapters."""
    module, data = job.module, job.data
    model: Any = module.build_base()
    if job.saved is not None:
        job.saved.put_into(model)
        module.adapters = {adapter.name: adapter for adapter in job.saved.adapters}
    for adapter in job.adapters if job.saved is None else []:
        module.add_adapter(adapter)
    model.to(job.device).eval()
    if job.trainer.get("precision") == "bf16-true":
        model.to(torch.bfloat16)
    data.connect(module.reader)
    data.setup("test")
    found = [data.questions(name) for name in data.eval_sets]
    return [questions for questions in found if questions is not None]


def _prompts(job: Job, sets: list[Questions]) -> Iterator[tuple[list[int], int]]:
    """The prompts of all sets, each set's from the longest to the shortest, and the most tokens of their answers."""
    return chain.from_iterable(
        ((questions.prompts[row], questions.max_new_tokens) for row in job.data.rows_here(questions.name))
        for questions in sets
    )
