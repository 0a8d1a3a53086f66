"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH_NAMES
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

#: Quantisations by name, with the number that stands for them in a header.
KINDS = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    kind: str = "Q4_1",
    template: str | None = None,
    settings: dict[str, Any] | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write ``model``; ``settings`` are further texts of its header, and ``more`` further tensors."""
    config = model.config
    architecture = config.model_type.removesuffix("_text")
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    how, file_type = KINDS[kind]
    writer.add_file_type(file_type)
    for key, name in GGUF_CONFIG_MAPPING[architecture].items():
        value = getattr(config, name, None) if name else None
        if name == "rope_theta":
            value = float((config.rope_parameters or {}).get("rope_theta", 10_000.0))
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
    for key, text in (settings or {}).items():
        writer.add_string(key, text)
    _add_tokenizer(writer, tokenizer, config.vocab_size, template)
    names = get_tensor_name_map(
        next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture), config.num_hidden_layers
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        values = _as_stored(architecture, found, value.float().numpy(), config)
        plain = values.ndim == 1 or values.shape[-1] % 32 != 0
        kept = GGMLQuantizationType.F32 if plain else how
        writer.add_tensor(found, quants.quantize(values, kept), raw_dtype=kept)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int, template: str | None) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    unused = [f"[PAD{number}]" for number in range(len(vocabulary), size)]
    writer.add_token_list([*vocabulary, *unused])
    writer.add_token_types([3 if token in special else 1 for token in vocabulary] + [5] * len(unused))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    if template:
        writer.add_chat_template(template)


def _as_stored(architecture: str, name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """``values`` in the order, and with the offset, in which llama.cpp keeps them."""
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return np.ascontiguousarray(values.T)
    return values
