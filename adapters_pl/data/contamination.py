"""Which training rows are test rows: the check before training, and what is said and recorded of it.

Three kinds of overlap, from certain to likely:

- exact: the questions are equal but for white space at their ends;
- normalised: they are equal once everything that is no letter and no digit counts as a space, and case as nothing;
- near: at least :data:`NEAR` of the test question's word n-grams occur in one training question, which also holds
  every number of the test question.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from adapters_pl.data.example import Example

Policy = Literal["error", "drop", "allow"]

# Short enough that a question of ten words has several, long enough that two questions rarely share many by chance.
# A word changed in the middle of a text costs five of them.
NGRAM = 5
# On the published files, pairs above 0.6 with the same numbers are the same question in other words ("do you have to
# be born in (the) us", "didn't" and "did n't", a name replaced); with other numbers they are another problem from
# the same template, as in all of SVAMP and MultiArith, which is no leak. Below 0.6 different questions about one
# text begin.
NEAR = 0.6
# n-grams in more than this share of a set's questions are its template ("answer format true false"), and say nothing.
TEMPLATE_SHARE = 0.01
_TEMPLATE_ROWS = 10
# With fewer n-grams of its own a question is too short to be told by them.
_FEWEST = 3
# Training rows that are looked up at a time; bounds the memory.
_CHUNK = 10_000

_SEPARATORS = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"(?<![^\W\d_])\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def normalised(text: str) -> str:
    """Lower case, every non-word character and underscore a space, white space collapsed.

    >>> normalised("  Sam's 3,000 dimes_left .")
    'sam s 3 000 dimes left'
    """
    return _SEPARATORS.sub(" ", text.lower()).strip()


def question(example: Example) -> str:
    """What is compared: all that is asked."""
    return f"{example.instruction}\n{example.input}" if example.input else example.instruction


@dataclass
class Overlap:
    """What the training questions share with one test set.

    Attributes:
        n: the set's questions.
        exact: test question -> the first training question equal to it (both counted from 0).
        normalised: the same after normalising; holds all of ``exact``.
        near: test question -> the training question nearest to it; none of ``normalised``.
        same_rows: the training questions equal to a test question after normalising.
        near_rows: the other training questions near to one.
    """

    n: int
    exact: dict[int, int] = field(default_factory=dict)
    normalised: dict[int, int] = field(default_factory=dict)
    near: dict[int, int] = field(default_factory=dict)
    same_rows: set[int] = field(default_factory=set)
    near_rows: set[int] = field(default_factory=set)

    @property
    def rows(self) -> set[int]:
        """All training questions that overlap."""
        return self.same_rows | self.near_rows


def find_overlaps(train: Sequence[str], tests: Mapping[str, Sequence[str]]) -> dict[str, Overlap]:
    """Compare every training question with every question of each test set.

    Time grows with the number of words, not with the number of pairs: each question is looked up in an index.
    """
    overlaps = find_same(train, tests)
    _find_near(train, tests, overlaps)
    return overlaps


def find_same(train: Sequence[str], tests: Mapping[str, Sequence[str]]) -> dict[str, Overlap]:
    """As :func:`find_overlaps`, of questions that are equal only."""
    overlaps = {name: Overlap(len(questions)) for name, questions in tests.items()}
    exact = _places([question.strip() for question in train])
    same = _places([normalised(question) for question in train])
    for name, questions in tests.items():
        overlap = overlaps[name]
        for i, question in enumerate(questions):
            if question.strip() in exact:
                overlap.exact[i] = exact[question.strip()][0]
            if rows := same.get(normalised(question)):
                overlap.normalised[i] = rows[0]
                overlap.same_rows.update(rows)
    return overlaps


def _places(texts: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    return places


# ---- near duplicates


class _Words:
    """Words as 64-bit numbers; n-grams are sums of them, each place weighted by an odd number of its own."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._random = np.random.default_rng(0)
        self._weights = self._random.integers(1, 2**63, NGRAM, dtype=np.uint64) | np.uint64(1)
        self._values = np.zeros(0, np.uint64)

    def learn(self, texts: Sequence[str]) -> None:
        for text in texts:
            for word in text.split():
                self._known.setdefault(word, len(self._known) + 1)
        # 0 is any other word: an n-gram with one occurs in no test question.
        self._values = self._random.integers(1, 2**63, len(self._known) + 1, dtype=np.uint64)

    def ngrams(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Every n-gram of every text: the text's number (N,), and the n-gram's hash (N,)."""
        get = self._known.get
        words = [[get(word, 0) for word in text.split()] for text in texts]
        lengths = np.array([len(row) for row in words], np.int64)
        flat = np.fromiter((word for row in words for word in row), np.int64, int(lengths.sum()))
        if len(flat) < NGRAM:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        owner = np.repeat(np.arange(len(texts)), lengths)
        n = len(flat) - NGRAM + 1
        values = self._values[flat]
        hashes = np.zeros(n, np.uint64)
        known = np.ones(n, bool)
        for place, weight in enumerate(self._weights):
            hashes += values[place : place + n] * weight
            known &= flat[place : place + n] > 0
        in_one_text = known & (owner[:n] == owner[NGRAM - 1 :])
        return owner[:n][in_one_text], hashes[in_one_text]


@dataclass
class _Index:
    """The n-grams of all test questions, and for each the questions that hold it."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    questions: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, words: _Words, tests: Sequence[Sequence[str]]) -> _Index:
        kept_questions, kept_hashes, first = [], [], 0
        for texts in tests:
            owners, hashes = _distinct(*words.ngrams(texts))
            _, number, rows = np.unique(hashes, return_inverse=True, return_counts=True)
            telling = rows[number] <= max(_TEMPLATE_ROWS, TEMPLATE_SHARE * len(texts))
            kept_questions.append(owners[telling] + first)
            kept_hashes.append(hashes[telling])
            first += len(texts)
        questions, hashes = np.concatenate(kept_questions), np.concatenate(kept_hashes)
        order = np.argsort(hashes, kind="stable")
        found, starts = np.unique(hashes[order], return_index=True)
        starts = np.append(starts, len(hashes))
        return cls(found, starts, questions[order], np.bincount(questions, minlength=first))

    def matches(self, owners: NDArray[np.int64], hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int, float]]:
        """Training question, test question, share of the test question's n-grams, where it is large enough."""
        if not len(self.hashes):
            return
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        hit = self.hashes[place] == hashes
        owners, place = owners[hit], place[hit]
        many = self.starts[place + 1] - self.starts[place]
        # The questions of every matched n-gram, one after the other.
        within = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        questions = self.questions[np.repeat(self.starts[place], many) + within]
        pairs, shared = np.unique(np.repeat(owners, many) * len(self.sizes) + questions, return_counts=True)
        train, test = np.divmod(pairs, len(self.sizes))
        share = shared / self.sizes[test]
        large = (share >= NEAR) & (self.sizes[test] >= _FEWEST)
        yield from zip(train[large].tolist(), test[large].tolist(), share[large].tolist(), strict=True)


