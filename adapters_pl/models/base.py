"""The frozen base: finding it, loading it, knowing it again, and its tokenizer."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from adapters_pl.compat.gguf import without_place
from adapters_pl.inputs.errors import UserError, first_line, out_of_memory
from adapters_pl.inputs.hub import at_hand, refuse_unreachable
from adapters_pl.inputs.untrusted import read_json, reason_of
from adapters_pl.models import gguf_files
from adapters_pl.models.named import EMBEDDED, NAMED, find
from adapters_pl.models.quantisation import (
    Quantization,
    compute_dtype,
    loading_arguments,
    prepare,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

#: The largest sizes that a base's configuration may state.
_MOST = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 10_000,
    "head_dim": 100_000,
    "hidden_size": 1_000_000,
    "vocab_size": 100_000_000,
    "intermediate_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000,
}


def locate(base: str) -> str:
    """Where ``base`` is: an embedded base's folder, a directory, a GGUF file, or a hub id.

    Raises:
        UserError: it looks like a path and no such directory exists, what is there holds no model, or a named base was
            not fetched.
    """
    if base in EMBEDDED:
        return str(EMBEDDED[base])
    if base in NAMED:
        return str(find(base))
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = next(path.glob("*.gguf"), None)
            named = f" Name the GGUF file that lies in it: {found}" if found else ""
            raise UserError(f"base '{base}': the directory has no config.json, so it holds no model.{named}")
        return str(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base '{base}': no such file; check the path.")
        return str(path)
    if path.is_file() and path.suffix == ".json":
        raise UserError(
            f"base '{base}': a configuration alone has no weights and no tokenizer; it can only be planned."
        )
    looks_like_path = base.startswith((".", "/", "~")) or base.count("/") > 1 or path.exists()
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        raise UserError(
            f"base '{base}': no such directory. Give a model directory, a GGUF file, or a hub id like org/name."
        )
    return base


def _gguf(base: str) -> Path | None:
    """The GGUF file that ``base`` names, if it names one."""
    return Path(where) if (where := locate(base)).endswith(".gguf") else None


def stored_as(base: str) -> str | None:
    """How the weights of a base in a GGUF file are quantised, ``Q4_1``; nothing for other bases."""
    return gguf_files.read_header(file).quantisation if (file := _gguf(base)) else None


def _unreachable(base: str, what: str, error: BaseException) -> UserError:
    reason = reason_of(error)
    return UserError(
        f"base '{base}': cannot read its {what}: it is no directory here, and the hub did not give it. ({reason})"
        if not Path(locate(base)).exists()
        else f"base '{base}': cannot read its {what}: {reason}"
    )


@contextmanager
def _reading(base: str, revision: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``from_pretrained`` is given for ``base``. A hub that has no address here is not waited for.

    Raises:
        UserError: the hub cannot be reached, and the base was never downloaded; or a GGUF file is not as it should be.
    """
    where = locate(base)
    if file := _gguf(base):
        gguf_files.read_header(file)
        with gguf_files.alone(file) as given:
            yield given
    elif Path(where).is_dir():
        yield where, {}
    else:
        refuse_unreachable(base, "config.json", revision)
        with at_hand():
            yield where, {"revision": revision}


