"""The answer extractors of LLM-Adapters (``evaluate.py``, ``commonsense_evaluate.py``), flaws and all.

They exist for comparison with published numbers: the last number of a text is its answer whatever the text states
("5-3" gives -3), the first capital A to E of any word is a letter, the first option word is the choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d+\.?\d*")
_LETTER = re.compile("A|B|C|D|E")
_ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")

#: What the reference looks for in each set, whatever options a row has.
OPTION_WORDS: dict[str, tuple[str, ...]] = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": _ANSWERS,
    "ARC-Challenge": _ANSWERS,
    "ARC-Easy": _ANSWERS,
    "openbookqa": _ANSWERS,
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
}
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
    known = OPTION_WORDS.get(set_name) or tuple(options)
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
