r"""What a text states as its answer: numbers, option words, option letters, plain text.

Every reader prefers a statement ("the answer is 12", "#### 12", "\boxed{12}") to anything else in the text, the
last statement to earlier ones, and reads only the statement's own line. Every reader is idempotent: what it returns
reads as itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

_ASCII = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4"}
    | dict.fromkeys("\u00a0\u202f\u2009", " ")
)
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))")
# With plain spaces only a whole number in groups of three, and only where an answer is stated: "$118 000".
_PLAIN_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]?\d)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}")
_NUMBER = re.compile(
    r"(?P<sign>[-+]\s?)?[$\u20ac\u00a3]?\s?"
    r"(?:(?P<integer>\d+)\s+(?=\d+\s?/\s?\d))?"
    r"(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:\s?/\s?(?P<over>\d+(?:\.\d+)?)(?![\d/]))?"
)
_IS = r"\s*(?:is|are|was|(?:would|will|must|should)\s+be|=|:)"
_STATED = re.compile(
    rf"(?:answers?(?:\s+(?:to|for)\b[^.\n]{{0,80}}?\b(?=is\b))?{_IS}|####|\\boxed\s*\{{)\s*:?\s*", re.IGNORECASE
)
_LETTER_STATED = re.compile(
    rf"(?:(?:answers?|options?|choices?)(?:\s+(?:choice|option|letter))?{_IS}|####|\\boxed\s*\{{(?:\\text\s*\{{)?)"
    r"\s*:?\s*",
    re.IGNORECASE,
)
# "12 is the answer", "(C) is the correct option": the statement stands before these words.
_STATED_BEFORE = re.compile(r"\s+is\s+(?:the\s+)?(?:(?:correct|right|final|best)\s*)*(?:answer|option|choice)\b", re.I)
# "The answer is 5 + 3 = 8" states 8: nothing but arithmetic stands before the last equals sign.
_WORKED_OUT = re.compile(r"[\d\s.,+*/()$%^\u00d7\u00f7-]*=")
_OPTION = re.compile(r"\(([A-E])\)\s*(.*?)\s*(?=\([A-E]\)|$)", re.DOTALL)
_OPEN, _CLOSE = r"[\s*_\"'`(\[{$]*", r"[*_\"'`)\]}$]*"
# What a text says that has no answer. Behind "the answer is" a word will do; elsewhere it takes a whole phrase.
_NOT_TOLD = re.compile(
    r"(?:can\s?not|can['\u2019]t|could\s+not|couldn['\u2019]t)\s+be\s+(?:determined|known|found|calculated|answered|told)"
    r"|(?:not\s+enough|insufficient|too\s+little)\s+(?:information|data)|impossible\s+to\s+(?:determine|tell|say|know)",
    re.IGNORECASE,
)
_STATED_NONE = re.compile(
    rf"(?:{_STATED.pattern}){_OPEN}(?:there\s+is\s+)?(?:{_NOT_TOLD.pattern}|(?:un(?:known|clear|determined|certain)"
    r"|undefined|impossible|none|not\s+(?:known|given|clear|possible))\b)",
    re.IGNORECASE,
)


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match["value"].replace(",", ""))
        if match["over"]:
            below = Decimal(match["over"])
            if not below:
                continue
            value /= below
        if match["integer"]:
            value += Decimal(match["integer"])
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


def _statements(stated: re.Pattern[str], text: str) -> Iterator[str]:
    """What follows each statement on its own line, the last statement first; of "not 12 but 13" what follows "but"."""
    for statement in reversed(list(stated.finditer(text))):
        line = text[statement.end() :].split("\n", 1)[0]
        yield re.split(r"\bbut\b", line, maxsplit=1)[-1] if re.match(r"not\b.*\bbut\b", line) else line


def extract_number(text: str) -> str | None:
    r"""The number a text states as its answer, else its last number; ``None`` if it holds none.

    Signs (also U+2212), thousands, decimals, fractions (3/4, 1 1/2, \frac), currency, percent and units are
    understood; a percentage is the number before its sign. The last statement counts when there are several, and
    only its own line is read. Where the text says that there is no answer ("the answer is unknown"), only what follows
    counts.
    """
    text = _LATEX_FRACTION.sub(r"\1/\2", _SPACED_THOUSANDS.sub("", text).translate(_ASCII))
    if unknown := list(_STATED_NONE.finditer(text)):
        text = text[unknown[-1].end() :]
    for line in _statements(_STATED, text):
        line = _PLAIN_SPACED.sub(lambda match: match[0].replace(" ", ""), line)
        worked_out = _WORKED_OUT.match(line)
        numbers = _numbers(line[worked_out.end() :] if worked_out else line)
        if numbers:
            return _plain(numbers[0])
    for statement in reversed(list(_STATED_BEFORE.finditer(text))):
        numbers = _numbers(re.split(r"\n|[.!?]\s", text[: statement.start()])[-1])
        if numbers:
            return _plain(numbers[-1])
    numbers = _numbers(_behind_refusal(text))
    return _plain(numbers[-1]) if numbers else None


def _behind_refusal(text: str) -> str:
    """What follows the words by which the last sentence says that nothing can be told; else all of ``text``."""
    sentences = [sentence for sentence in re.split(r"\n|[.!?](?:\s|$)", text) if sentence.strip()]
    refusal = _NOT_TOLD.search(sentences[-1]) if sentences else None
    return sentences[-1][refusal.end() :] if refusal else text


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
    for line in _statements(_STATED, text):
        first = word.search(line)
        if first:
            return canonical.get(first[0].casefold())
    named = {canonical.get(match[0].casefold()) for match in word.finditer(text)}
    return named.pop() if len(named) == 1 else None


def extract_letter(text: str, options: Sequence[str], texts: Mapping[str, str] | None = None) -> str | None:
    """The option letter a text gives as its answer; ``None`` if it gives none or is not clear.

    A letter counts only as an answer: after a statement ("the answer is (C)", "the correct option is C"), before
    one ("C is the correct option"), as a line or sentence of its own, or as the only letter in brackets. Letters in
    words, names ("vitamin C") and the article never count. Small letters count only in brackets or alone.

    Args:
        text: what a model wrote.
        options: the letters, ``A`` to ``E`` if empty.
        texts: what each letter stands for, if known; a text that states exactly one of them gives its letter.
    """
    letters = "".join(options) or "ABCDE"
    for line in _statements(_LETTER_STATED, text):
        if found := _stated_letter(line, letters) or _stated_text(line, texts or {}):
            return found
    either = f"{letters}{letters.lower()}"
    for pattern in (
        rf"(?<!\w)([{letters}]){_CLOSE}(?i:{_STATED_BEFORE.pattern}|\s+is\s+(?:the\s+)?(?:correct|right)\b)",
        rf"(?:^|(?<=[.!?\n])){_OPEN}([{either}]){_CLOSE}\s*(?=[.!?:\n]|$)",
        rf"(?<!not )\(([{either}])\)",
        rf"(?<![\w(])([{letters}])\)",
    ):
        named = {letter.upper() for letter in re.findall(pattern, text)}
        if named:
            return named.pop() if len(named) == 1 else None
    return _stated_text(text, texts or {})


def _stated_letter(line: str, letters: str) -> str | None:
    """The letter that a statement begins with, or the only one in brackets behind it."""
    begins = re.match(
        rf"{_OPEN}(?:(?:option|choice|answer|letter)\s+)?{_OPEN}([{letters}{letters.lower()}])(?!\w)", line
    )
    if begins:
        letter, rest = begins[1], line[begins.end() :]
        if re.match(rf"{_CLOSE}\s*(?:or\b|and\b|/|,)\s*{_OPEN}[{letters}](?!\w)", rest):
            return None  # "A or B"
        closed = re.match(rf"{_CLOSE}\s*(?:[.,;:!?)\]}}*]|$)|[)\]}}*]", rest)
        goes_on = re.match(r"\s+(?:because|since|as|which|that|with|for|is|-)\b", rest)
        # "The answer is a man", "The answer is A man": an article. "The answer is C cents" is an answer.
        if closed or (letter in letters and (letter != "A" or goes_on) and not re.match(r"['\u2019-]\w", rest)):
            return letter.upper()
    sentence = re.split(r"[.!?]\s", line, maxsplit=1)[0]
    bracketed = set(re.findall(rf"\(([{letters}])\)", sentence))
    return bracketed.pop() if len(bracketed) == 1 and not re.search(r"\bnot\b", sentence, re.IGNORECASE) else None


def _stated_text(line: str, texts: Mapping[str, str]) -> str | None:
    """The letter whose text is what ``line`` says, no more and no less."""
    said = _bare(line)
    same = [letter for letter, text in texts.items() if said and _bare(text) == said]
    return same[0] if len(same) == 1 else None


def _bare(text: str) -> str:
    return words(text).casefold().strip(" .*_\"'`{}")


def extract_text(text: str) -> str | None:
    """The text itself, white space trimmed; ``None`` if nothing is left."""
    return words(text) or None


def words(text: str) -> str:
    """``text`` with each run of white space as one space, and none around it."""
    return " ".join(text.split())


def option_texts(question: str, options: Sequence[str]) -> dict[str, str]:
    """What each option stands for, as the published questions list them; empty where they list nothing.

    ``(A) 5 (B) 6`` for letters, ``Answer1: wet palms Answer2: dry palms`` for option words.
    """
    if all(len(option) == 1 for option in options):
        found = dict(_OPTION.findall(question.partition("Answer Choices:")[2]))
    else:
        named = "|".join(re.escape(option) for option in options)
        listed = re.compile(rf"\b({named}):\s*(.*?)\s*(?=\b(?:{named}):|Answer format:|$)", re.IGNORECASE | re.DOTALL)
        found = {option.lower(): text for option, text in listed.findall(question)} if options else {}
    return {option: found[option] for option in options if option in found}
