"""The answer extractors of LLM-Adapters (``evaluate.py``, ``commonsense_evaluate.py``), flaws and all.

They exist for comparison with published numbers: the last number of a text is its answer whatever the text states
("5-3" gives -3), the first capital A to E of any word is a letter, the first option word is the choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adapters_pl.answers.extractors import extract_text
from adapters_pl.answers.protocol import Protocol
from adapters_pl.answers.sets import SPECS, Kind

_NUMBER = re.compile(r"-?\d+\.?\d*")
_LETTER = re.compile("A|B|C|D|E")
#: The reference looks for all five in every set that names its options so, however many a set has.
_ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
#: Right within this of the gold number.
TOLERANCE = 0.001


def extract_number(text: str) -> str | None:
    """The last number of the text, commas left out."""
    found = _NUMBER.findall(text.replace(",", ""))
    return found[-1].removesuffix(".") if found else None


def extract_letter(text: str) -> str | None:
    """The first capital A to E, also within a word."""
    found = _LETTER.search(text.strip())
    return found[0] if found else None


def extract_choice(text: str, set_name: str, options: Sequence[str] = ()) -> str | None:
    """The first option word, also within a longer word, in its own case only."""
    spec = SPECS.get(set_name)
    known = (spec.options if spec else ()) or tuple(options)
    known = _ANSWERS if spec and set(known) < set(_ANSWERS) else known
    found = re.search("|".join(re.escape(word) for word in known), text.strip()) if known else None
    return found[0] if found else None


def response(text: str) -> str:
    """What the reference takes for the response: a model that goes on with a further "### Response:" is cut there."""
    return text.split("### Response:")[0].strip()


def same_number(prediction: str, gold: str) -> bool:
    """Whether two numbers differ by at most :data:`TOLERANCE`; infinite ones are never right."""
    try:
        # `inf - inf` is no number, and no comparison with that is true, as in the reference.
        return abs(float(gold) - float(prediction)) <= TOLERANCE
    except ValueError:
        return False


class _LLMAdapters(Protocol):
    """The reference's own reading."""

    def extract(
        self,
        text: str,
        kind: Kind,
        options: Sequence[str] = (),
        *,
        set_name: str = "",
        option_texts: Mapping[str, str] | None = None,
    ) -> str | None:
        """What the reference reads out of ``text``."""
        text = response(text)
        if kind == "number":
            return extract_number(text)
        if kind == "letter":
            return extract_letter(text)
        if kind == "choice":
            return extract_choice(text, set_name, options)
        return extract_text(text)

    def match(self, prediction: str | None, gold: str, kind: Kind) -> bool:
        """Numbers within the reference's tolerance; everything else must be the same string."""
        if prediction is None:
            return False
        return same_number(prediction, gold) if kind == "number" else prediction == gold


LLM_ADAPTERS = _LLMAdapters(
    "llm_adapters",
    templates={
        "number": "llm_adapters_math",
        "letter": "llm_adapters_math",
        "text": "llm_adapters_math",
        "choice": "llm_adapters_commonsense",
    },
    beams=4,
    tolerance=str(TOLERANCE),
)
