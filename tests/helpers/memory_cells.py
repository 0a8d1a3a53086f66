"""Peak memory of real training runs beside the estimate, for methods, batch sizes and activation checkpointing.

    python tests/helpers/memory_cells.py                  the table, measured on the CPU (some minutes)
    python tests/helpers/memory_cells.py --device cuda    the same on a GPU

Every cell is a process of its own: it loads a LLaMA of 271 million parameters in float32, trains two steps through
Lightning's Trainer, and reports how far its memory rose above what it was before the base was loaded. On the CPU that
is the process's resident memory, with an allocator that gives large blocks back at once; on a GPU it is what torch's
allocator has given out. Nothing in the estimate was fitted to these runs, or to any.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import adapters_pl
from adapters_pl.models.base import meta_model
from adapters_pl.training.planning.memory import MemoryModel, Setup

METHODS = ("LoRA", "SeriesAdapter", "PrefixTuning")
BATCHES = (1, 4)
TOKENS = 256
GIB = 2**30
#: glibc keeps freed blocks below the threshold for itself; from 64 KiB on it is to give them back.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    """Measure every cell in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        folder, method, batch, checkpointing = arguments.cell
        print(json.dumps(cell(folder, method, int(batch), checkpointing == "on", arguments.device)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_base(folder)
        for method, batch, checkpointing in product(METHODS, BATCHES, ("off", "on")):
            command = [sys.executable, __file__, "--device", arguments.device, "--cell"]
            command += [folder, method, str(batch), checkpointing]
            done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            rows.append((method, batch, checkpointing, json.loads(done.stdout.splitlines()[-1])))
            print(f"{method} {batch} {checkpointing}: {rows[-1][-1]}", file=sys.stderr, flush=True)
    print("| method | batch | checkpointing | measured | estimate | error | error without the base |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for method, batch, checkpointing, found in rows:
        measured, estimate, base = found["measured"], found["estimate"], found["base"]
        print(
            f"| {method} | {batch} | {checkpointing} | {measured / GIB:.2f} GiB | {estimate / GIB:.2f} GiB "
            f"| {estimate / measured - 1:+.1%} | {(estimate - base) / (measured - base) - 1:+.1%} |"
        )
    worst = max((abs(found["estimate"] / found["measured"] - 1) for *_, found in rows), default=0)
    print(f"\nworst: {worst:.1%}")
    sys.exit(worst > 0.15)


def save_base(folder: str) -> None:
    """A LLaMA with random weights, and a tokenizer that is never asked."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        max_position_embeddings=1024,
    )
    # In another dtype than they are trained in: weights in their own dtype are mapped from the file, and a map counts
    # as memory only where it was read.
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def cell(folder: str, method: str, batch: int, checkpointing: bool, device: str) -> dict[str, int]:
    """Bytes that two steps of training really took, what was estimated, and the base's part of that."""

    def train(base: str, tokens: int) -> None:
        ids = torch.randint(3, 300, (2, batch, tokens), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[:, 0, -1] = 0  # as where a shorter row is padded
        batches: list[Any] = [
            {"input_ids": i, "attention_mask": m, "labels": i, "loss_tokens": i.numel()}
            for i, m in zip(ids, mask, strict=True)
        ]
        trainer = Trainer(
            accelerator=device,
            devices=1,
            max_steps=2,
            gradient_clip_val=1.0,
            callbacks=[getattr(adapters_pl, method)(), FromHere()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = adapters_pl.CausalLMModule(base, dtype="float32", activation_checkpointing=checkpointing)
        trainer.fit(module, DataLoader(batches, batch_size=None))

    train("quickstart", 32)  # loads the libraries' code, which is not the run's
    gc.collect()
    before = allocated(device)
    train(folder, TOKENS)
    measured = highest(device) - before

    module, adapter = adapters_pl.CausalLMModule(folder), getattr(adapters_pl, method)()
    skeleton = meta_model(module.config)
    adapter.attach_to(skeleton, seed=None)
    setup = Setup(batch, tokens=TOKENS, activation_checkpointing=checkpointing, accelerator=device)
    estimate = MemoryModel(module, skeleton, [adapter]).estimate(setup)
    assert estimate.problem is None, estimate.problem
    return {"measured": measured, "estimate": estimate.total, "base": estimate.base}


class FromHere(Callback):
    """Forgets the highest moment so far when training begins: loading a file takes memory of its own."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def allocated(device: str) -> int:
    """Bytes that are in use now."""
    return torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")


def highest(device: str) -> int:
    """The most bytes that were in use since training began."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


if __name__ == "__main__":
    main()
