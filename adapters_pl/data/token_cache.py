"""Many rows in tokens: encoded in batches and cached by ``datasets``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from pyarrow import ArrowInvalid
from transformers import PreTrainedTokenizerBase

from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.data.tokens import encode_rows
from adapters_pl.inputs.cache import CACHE_VARIABLE, cache_folder

#: Fewer rows than this are encoded sooner than they are looked up.
CACHE_FROM = 5000
_BATCH = 1000
#: Part of the fingerprint; another number for every change of the encoding.
_ENCODING = 1
_FEATURES = Features({"prompt": List(Value("int32")), "response": List(Value("int32"))})


def encoded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]) -> Dataset:
    """The rows in tokens, columns ``prompt`` and ``response``; large ones come from the cache the second time.

    The cache lies in ``tokens/`` of the cache folder; nothing in it is ever needed, so it may be deleted.
    """
    texts = {"prompt": list(prompts), "response": list(responses)}

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = encode_rows(tokenizer, batch["prompt"], batch["response"])
        return dict(zip(("prompt", "response"), ids, strict=True))

    key = fingerprint(tokenizer, prompts, responses) if len(prompts) >= CACHE_FROM else None
    if key is None:
        return Dataset.from_dict(encode(texts), features=_FEATURES)
    rows = Dataset.from_dict(texts)
    file = cache_folder() / "tokens" / f"{key}.arrow"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _from_cache(rows, encode, file, key)
    except OSError as error:
        rank_zero_info(
            f"tokenised rows are not cached: {file.parent} cannot be written ({error.strerror or error}); name another "
            f"folder with {CACHE_VARIABLE}"
        )
        return Dataset.from_dict(encode(texts), features=_FEATURES)


def _from_cache(rows: Dataset, encode: Callable[[Any], Any], file: Path, key: str) -> Dataset:
    def tokenised(from_cache: bool) -> Dataset:
        return rows.map(
            encode,
            batched=True,
            batch_size=_BATCH,
            features=_FEATURES,
            desc="tokenising",
            load_from_cache_file=from_cache,
            cache_file_name=str(file),
            new_fingerprint=key,
        )

    try:
        found = tokenised(from_cache=True)
        if len(found) == len(rows):
            return found
    except ArrowInvalid:
        pass
    return tokenised(from_cache=False)  # what lay there was cut or damaged


def fingerprint(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]) -> str | None:
    """A hash of everything that shapes the ids: the texts themselves and all of the tokenizer.

    The texts stand for the file, the rows chosen from it, the template and its settings. AtLeast8, overflow and
    masking are applied to the ids later and need no place in it. ``None`` for a tokenizer that cannot be read.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    # What the last call left behind.
    state.pop("padding", None)
    state.pop("truncation", None)
    special = [str(getattr(tokenizer, name)) for name in ("bos_token", "eos_token")]
    about = [_ENCODING, type(tokenizer).__name__, special, tokenizer.eos_token_id, state]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for texts in (prompts, responses):
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(raw))
            digest.update(raw)
    return digest.hexdigest()
