"""Both protocols' readings of the published rationales, for a person's eye.

``python -m tests.helpers.review_answers --root DATA --out FILE`` reads AQuA, GSM8K and SVAMP below ``DATA`` and writes
one line for every row whose rationale does not end in one plain statement of its answer. The rationales are what a
model wrote, so what they state need not be right; how often it is, is printed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters_pl.answers import PROTOCOLS, Kind, option_texts

SETS: dict[str, Kind] = {"AQuA": "letter", "gsm8k": "number", "SVAMP": "number"}
_PLAIN_NUMBER = re.compile(
    r"\banswer is:?\s*(?P<sign>-?)[$\u20ac\u00a3]?(?P<minus>-?)(?P<value>\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"(?P<unit>[^\d\n/=+]*)$",
    re.IGNORECASE,
)
_PLAIN_LETTER = re.compile(r"\banswer is:?\s*\(?([A-E])\)?\.?$")
_SEVERAL = re.compile(r"\b(?:and|or)\b")


@dataclass(frozen=True)
class Reading:
    """One rationale and what is read out of it.

    Attributes:
        set: published name.
        row: in the file's order, from 0.
        stated: what the text ends by stating in one plain sentence; ``None`` if it does not.
        strict: the strict protocol's answer.
        llm_adapters: the reference's answer.
        gold: the row's answer.
        right: whether ``strict`` is the gold answer.
        text: the rationale.
    """

    set: str
    row: int
    stated: str | None
    strict: str | None
    llm_adapters: str | None
    gold: str
    right: bool
    text: str


def plainly_stated(text: str, kind: Kind) -> str | None:
    """What the last sentence states, where it is "The answer is" and one number with a unit, or one letter.

    Written apart from the protocols, which are checked against it.
    """
    text = text.rstrip()
    if kind == "letter":
        letter = _PLAIN_LETTER.search(text)
        return letter[1] if letter else None
    number = _PLAIN_NUMBER.search(text)
    if not number or _SEVERAL.search(number["unit"]):
        return None
    return f"{'-' if number['sign'] or number['minus'] else ''}{number['value'].replace(',', '')}"


def readings(root: Path) -> Iterator[Reading]:
    """Every rationale of the three sets below ``root`` that is not empty."""
    for name, kind in SETS.items():
        rows = json.loads((root / "dataset" / name / "test.json").read_text(encoding="utf-8"))
        letters = tuple("ABCDE") if kind == "letter" else ()
        for number, row in enumerate(rows):
            text = row["output"]
            if not text.strip():
                continue
            texts = option_texts(row["instruction"], letters)
            strict, reference = (
                PROTOCOLS[protocol].extract(text, kind, letters, set_name=name, option_texts=texts)
                for protocol in ("strict", "llm_adapters")
            )
            right = PROTOCOLS["strict"].match(strict, str(row["answer"]), kind)
            stated = plainly_stated(text, kind)
            yield Reading(name, number, stated, strict, reference, str(row["answer"]), right, text)


def agrees(reading: Reading) -> bool:
    """Whether the strict protocol returns what is plainly stated."""
    if reading.stated is None or reading.strict is None:
        return False
    if SETS[reading.set] == "letter":
        return reading.strict == reading.stated
    return float(reading.strict) == float(reading.stated)


def main(arguments: list[str] | None = None) -> int:
    """Write the rows that need an eye, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.review_answers", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds dataset/<Name>/test.json")
    parser.add_argument("--out", type=Path, required=True, help="the JSON lines file to write")
    options = parser.parse_args(arguments)
    found = list(readings(options.root))
    rest = [reading for reading in found if reading.stated is None]
    options.out.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rest), encoding="utf-8")
    for name in SETS:
        of_set = [reading for reading in found if reading.set == name]
        plain = [reading for reading in of_set if reading.stated is not None]
        print(
            f"{name}: {len(of_set)} rationales, {len(plain)} end in a plain statement, strict returns it in "
            f"{sum(map(agrees, plain))}; of all, {sum(r.right for r in of_set)} are right "
            f"({100 * sum(r.right for r in of_set) / len(of_set):.1f}%)"
        )
    print(f"{len(rest)} others: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
