"""What the options of a question stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BRACKETED = re.compile(r"\(([A-E])\)\s*(.*?)\s*(?=\([A-E]\)|$)", re.DOTALL)


def option_texts(question: str, options: Sequence[str]) -> dict[str, str]:
    """What each option stands for, as the published questions list them; empty where they list nothing.

    ``(A) 5 (B) 6`` for letters, ``Answer1: wet palms Answer2: dry palms`` for option words.
    """
    if all(len(option) == 1 for option in options):
        found = dict(_BRACKETED.findall(question.partition("Answer Choices:")[2]))
    else:
        named = "|".join(re.escape(option) for option in options)
        listed = re.compile(rf"\b({named}):\s*(.*?)\s*(?=\b(?:{named}):|Answer format:|$)", re.IGNORECASE | re.DOTALL)
        found = {option.lower(): text for option, text in listed.findall(question)} if options else {}
    return {option: found[option] for option in options if option in found}
