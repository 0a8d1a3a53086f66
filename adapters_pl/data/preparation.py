"""What happens between reading a dataset and training on it: the test sets, the division, the guard, the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from adapters_pl.compat.lightning import rank_zero_info, rank_zero_only
from adapters_pl.data import contamination
from adapters_pl.data.example import Example, asks
from adapters_pl.data.published import ROOT_VARIABLE, MissingFile
from adapters_pl.data.questions import Reader
from adapters_pl.data.rows import SetRows
from adapters_pl.data.token_cache import encoded
from adapters_pl.data.tokens import TokenTable
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.tables import print_table

OnOverflow = Literal["truncate", "drop", "error"]


Owner = TypeVar("Owner", bound=SetRows)


def rows_of_tests(
    name: str, owners: Mapping[str, Owner], tolerated: bool, for_training: bool = False
) -> tuple[dict[str, tuple[Owner, list[Example]]], list[str]]:
    """The test sets with their rows, and the names of those whose files are not at hand.

    Args:
        name: of the set that is tested or trained on.
        owners: what reads each test set, in the order in which they are tested.
        tolerated: the run may go on without a set.
        for_training: the rows are only compared with the training rows.

    Raises:
        UserError: some files are not at hand, and that is not tolerated; or none is, and a test has nothing to test.
    """
    found, missing = {}, {}
    for each, owner in owners.items():
        try:
            found[each] = owner, owner.examples("test")
        except MissingFile as error:
            missing[each] = error
    if missing and not (tolerated and (found or for_training)):
        if len(owners) == 1 and not for_training:
            raise missing[next(iter(owners))]
        purpose = "to check the training rows against" if for_training else "to test on"
        raise UserError(
            f"{name}: of {len(owners)} sets {purpose}, {len(missing)} have no file at hand: "
            f"{', '.join(missing)}. Set --data.root (or {ROOT_VARIABLE}), run 'adapters-pl data fetch "
            f"{' '.join(missing)}', or go on without them with --data.skip_missing true."
        )
    if missing:
        what = "the training rows are not checked against" if for_training else "tested without"
        rank_zero_info(f"{name}: {what} {', '.join(missing)} (no file at hand)")
    return found, list(missing)


def divide(count: int, limit_train: int | None, val_size: int, seed: int) -> tuple[list[int], list[int]]:
    """The rows to train on and the rows to validate on, of ``count``; both in the file's order, no row in both.

    The second are drawn from the rows beyond ``limit_train`` where there are enough of them, else from the first, of
    which they are at most a tenth.
    """
    limited = min(count, limit_train or count)
    beyond = count - limited
    if not val_size or (limited < 2 and beyond < val_size):
        return list(range(limited)), []
    held = val_size if beyond >= val_size else min(val_size, max(1, limited // 10))
    pool = range(limited, count) if beyond >= val_size else range(limited)
    generator = torch.Generator().manual_seed(seed)
    drawn = sorted(pool[i] for i in torch.randperm(len(pool), generator=generator)[:held].tolist())
    if held < val_size:
        rank_zero_info(f"{count} rows: {held} are held out for validation instead of {val_size}")
    kept = set(drawn)
    return [i for i in range(limited) if i not in kept], drawn


def without_repeats(name: str, examples: Sequence[Example], train: Sequence[int], held_out: Sequence[int]) -> list[int]:
    """The rows of ``train`` that do not ask, but for case and white space, what a row of ``held_out`` asks.

    Rows that all ask the same are left as they are, since then it is not the question that tells them apart.
    """
    kept_back = {asks(examples[row]) for row in held_out}
    kept = [row for row in train if asks(examples[row]) not in kept_back]
    if not kept:
        return list(train)
    if len(kept) < len(train):
        rank_zero_info(f"{name}: {len(train) - len(kept)} training rows ask what a held-out row asks: left out")
    return kept


def shuffled_answers(examples: Sequence[Example], train: Sequence[int]) -> list[Example]:
    """The examples, each of ``train`` with the answer of another one that is answered in the same way.

    The answers of one kind, and among the same options, move a third of the way round: they stay as frequent as they
    are, and only a row that is alone of its kind keeps its own.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for row in dict.fromkeys(train):
        alike.setdefault((examples[row].kind, examples[row].options), []).append(row)
    found = list(examples)
    for rows in alike.values():
        shift = max(1, len(rows) // 3)
        for row, other in zip(rows, rows[shift:] + rows[:shift], strict=True):
            found[row] = replace(examples[row], response=examples[other].response, answer=examples[other].answer)
    return found


def guarded(name: str, found: dict[str, Any], overlapping: set[int], parts: list[list[int]]) -> list[list[int]]:
    """Do with the training rows that are test rows what the policy in ``found`` says.

    Args:
        name: of the training set, for the messages.
        found: what :func:`adapters_pl.data.contamination.report` found; of rows that are dropped it says how many.
        overlapping: the places of the rows that overlap, in ``parts`` one after the other.
        parts: the rows to train on and the rows held out.

    Returns:
        The parts, without the rows that are dropped.

    Raises:
        UserError: rows overlap and the policy is ``error``, or none is left.
    """
    if not found["sets"]:
        return parts
    rows = [row for part in parts for row in part]
    count = f"{len(overlapping)} of {len(rows)} training rows"
    if not overlapping:
        compared = sum(row["n"] for row in found["sets"].values())
        rank_zero_info(
            f"contamination: none of {len(rows)} training rows is among the {compared} test rows of "
            f"{', '.join(found['sets'])} ({found['seconds']:.1f} s)"
        )
        return parts
    rank_zero_only(print_table)(contamination.table(found))
    if found["policy"] == "error":
        touched = [each for each, row in found["sets"].items() if row["train_rows"]]
        raise UserError(
            f"{name}: {count} are test rows of {', '.join(touched)}, or nearly. Leave them out with "
            "--data.contamination drop, or train on them knowingly with --data.contamination allow."
        )
    if found["policy"] == "allow":
        rank_zero_info(f"contamination: {count} are test rows or nearly, and are trained on ({found['seconds']:.1f} s)")
        return parts
    dropped = {rows[place] for place in overlapping}
    found["dropped"] = len(overlapping)
    rank_zero_info(f"contamination: {count} are dropped ({found['seconds']:.1f} s)")
    if len(dropped) == len(set(rows)):
        raise UserError(f"{name}: every training row is a test row, or nearly; there is nothing to train on.")
    return [[row for row in part if row not in dropped] for part in parts]


def tokenised(
    name: str,
    reader: Reader,
    prompts: Sequence[str],
    examples: Mapping[int, Example],
    chosen: Sequence[int],
    cutoff: int,
    on_overflow: OnOverflow,
) -> TokenTable:
    """Training rows in tokens, at most ``cutoff`` of them each.

    Args:
        name: the dataset, for the messages.
        reader: who reads them; a prompt that alone fills the context is refused, unless rows are dropped.
        prompts: of the chosen rows.
        examples: by their number in the file's order.
        chosen: the numbers of the rows that there are; one may be there several times.
        cutoff: the longest row in tokens.
        on_overflow: what is done with a longer one.

    Raises:
        UserError: a row has nothing to learn, is too long where that is an error, or all of them are dropped.
    """
    for row, example in examples.items():
        if not example.response:
            raise UserError(f"{name}: row {row + 1} has neither 'output' nor 'answer' to learn.")
    responses = [examples[row].response for row in chosen]
    rows = TokenTable(encoded(reader.tokenizer, prompts, responses), chosen, cutoff)
    if on_overflow != "drop":
        for place in (rows.prompt_lengths() >= cutoff).nonzero()[0].tolist():
            reader.refuse_beyond_context(rows.unfitted(place).prompt, examples[chosen[place]], chosen[place])
    lengths = rows.prompt_lengths() + rows.response_lengths()
    over = lengths > cutoff
    if not over.any():
        return rows
    if on_overflow == "error":
        first = int(over.argmax())
        raise UserError(
            f"{name}: row {chosen[first] + 1} has {lengths[first]} tokens, the cutoff is {cutoff}: raise "
            "--data.cutoff, or choose --data.on_overflow drop or truncate."
        )
    # Only a prompt is ever shortened, and a token of it has to be left.
    dropped = over if on_overflow == "drop" else rows.response_lengths() >= cutoff
    shortened = int((over & ~dropped).sum())
    what = "dropped"
    if on_overflow == "truncate":
        what = (
            f"{shortened} lose the beginning of their prompt, {int(dropped.sum())} with a longer response are dropped"
        )
    rank_zero_info(f"{name}: {int(over.sum())} of {len(rows)} rows are longer than {cutoff} tokens: {what}")
    if dropped.all():
        what = "row" if on_overflow == "drop" else "response"
        raise UserError(f"{name}: every {what} is longer than {cutoff} tokens; raise --data.cutoff.")
    return rows.select(~dropped)
