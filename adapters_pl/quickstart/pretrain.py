"""Pretrain the quickstart base.

``python -m adapters_pl.quickstart.pretrain [--out DIR] [--seed N] [--tokens N]`` trains a tokenizer and a
tiny Llama on the text of ``corpus`` and writes both to DIR, with a model card.
"""

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from adapters_pl.data.sets.problems import MAX_FACTOR, MAX_TERM, generate
from adapters_pl.quickstart import BASE
from adapters_pl.quickstart.corpus import documents

VOCABULARY = 896
CONTEXT = 1024
BLOCK = 256
BATCH = 16
TOKENS = 8_000_000
MUON_LR = 0.02
ADAMW_LR = 3e-3
WARMUP_STEPS = 50
DECAY_SHARE = 0.4

# The prompt that instruction tuning usually wraps its rows in. Only the tokenizer reads it, and some of the
# rows, so as to spell both in few tokens.
PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n### Response:\n"
)


def tokenizer_texts(seed: int) -> Iterable[str]:
    """Pretraining documents, and the wording of the prompts to come."""
    yield from itertools.islice(documents(seed), 3000)
    for row in generate("train", 3000, seed):
        yield PROMPT
        yield row["instruction"]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits, which opens every text with ``<bos>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos>:1 $B:1",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def pack(tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int) -> torch.Tensor:
    """Documents one after the other, cut into blocks of equal length, ``tokens`` in all."""
    stream: list[int] = []
    texts = documents(seed)
    while len(stream) < tokens:
        for ids in tokenizer(list(itertools.islice(texts, 1000)), verbose=False)["input_ids"]:
            stream.extend(ids)
            stream.append(tokenizer.eos_token_id)
    blocks = tokens // BLOCK
    return torch.tensor(stream[: blocks * BLOCK], dtype=torch.int16).view(blocks, BLOCK)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The architecture, with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate: a short warmup, a plateau, then a linear decay to zero."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps), 1.0)


def train(model: LlamaForCausalLM, blocks: torch.Tensor) -> float:
    """One pass over ``blocks``; returns the mean loss of the last fiftieth of the steps."""
    body = [p for p in model.model.layers.parameters() if p.ndim == 2]
    in_body = {id(p) for p in body}
    rest = [p for p in model.parameters() if id(p) not in in_body]
    optimizers = [
        torch.optim.Muon(body, lr=MUON_LR, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    steps = len(blocks) // BATCH
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps)) for optimizer in optimizers
    ]
    losses: list[float] = []
    model.train()
    start = time.monotonic()
    for step in range(steps):
        batch = blocks[step * BATCH : (step + 1) * BATCH].long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {losses[-1]:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    tail = losses[-max(steps // 50, 1) :]
    return sum(tail) / len(tail)


def model_card(model: LlamaForCausalLM, seed: int, tokens: int, loss: float, seconds: float) -> str:
    """The README beside the weights."""
    config = model.config
    shape = f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}"
    shape += f", {config.num_attention_heads} heads, MLP {config.intermediate_size}, tied embeddings"
    steps = f"{tokens // (BLOCK * BATCH):,} steps of {BLOCK * BATCH:,} tokens"
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, arithmetic, adapters]
---

# Quickstart base

A tiny language model to try adapters on: it is pretrained in minutes, and tuned in two, on a CPU.

| | |
|---|---|
| Architecture | Llama, {shape} |
| Parameters | {model.num_parameters():,}, stored in bfloat16 |
| Tokenizer | byte-level BPE of {config.vocab_size} tokens, each digit a token of its own |
| Context | {config.max_position_embeddings} tokens, of which training used {BLOCK} |
| Data | {tokens:,} tokens, read once, from the generator `adapters_pl/quickstart/corpus.py` |
| Optimisers | Muon {MUON_LR} for the matrices of the layers, AdamW {ADAMW_LR} for the rest |
| Schedule | {steps}, linear decay over the last {DECAY_SHARE:.0%} |
| Seed | {seed} |
| Final loss | {loss:.4f} (mean over the last 2% of the steps, on text not read before) |
| Time | {seconds / 60:.1f} minutes on {torch.get_num_threads()} CPU cores ({platform.machine()}) |
| Software | PyTorch {torch.__version__}, transformers {transformers.__version__} |
| Licence | Apache-2.0 |

## Data

Synthetic English: equations in figures and in words, stories of a few sentences that end in a sum, puzzles
with their working in many layouts, and plain sentences without numbers. Additions and subtractions have
operands from 2 to {MAX_TERM}, multiplications from 2 to {MAX_FACTOR}. All multiplications occur. Of the
additions and subtractions, about a tenth of the pairs of operands, chosen by a hash, is left out, so that a
tuned model can be asked for sums it has never read. The inverse of such a fact (37 - 14 = 23 for 14 + 23)
may occur.

The word problems of `adapters_pl/data/sets/problems.py`, on which adapters are tuned, are worded otherwise
and are not in the text. Their words are, in the plain sentences, and the tokenizer has read some of them.

## Use and limits

For demonstrations and tests of parameter-efficient tuning. Untuned it does not follow instructions but writes
on in the manner of its data. It knows no numbers beyond those above, no facts and hardly any English.

Made by `python -m adapters_pl.quickstart.pretrain --seed {seed} --tokens {tokens}`.
"""


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str) -> None:
    """Write everything beside ``out``, then put it in the place of what is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        model.bfloat16().save_pretrained(new)
        tokenizer.save_pretrained(new)
        # The class by the name that every release of transformers knows.
        settings = new / "tokenizer_config.json"
        settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
        (new / "model.safetensors").chmod(0o644)
        (new / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rename(old)
        new.rename(out)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Pretrain the quickstart base.")
    parser.add_argument("--out", type=Path, default=BASE, help="directory to write, replaced if it exists")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="length of the pretraining text")
    args = parser.parse_args(argv)

    set_seed(args.seed)
    start = time.monotonic()
    tokenizer = train_tokenizer(tokenizer_texts(args.seed))
    blocks = pack(tokenizer, args.seed, args.tokens)
    model = build_model(tokenizer)
    loss = train(model, blocks)
    seconds = time.monotonic() - start
    save(args.out, model, tokenizer, model_card(model, args.seed, args.tokens, loss, seconds))
    print(f"loss {loss:.4f} after {seconds:.0f} s, written to {args.out}")


if __name__ == "__main__":
    main()
