"""Options in tokens, for multiple choice without generation.

Context and continuation are divided as lm-evaluation-harness does it (``TemplateLM._encode_pair``), so the numbers
are comparable: white space at the end of the context belongs to the continuation, both are encoded together, and the
continuation's ids are what comes after as many ids as the context alone has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """A context and one continuation of it, in tokens.

    Attributes:
        context: ids before the continuation; at least one.
        continuation: ids that are scored; at least one.
    """

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class Choices:
    """One row's options.

    Attributes:
        options: the answers.
        pairs: one an option, in their order.
        lengths: of each option's text in characters; what its score is divided by when it is normalised.
    """

    options: tuple[str, ...]
    pairs: tuple[Pair, ...]
    lengths: tuple[int, ...]


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """``context`` and ``continuation`` in tokens; an empty context becomes the beginning (or else the end) token."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Pair([first], _encode(tokenizer, continuation, special=False))
    before = _encode(tokenizer, kept)
    return Pair(before, _encode(tokenizer, kept + continuation)[len(before) :])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """Ids without an end token that a tokenizer may put after a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[:-1] if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, prompt: str, lead: str, options: Sequence[str], shown: Sequence[str]
) -> Choices:
    """The options of one row after ``prompt`` and ``lead``, as ``shown``, a space between."""
    # Without a lead the prompt's own last line break divides; it moves to the continuation by the rule above.
    between = "" if not lead and prompt != prompt.rstrip() else " "
    pairs = [encode_pair(tokenizer, prompt + lead, between + text) for text in shown]
    return Choices(tuple(options), tuple(pairs), tuple(len(text) for text in shown))
