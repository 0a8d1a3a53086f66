"""From what a model wrote to the answer it states, and whether that answer is right.

The ``strict`` protocol reads the answer that a text states ("the answer is 12", "#### 12") before it falls
back on the last number, and takes an option only as a whole word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from adapters_pl.errors import UserError, did_you_mean

Kind = Literal["number", "choice", "text"]

#: A number is right within 0.001 of the gold one, or within a millionth of a large one.
NUMBER_TOLERANCE = Decimal("0.001")

_ASCII = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " "})
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u202f](?=\d{3}(?!\d))")
_NUMBER = re.compile(
    r"(?P<sign>[-+]\s?)?[$\u20ac\u00a3]?\s?"
    r"(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:\s?/\s?(?P<over>\d+(?:\.\d+)?)(?![\d/]))?"
)
_STATED = re.compile(r"(?:answers?\s*(?:is|are|=|:)|####|\\boxed\s*\{)\s*:?\s*", re.IGNORECASE)
# "The answer is 5 + 3 = 8" states 8: nothing but arithmetic stands before the last equals sign.
_WORKED_OUT = re.compile(r"[\d\s.,+*/()$%^\u00d7\u00f7-]*=")


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match["value"].replace(",", ""))
        if match["over"]:
            below = Decimal(match["over"])
            if not below:
                continue
            value /= below
        found.append(value.copy_negate() if _is_negative(text, match) else value)
    return found


def _is_negative(text: str, match: re.Match[str]) -> bool:
    """Whether the minus before a number is its sign. After a number or a closing bracket it subtracts ("5 - 3"),
    and directly after a letter it is a hyphen.
    """
    if not match["sign"] or match["sign"][0] != "-":
        return False
    before = text[: match.start()]
    return not (re.search(r"[\d)\]}%]\s?$", before) or re.search(r"\w$", before))


def extract_number(text: str) -> str | None:
    """The number a text states as its answer, else its last number; ``None`` if it holds none.

    Signs (also U+2212), thousands, decimals, fractions, currency, percent and units are understood. The last
    statement counts when there are several, and only its own line is read.
    """
    text = _SPACED_THOUSANDS.sub("", text).translate(_ASCII)
    for statement in reversed(list(_STATED.finditer(text))):
        line = text[statement.end() :].split("\n", 1)[0]
        worked_out = _WORKED_OUT.match(line)
        numbers = _numbers(line[worked_out.end() :] if worked_out else line)
        if numbers:
            return _plain(numbers[0])
    numbers = _numbers(text)
    return _plain(numbers[-1]) if numbers else None


def _plain(value: Decimal) -> str:
    """The shortest form without an exponent, which reads as itself again."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def extract_choice(text: str, options: Sequence[str]) -> str | None:
    """The option a text states as its answer, else the only option it names; ``None`` if neither is clear.

    Options are matched as whole words, without regard to case.
    """
    if not options:
        return None
    word = re.compile(
        rf"(?<!\w)(?:{'|'.join(re.escape(o) for o in sorted(options, key=len, reverse=True))})(?!\w)",
        re.IGNORECASE,
    )
    canonical = {option.casefold(): option for option in options}
    for statement in reversed(list(_STATED.finditer(text))):
        first = word.search(text[statement.end() :].split("\n", 1)[0])
        if first:
            return canonical.get(first[0].casefold())
    named = {canonical.get(match[0].casefold()) for match in word.finditer(text)}
    return named.pop() if len(named) == 1 else None


def extract_text(text: str) -> str | None:
    """The text itself, white space trimmed; ``None`` if nothing is left."""
    return _words(text) or None


def _words(text: str) -> str:
    return " ".join(text.split())


def _same_number(prediction: str, gold: str) -> bool:
    found, wanted = (extract_number(text) for text in (prediction, gold))
    if found is None or wanted is None:
        return False
    number = Decimal(wanted)
    return abs(Decimal(found) - number) <= max(NUMBER_TOLERANCE, abs(number) * Decimal("1e-6"))


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
            return _same_number(prediction, gold)
        return _words(prediction).casefold() == _words(gold).casefold()


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
