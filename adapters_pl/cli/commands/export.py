"""``adapters-pl export``: a trained adapter as a directory for other tools, or merged into its base."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from adapters_pl.cli.configuration import find_named, refuse_empty
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.models.base import add_tokens, load_base, load_config, load_tokenizer, meta_model
from adapters_pl.models.quantisation import Quantization, dequantise_model, quantisation_of, short_name
from adapters_pl.models.slots import slot_of
from adapters_pl.runs.at_once import directory_at_once
from adapters_pl.runs.run import DEFAULT_ROOT
from adapters_pl.training.adapter_files import base_of, find_adapter, import_adapters, read_adapter, save_adapter
from adapters_pl.training.checkpoint import read_checkpoint


def main(options: Namespace, debug: bool = False) -> int:
    """Run ``export`` and return its exit code."""
    transformers_logging.disable_progress_bar()
    if options.adapter_path and options.ckpt_path:
        raise UserError("--ckpt_path and --adapter_path both name an adapter: give one of them.")
    for key in ("adapter_path", "ckpt_path"):
        refuse_empty(key, getattr(options, key))
    source = options.adapter_path or find_named(options.ckpt_path or "last", Path(options.root or DEFAULT_ROOT))
    if options.trust_checkpoint:
        sys.path.append(os.getcwd())
        import_adapters(source)
    named, revision = base_of(source)
    base = options.base or named
    if not base:
        raise UserError(f"{source} does not say which base it belongs to: pass --base.")
    if options.base:
        revision = None
    if options.merge:
        out = export_merged(source, options.out, base, revision, options.dtype, options.quantization)
    else:
        out = export_adapter(source, options.out, base, revision)
    print(f"{source} -> {out}")
    if options.push:
        print(push(out, options.push))
    return 0


def export_adapter(source: str | Path, out: str | Path, base: str, revision: str | None = None) -> Path:
    """Write the adapter at ``source`` as a directory in PEFT's format, without loading the base's weights.

    A checkpoint with several adapters becomes a directory with one folder each.
    """
    config = load_config(base, revision)
    saved = read_adapter(source, config)
    model = meta_model(config)
    saved.put_into(model)

    def write(folder: Path) -> None:
        for adapter in saved.adapters:
            own = folder / adapter.name if len(saved.adapters) > 1 else folder
            save_adapter(model, adapter, own, base, saved.add_tokens)
            if saved.add_tokens:
                add_tokens(load_tokenizer(base, revision), saved.add_tokens).save_pretrained(own)

    return directory_at_once(out, write, "export")


def export_merged(
    source: str | Path,
    out: str | Path,
    base: str,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: Quantization | Literal["none"] | None = None,
) -> Path:
    """Write the base with the adapters at ``source`` folded into its weights, and its tokenizer.

    Merging is done in float32 and rounded once, to the dtype in which the base is stored. What was trained on a
    quantised base is folded into the weights that the quantised ones stand for, and a line says so: a plain model
    comes out that computes what the run computed.

    Args:
        source: an adapter directory, or a checkpoint of ours.
        out: the directory to write.
        base: the base's name.
        revision: branch, tag or commit on the hub.
        dtype: of the model that is written.
        quantization: what the base was quantised to in training; what a checkpoint says if not given, and ``none``
            for a directory, which does not say.

    Raises:
        UserError: a method has no weight change that equals it, or a merged weight is not finite.
    """
    config = load_config(base, revision)
    saved = read_adapter(source, config)
    trained_on = (quantization or _quantisation_in(source)) if quantization != "none" else None
    model: PreTrainedModel = load_base(base, revision, "float32", quantization=trained_on)
    stored: Any = config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
    if dequantise_model(model, torch.float32):
        kind = trained_on or quantisation_of(config)
        print(f"The base, quantised to {kind}, is written dequantised, in {short_name(stored)}.")
    saved.put_into(model)
    untie_adapted(model)
    for adapter in saved.adapters:
        try:
            adapter.merge(model)
        except UserError as error:
            raise UserError(f"{error} Leave out --merge to export the adapter's directory.") from error
        adapter.detach_from(model)
    model.to(stored)
    tokenizer = add_tokens(load_tokenizer(base, revision), saved.add_tokens)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return directory_at_once(out, write, "export")


def untie_adapted(model: PreTrainedModel) -> None:
    """Give the head a weight of its own where it shares the embedding's and one of the two is adapted.

    What was trained in one of them has then a place, and the model computes what it did. The model's configuration
    says that they are no longer tied, and a line does.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head is embedding or not (slot_of(embedding) or slot_of(head)):
        return
    if getattr(head, "weight", None) is not embedding.weight:
        return
    head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    print("The head shared the embedding's weight and one was trained: it is written with a weight of its own.")


def _quantisation_in(source: str | Path) -> Quantization | None:
    """What a checkpoint says that its base was quantised to."""
    found = find_adapter(source)
    return None if found.is_dir() else read_checkpoint(found)[0]["base"].get("quantization")


def push(folder: Path, repository: str) -> str:
    """Upload ``folder`` to the hub and return its address.

    Raises:
        UserError: the hub refused, or there is no token.
    """
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload from adapters-pl"))
    except Exception as error:  # its client and its client's client have errors of their own
        raise UserError(f"The hub did not take {repository}; {folder} is written. ({first_line(error)})") from error
