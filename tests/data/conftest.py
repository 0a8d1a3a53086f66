"""Tokenizers that are unlike the tiny one."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_tokenizer

BOS, EOS, PAD = 1, 2, 0


@pytest.fixture(scope="session")
def closing_tokenizer():
    """The same tokenizer, but one that also puts ``<eos>`` after every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert tokenizer("1")["input_ids"][-1] == EOS
    return tokenizer


@pytest.fixture(scope="session")
def spacing_tokenizer():
    """Like SentencePiece's: a space before every text; ``a`` and ``b`` side by side are one token."""
    vocabulary = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, "▁": 3, "a": 4, "b": 5, "ab": 6, "c": 7}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
