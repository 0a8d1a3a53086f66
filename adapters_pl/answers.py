"""From what a model wrote to the answer it states, and whether that answer is right.

The ``strict`` protocol reads the answer that a text states ("the answer is 12", "#### 12") before it falls
back on the last number, and takes an option only as a whole word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from adapters_pl.errors import UserError, did_you_mean

Kind = Literal["number", "choice", "text"]

#: A number is right within 0.001 of the gold one, or within a millionth of a large one.
NUMBER_TOLERANCE = 1e-3

_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " "})
# A sign counts only where no number, letter or closing bracket stands before it: "5-3" holds 5 and 3.
_NUMBER = re.compile(
    r"(?<![\w)\].])(?P<sign>[-+])?\s?[$\u20ac\u00a3]?\s?"
    r"(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<over>\d+(?:\.\d+)?)(?![\d/]))?"
    r"|(?P<value2>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
)
_STATED = re.compile(r"(?:answer\s*(?:is|are|=|:)|####|\\boxed\s*\{)\s*:?\s*", re.IGNORECASE)


def _numbers(text: str) -> list[float]:
    found = []
    for match in _NUMBER.finditer(text):
        value = float((match["value"] or match["value2"]).replace(",", ""))
        if match["over"]:
            below = float(match["over"])
            if below == 0:
                continue
            value /= below
        found.append(-value if match["sign"] == "-" else value)
    return found


def extract_number(text: str) -> str | None:
    """The number a text states as its answer, else its last number; ``None`` if it holds none.

    Signs (also U+2212), thousands, decimals, fractions, currency, percent and units are understood. The last
    statement counts when there are several, and only its own line is read.
    """
    text = text.translate(_MINUS)
    stated = list(_STATED.finditer(text))
    for statement in reversed(stated):
        numbers = _numbers(text[statement.end() :].split("\n", 1)[0])
        if numbers:
            return _shortest(numbers[0])
    numbers = _numbers(text)
    return _shortest(numbers[-1]) if numbers else None


def _shortest(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def extract_choice(text: str, options: Sequence[str]) -> str | None:
    """The option a text states as its answer, else the only option it names; ``None`` if neither is clear.

    Options are matched as whole words, without regard to case.
    """
    word = re.compile(
        rf"(?<!\w)(?:{'|'.join(re.escape(o) for o in sorted(options, key=len, reverse=True))})(?!\w)",
        re.IGNORECASE,
    )
    canonical = {option.lower(): option for option in options}
    for statement in reversed(list(_STATED.finditer(text))):
        first = word.search(text[statement.end() :].split("\n", 1)[0])
        if first:
            return canonical[first[0].lower()]
    named = {canonical[match[0].lower()] for match in word.finditer(text)}
    return named.pop() if len(named) == 1 else None


def extract_text(text: str) -> str | None:
    """The text itself, white space trimmed; ``None`` if nothing is left."""
    return " ".join(text.split()) or None


def _match_number(prediction: str, gold: str) -> bool:
    wanted = _as_number(gold)
    found = _as_number(prediction)
    if wanted is None or found is None:
        return False
    return abs(found - wanted) <= max(NUMBER_TOLERANCE, 1e-6 * abs(wanted))


def _as_number(text: str) -> float | None:
    try:
        return float(Fraction(text.strip().replace(",", "")))
    except (ValueError, ZeroDivisionError):
        number = extract_number(text)
        return float(number) if number is not None else None


@dataclass(frozen=True)
class Protocol:
    """How a model's text becomes an answer and how the answer is judged.

    Attributes:
        name: what results call it.
        extract: ``(text, kind, options) -> prediction`` or ``None`` where the text states no answer.
    """

    name: str
    extract: Callable[[str, Kind, Sequence[str]], str | None]

    def match(self, prediction: str | None, gold: str, kind: Kind) -> bool:
        """Whether ``prediction`` is ``gold``; a text without an answer is wrong."""
        if prediction is None:
            return False
        if kind == "number":
            return _match_number(prediction, gold)
        return prediction.strip().lower() == " ".join(gold.split()).lower()


def _strict(text: str, kind: Kind, options: Sequence[str]) -> str | None:
    if kind == "number":
        return extract_number(text)
    if kind == "choice":
        return extract_choice(text, options)
    return extract_text(text)


PROTOCOLS = {"strict": Protocol("strict", _strict)}


def protocol_named(name: str) -> Protocol:
    """The protocol ``name``; raises ``UserError`` with the nearest names if there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol '{name}' does not exist: {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def extract(text: str, dataset: str, protocol: str = "strict") -> str | None:
    """The answer that ``text`` states for ``dataset`` (by its published name), or ``None``."""
    from adapters_pl.data import set_named

    wanted = set_named(dataset)
    return protocol_named(protocol).extract(text, wanted.kind, wanted.options)
