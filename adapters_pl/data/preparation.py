"""What happens between reading a dataset and training on it: finding the test sets, the guard, and tokenising."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from adapters_pl.compat.lightning import rank_zero_info, rank_zero_only
from adapters_pl.data import contamination
from adapters_pl.data.example import Example, asks
from adapters_pl.data.published import ROOT_VARIABLE, MissingFile
from adapters_pl.data.token_cache import encoded
from adapters_pl.data.tokens import TokenRow, TokenTable
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.tables import print_table

OnOverflow = Literal["truncate", "drop", "error"]


class Judged(Protocol):
    """What is asked of a data module here."""

    set_name: str
    test_sets: list[str]
    skip_missing: bool
    contamination: contamination.Policy
    contamination_report: dict[str, Any] | None
    _checksums: dict[str, str]

    @property
    def sets_without_rows(self) -> tuple[str, ...]:
        """The sets that have no test rows of their own."""

    def _set(self, name: str) -> Any: ...

    def examples(self, split: Literal["train", "test"]) -> list[Example]:
        """All examples of a split."""

    def distribution(self, name: str) -> Literal["in", "out"] | None:
        """Whether training rows were drawn from set ``name``."""


def question(example: Example) -> str:
    """What the guard compares: all that is asked."""
    return f"{example.instruction}\n{example.input}" if example.input else example.instruction


def rows_of_tests(
    data: Judged, names: Sequence[str], for_training: bool = False
) -> tuple[dict[str, tuple[Any, list[Example]]], list[str]]:
    """The test sets with their rows, and the names of those whose files are not at hand.

    Args:
        data: what is tested or trained on.
        names: the sets, in the order in which they are tested.
        for_training: the rows are only compared with the training rows.

    Raises:
        UserError: some files are not at hand, and neither ``skip_missing`` nor, for training,
            ``contamination: allow`` lets the run go on without them; or none is, and a test has nothing to test.
    """
    found, missing = {}, {}
    for name in names:
        owner = data._set(name)
        try:
            found[name] = owner, owner.examples("test")
        except MissingFile as error:
            missing[name] = error
    tolerated = data.skip_missing or (for_training and data.contamination == "allow")
    if missing and not (tolerated and (found or for_training)):
        if len(names) == 1 and not for_training:
            raise missing[names[0]]
        purpose = "to check the training rows against" if for_training else "to test on"
        raise UserError(
            f"{data.set_name}: of {len(names)} sets {purpose}, {len(missing)} have no file at hand: "
            f"{', '.join(missing)}. Set --data.root (or {ROOT_VARIABLE}), run 'adapters-pl data fetch "
            f"{' '.join(missing)}', or go on without them with --data.skip_missing true."
        )
    if missing:
        what = "the training rows are not checked against" if for_training else "tested without"
        rank_zero_info(f"{data.set_name}: {what} {', '.join(missing)} (no file at hand)")
    return found, list(missing)


def without_repeats(name: str, examples: Sequence[Example], train: Sequence[int], held_out: Sequence[int]) -> list[int]:
    """The rows of ``train`` that do not ask, but for case and white space, what a row of ``held_out`` asks.

    Rows that all ask the same are left as they are, since then it is not the question that tells them apart.
    """
    asked = {asks(examples[row]) for row in held_out}
    kept = [row for row in train if asks(examples[row]) not in asked]
    if not kept:
        return list(train)
    if len(kept) < len(train):
        rank_zero_info(f"{name}: {len(train) - len(kept)} training rows ask what a held-out row asks: left out")
    return kept


def guard(data: Judged, examples: Sequence[Example], *parts: list[int]) -> list[list[int]]:
    """Check the rows of ``parts`` against every set the run will be judged on, as ``data.contamination`` says.

    What was found is left in ``data.contamination_report``, with the checksums of the files that were compared.

    Returns:
        The parts, without the rows that are dropped.

    Raises:
        UserError: rows overlap and the policy is ``error``, or a set's file is not at hand.
    """
    judged = [name for name in data.test_sets if name not in data.sets_without_rows]
    tests, unchecked = rows_of_tests(data, judged, for_training=True)
    rows = [row for part in parts for row in part]
    found, overlapping = contamination.report(
        [question(examples[row]) for row in rows],
        {name: [question(example) for example in asked] for name, (_, asked) in tests.items()},
        data.contamination,
        {name: data.distribution(name) for name in tests},
        unchecked,
    )
    # What was compared, by its checksum: the results of a test only name the files that were tested.
    owners = [data, *(owner for owner, _ in tests.values())]
    found["data"] = {path: sha1 for owner in owners for path, sha1 in owner._checksums.items()}
    data.contamination_report = found
    if not tests:
        return list(parts)
    count = f"{len(overlapping)} of {len(rows)} training rows"
    if not overlapping:
        asked = sum(row["n"] for row in found["sets"].values())
        rank_zero_info(
            f"contamination: none of {len(rows)} training rows is among the {asked} test rows of {', '.join(tests)} "
            f"({found['seconds']:.1f} s)"
        )
        return list(parts)
    rank_zero_only(print_table)(contamination.table(found))
    if data.contamination == "error":
        touched = [name for name, row in found["sets"].items() if row["train_rows"]]
        raise UserError(
            f"{data.set_name}: {count} are test rows of {', '.join(touched)}, or nearly. Leave them out with "
            "--data.contamination drop, or train on them knowingly with --data.contamination allow."
        )
    if data.contamination == "allow":
        rank_zero_info(f"contamination: {count} are test rows or nearly, and are trained on ({found['seconds']:.1f} s)")
        return list(parts)
    dropped = {rows[place] for place in overlapping}
    found["dropped"] = len(overlapping)
    rank_zero_info(f"contamination: {count} are dropped ({found['seconds']:.1f} s)")
    if len(dropped) == len(set(rows)):
        raise UserError(f"{data.set_name}: every training row is a test row, or nearly; there is nothing to train on.")
    return [[row for row in part if row not in dropped] for part in parts]


def tokenised(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    examples: Sequence[Example],
    numbers: Sequence[int],
    cutoff: int,
    on_overflow: OnOverflow,
    refuse: Callable[[TokenRow, Example], None],
) -> TokenTable:
    """Training rows in tokens, at most ``cutoff`` of them each.

    Args:
        name: the dataset, for the messages.
        tokenizer: the base's.
        prompts: every row's prompt.
        examples: every row.
        numbers: every row's number in the file's order.
        cutoff: the longest row in tokens.
        on_overflow: what is done with a longer one.
        refuse: raises for a row whose prompt alone fills the model's context; not asked where rows are dropped.

    Raises:
        UserError: a row has nothing to learn, is too long where that is an error, or all of them are dropped.
    """
    for number, example in zip(numbers, examples, strict=True):
        if not example.response:
            raise UserError(f"{name}: row {number + 1} has neither 'output' nor 'answer' to learn.")
    rows = TokenTable(encoded(tokenizer, prompts, [example.response for example in examples]), numbers, cutoff)
    if on_overflow != "drop":
        for place in (rows.prompt_lengths() >= cutoff).nonzero()[0].tolist():
            refuse(rows.unfitted(place), examples[place])
    lengths = rows.prompt_lengths() + rows.response_lengths()
    over = lengths > cutoff
    if not over.any():
        return rows
    if on_overflow == "error":
        first = int(over.argmax())
        raise UserError(
            f"{name}: row {numbers[first] + 1} has {lengths[first]} tokens, the cutoff is {cutoff}: raise "
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