def _distinct(owners: NDArray[np.int64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The pairs, each once."""
    order = np.lexsort((hashes, owners))
    owners, hashes = owners[order], hashes[order]
    new = np.ones(len(owners), bool)
    new[1:] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
    return owners[new], hashes[new]


def _numbers(text: str) -> Counter[float]:
    return Counter(map(float, _NUMBER.findall(_THOUSANDS.sub("", text.lower()))))


def _find_near(train: Sequence[str], tests: Mapping[str, Sequence[str]], overlaps: Mapping[str, Overlap]) -> None:
    names, questions = list(tests), [[normalised(text) for text in texts] for texts in tests.values()]
    raw = [text for texts in tests.values() for text in texts]
    first_of = np.cumsum([0, *map(len, questions)])
    words = _Words()
    words.learn([text for texts in questions for text in texts])
    if not raw:
        return
    index = _Index.of(words, questions)
    best: dict[int, float] = {}
    for begin in range(0, len(train), _CHUNK):
        chunk = [normalised(text) for text in train[begin : begin + _CHUNK]]
        owners, hashes = _distinct(*words.ngrams(chunk))
        for row, question, share in index.matches(owners, hashes):
            row += begin
            which = int(np.searchsorted(first_of, question, side="right")) - 1
            overlap, place = overlaps[names[which]], question - int(first_of[which])
            if row in overlap.same_rows or not _numbers(raw[question]) <= _numbers(train[row]):
                continue
            overlap.near_rows.add(row)
            if place not in overlap.normalised and share > best.get(question, 0.0):
                best[question] = share
                overlap.near[place] = row


# ---- what is recorded and said


def report(
    train: Sequence[str],
    tests: Mapping[str, Sequence[str]],
    policy: Policy,
    distribution: Mapping[str, str | None] | None = None,
    unchecked: Sequence[str] = (),
) -> tuple[dict[str, Any], set[int]]:
    """Check the training questions; the result as plain data, and the questions that overlap.

    Args:
        train: the training questions.
        tests: the test sets' questions by name.
        policy: what the user wants done; recorded, not done here.
        distribution: of each test set: ``in`` where the training questions were drawn from it, else ``out``.
        unchecked: the sets that could not be checked.

    Returns:
        ``policy``, ``train_rows``, ``overlapping``, ``seconds``, ``unchecked``, and by set ``n``, ``exact``,
        ``normalised``, ``near`` (test questions; the second holds the first, the third neither), ``train_rows``,
        ``distribution`` (``None`` where unknown).
    """
    began = time.monotonic()
    overlaps = find_overlaps(train, tests)
    rows = set().union(*(overlap.rows for overlap in overlaps.values()))
    return {
        "policy": policy,
        "train_rows": len(train),
        "overlapping": len(rows),
        "seconds": round(time.monotonic() - began, 2),
        "unchecked": list(unchecked),
        "sets": {
            name: {
                "n": overlap.n,
                "exact": len(overlap.exact),
                "normalised": len(overlap.normalised),
                "near": len(overlap.near),
                "train_rows": len(overlap.rows),
                "distribution": (distribution or {}).get(name),
            }
            for name, overlap in overlaps.items()
        },
    }, rows


def table(found: Mapping[str, Any]) -> Table:
    """Set, its questions, how many of them are among the training rows by each kind, training rows, distribution."""
    result = Table(title="Test questions among the training rows", title_justify="left")
    result.add_column("set")
    for heading in ("n", "exact", "normalised", "near", "training rows"):
        result.add_column(heading, justify="right")
    result.add_column("distribution")
    for name, row in found["sets"].items():
        numbers = [str(row[key]) for key in ("n", "exact", "normalised", "near", "train_rows")]
        result.add_row(name, *numbers, row["distribution"] or "-")
    return result