def load_config(base: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model configuration of ``base``; cheap, and the first thing to fail when the base is wrong.

    A ``config.json`` alone will do here: all shapes are in it.
    """
    file = Path(os.path.expanduser(base))
    alone = base not in EMBEDDED and file.is_file() and file.suffix == ".json"
    opened: Any = nullcontext((str(file), {})) if alone else _reading(base, revision)
    with opened as (where, how):
        try:
            if "gguf_file" not in how and Path(where).exists():
                read_json(file if alone else Path(where) / "config.json")
            config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **how)
        except UserError as error:
            raise UserError(f"base '{base}': {error}") from error
        except Exception as error:  # what the library raises differs from key to key of a wrong file
            if alone:
                raise UserError(f"base '{base}': this file is no model configuration: {first_line(error)}") from error
            raise _unreachable(base, "configuration", error) from error
    config.name_or_path = base if "gguf_file" in how else config.name_or_path
    # These may name a repository of the hub, whose code would be fetched and run.
    config._attn_implementation = None
    config._experts_implementation = None
    _refuse_impossible_sizes(base, config, "header" if "gguf_file" in how else "config.json")
    return config


def _refuse_impossible_sizes(base: str, config: PretrainedConfig, settings: str) -> None:
    """Raise ``UserError`` for sizes that no model has, before something is built that large."""
    text = config.get_text_config()
    for key, most in _MOST.items():
        size = getattr(text, key, None)
        if size is not None and not (isinstance(size, int) and 1 <= size <= most):
            raise UserError(
                f"base '{base}': its {settings} says {key} {size!r:.80}, which has to be a number from 1 to "
                f"{most:,}. Mend it, or copy the base again."
            )


def load_tokenizer(base: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, which is known to have an end token and a padding token.

    A tokenizer without a padding token (LLaMA's) pads with its end token: padding is told by the mask alone,
    so no end token that belongs to the text is lost.

    Raises:
        UserError: there is no tokenizer, or it has no end token, without which no answer could ever end.
    """
    try:
        with _reading(base, revision) as (where, how):
            tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, **how)
            if "gguf_file" in how:
                tokenizer.name_or_path = base
        tokenizer("Is 1 + 1 = 2?\n\u00e9\u4e2d")  # settings that are not as they should be show when they are used
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    except UserError:
        raise
    except BaseException as error:  # the tokenizers raise whatever they please, and their panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreachable(base, "tokenizer", error) from error
    if not isinstance(end, int):
        raise UserError(
            f"base '{base}': its tokenizer has no end token, so no answer could end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    base: str,
    revision: str | None = None,
    dtype: Dtype = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    random_init: bool = False,
    seed: int = 0,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load ``base`` frozen and in evaluation mode.

    Args:
        base: the name of a base, a model directory, a GGUF file, whose weights are dequantised, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: ``auto`` is the dtype the weights are stored in.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2``; transformers' choice if not given.
        trust_remote_code: run code that comes with the model. Off unless asked.
        random_init: only the architecture, with random weights: a control, not a base.
        seed: the seed of the random weights.
        quantization: hold the linear layers in ``8bit`` or ``4bit``, see :mod:`adapters_pl.models.quantisation`. A
            base that is stored in one of them is loaded so unasked.
        device: where a quantised base is made, the CPU if not given; a plain one is loaded on the CPU.

    Raises:
        UserError: the base cannot be read, or it cannot be quantised so.
    """
    config = load_config(base, revision, trust_remote_code)
    if random_init and quantization:
        raise UserError("random_init has no weights that could be quantised; leave out --model.quantization.")
    file = _gguf(base)
    if file and quantization:
        raise UserError(
            f"base '{base}': its weights are stored in {stored_as(base)}, and quantising them once more would round "
            "them twice: leave out --model.quantization, or name the model that the file was made from."
        )
    torch_dtype: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    device = device or torch.device("cpu")
    quantised = {} if random_init else loading_arguments(base, config, quantization, device)
    extra: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        if random_init:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=config.dtype or torch.float32 if dtype == "auto" else torch_dtype,
                    trust_remote_code=trust_remote_code,
                    **extra,
                )
        else:
            with _reading(base, revision) as (where, how), _without_report():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    where,
                    config=copy.deepcopy(config),
                    dtype=torch_dtype,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    **how,
                    **quantised,
                    **extra,
                )
            model, found = loaded
            if file:
                found["unexpected_keys"] = without_place(gguf_files.read_header(file).tensors, model)
                gguf_files.plain(model)
                model.config.name_or_path = base
            _refuse_partly_loaded(base, model, found)
    except UserError:
        raise
    except ImportError as error:
        if attn_implementation:
            raise _no_such_attention(attn_implementation, error) from error
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _unreachable(base, "weights", error) from error
    if quantised:
        prepare(model, compute_dtype(dtype, device))
    model.requires_grad_(False)
    return model.eval()


def _no_such_attention(name: str, error: Exception) -> UserError:
    return UserError(f"--model.attn_implementation {name}: {first_line(error)} Try sdpa or eager.")


@contextmanager
def _without_report() -> Iterator[None]:
    """Within it transformers does not report which weights it found: what matters of that is an error of ours."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _refuse_partly_loaded(base: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise ``UserError`` unless the files held every weight of ``model`` and no other, all of them finite."""
    # Older files hold buffers that models make themselves by now: masks, and rotary frequencies.
    made = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)$")
    settings = "header" if _gguf(base) else "config.json"
    unexpected = [key for key in found["unexpected_keys"] if not made.search(key)]
    for what, keys in (
        ("lack", found["missing_keys"]),
        (f"hold, of another shape than its {settings} says,", [key for key, *_ in found["mismatched_keys"]]),
        ("hold what the model has no place for:", unexpected),
    ):
        if keys:
            first, more = min(keys), f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(
                f"base '{base}': its weights {what} {first}{more}. Copy or download the base again, or mend its "
                f"{settings}; random weights are had with --model.random_init true."
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(parameter.isfinite().all()):
            raise UserError(f"base '{base}': {name} holds values that are not finite. Download it again.")


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> PreTrainedTokenizerBase:
    """Give ``tokenizer`` new tokens of their own; those that it has already stay what they are."""
    tokenizer.add_tokens(tokens)
    return tokenizer


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Make the embedding table (and an untied head) at least ``rows`` long; a new row is the mean of the old ones."""
    table: Any = model.get_input_embeddings()
    if rows <= table.weight.shape[0]:
        return
    before = table.weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
        weight: Any = module.weight
        if not weight.is_meta:
            weight.data[before:] = weight.data[:before].float().mean(dim=0).to(weight.dtype)
    model.requires_grad_(False)


def meta_model(
    config: PretrainedConfig, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The model's structure on the meta device, frozen: all shapes, no weights, and no memory.

    Raises:
        UserError: no model of these settings can be built, or not with this attention.
    """
    extra: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **extra)
    except Exception as error:  # what the library raises differs from setting to setting
        if attn_implementation and isinstance(error, ImportError | ValueError):
            raise _no_such_attention(attn_implementation, error) from error
        raise UserError(
            f"base '{config.name_or_path}': its config.json describes no model that can be built ({reason_of(error)}); "
            "mend it, or copy the directory again."
        ) from error
    model.requires_grad_(False)
    return model.eval()


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence the model was made for, in tokens; ``None`` if its configuration names none."""
    text = config.get_text_config()  # a multimodal model's decoder has one of its own
    for key in ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"):
        value = getattr(text, key, None)
        if isinstance(value, int):
            return value
    return None
