"""Text that no adapter is trained on, by which ``test`` says how much of what the base knew is left."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters_pl.data.tokens import IGNORE
from adapters_pl.inputs.errors import UserError

#: The name of the text that every machine has: what ``help()`` says of Python's language.
PYTHON = "python"
#: How many tokens are predicted, in rows of how many at most; and the characters of a file that are read for them.
TOKENS, ROW, CHARACTERS = 4096, 512, 2**20


class GeneralText(NamedTuple):
    """A text, cut to a fixed number of tokens.

    Attributes:
        name: what ``results.json`` calls it.
        sha256: of the whole text that it was cut from, as UTF-8.
        rows: token ids of each row, of which the first is given and every other one predicted.
    """

    name: str
    sha256: str
    rows: list[list[int]]

    @classmethod
    def read(cls, source: str, tokenizer: PreTrainedTokenizerBase, context: int | None) -> GeneralText:
        """The first :data:`TOKENS` tokens of ``source``.

        Args:
            source: a file of UTF-8 text, or :data:`PYTHON`.
            tokenizer: of the base. Rows begin with its first token, where it has one.
            context: the most tokens that the base reads.

        Raises:
            UserError: it is no such file, or has no two tokens.
        """
        name, text = text_of(source)
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: TOKENS + 1 - len(first)]
        size = min(ROW, context or ROW) - 1
        # Without a first token, a row begins with the last of the one before it.
        rows = [[*(first or ids[max(0, at - 1) : at]), *ids[at : at + size]] for at in range(0, len(ids), size)]
        rows = [row for row in rows if len(row) > 1]
        if not rows:
            raise UserError(f"data.general_text: {name} has no two tokens; name a longer text.")
        return cls(name, hashlib.sha256(text.encode()).hexdigest(), rows)

    def loss(self, losses: Callable[[dict[str, Tensor], Tensor], Tensor], device: torch.device) -> dict[str, Any]:
        """The mean loss of a predicted token in nats, and how many there were.

        Args:
            losses: of the labelled tokens of a batch: ``input_ids`` and ``attention_mask`` (1, T), labels (1, T).
            device: where it is given them.
        """
        total, count = 0.0, 0
        for row in self.rows:
            ids = torch.tensor([row], device=device)
            labels = ids.clone()
            labels[:, 0] = IGNORE
            found = losses({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
            total, count = total + float(found.double().sum()), count + found.numel()
        return {"loss": total / count, "tokens": count}


def text_of(source: str) -> tuple[str, str]:
    """The name and the text of ``source``; as in :meth:`GeneralText.read`.

    Raises:
        UserError: it is neither :data:`PYTHON` nor a file of UTF-8 text.
    """
    if source == PYTHON:
        topics = import_module("pydoc_data.topics").topics
        return f"help texts of Python {platform.python_version()}", "\n".join(topics[key] for key in sorted(topics))
    path = Path(os.path.expanduser(source))
    if not path.is_file():
        raise UserError(
            f"data.general_text: there is no file '{source}'; name a file of plain text, or {PYTHON} for the help "
            "texts that come with Python."
        )
    with path.open("rb") as file:
        content = file.read(4 * CHARACTERS)
    try:
        # A character may be cut at the end.
        text = content.decode() if len(content) < 4 * CHARACTERS else content.decode(errors="ignore")
    except UnicodeDecodeError as error:
        raise UserError(f"data.general_text: {source} is no text in UTF-8; convert it, or name another.") from error
    return path.name, text[:CHARACTERS]
