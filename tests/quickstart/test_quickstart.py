"""The embedded base and the problems it is tuned on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adapters_pl.data.sets import problems
from adapters_pl.quickstart import BASE, corpus


def test_the_base_is_small_and_a_llama():
    config = AutoConfig.from_pretrained(BASE)
    assert (config.model_type, config.tie_word_embeddings) == ("llama", True)
    assert config.vocab_size < 1000
    weights = BASE / "model.safetensors"
    assert weights.stat().st_size <= 3_000_000
    with safe_open(weights, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (it is no dictionary)
    assert sum(tensor.numel() for tensor in tensors.values()) <= 1_500_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_tokenizer_cuts_digits_apart_and_puts_one_token_before_a_text():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer("He has 1234 of 5678.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    pieces = [tokenizer.decode([i]) for i in ids[1:]]
    assert [piece.strip() for piece in pieces if any(c.isdigit() for c in piece)] == list("12345678")
    assert tokenizer.decode(ids[1:]) == "He has 1234 of 5678."
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_the_base_knows_sums_it_was_pretrained_on():
    """The loss of a right equation is far below that of a wrong one."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)

    def loss(text):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    known = [(a, b) for a in range(20, 40, 3) for b in range(30, 60, 7) if problems.in_pretraining("add", a, b)]
    better = [loss(f"{a} + {b} = {a + b}.") < loss(f"{a} + {b} = {a + b + 10}.") for a, b in known]
    assert len(known) > 20
    assert sum(better) >= 0.8 * len(known)


def test_the_model_card_says_how_it_was_made():
    card = (BASE / "README.md").read_text()
    assert all(word in card for word in ("Seed", "Final loss", "Time", "Apache-2.0", "adapters_pl.quickstart.pretrain"))


@pytest.mark.parametrize("split", problems.SPLITS)
def test_problems_are_reproducible_and_right(split):
    rows = problems.generate(split, 200, seed=3)
    assert rows == problems.generate(split, 200, seed=3)
    assert rows != problems.generate(split, 200, seed=4)
    assert len({row["id"] for row in rows}) == len({row["instruction"] for row in rows}) == 200
    for row in rows:
        a, b = row["operands"]
        right = {"add": a + b, "sub": a - b, "mul": a * b}[row["operation"]]
        assert row["answer"] == str(right)
        assert row["output"].endswith(f"The answer is {right}.")
        assert str(a) in row["instruction"]
        assert str(b) in row["instruction"]


def pairs(rows):
    return {(row["operation"] == "mul", *sorted(row["operands"])) for row in rows}


def test_operands_of_test_problems_are_held_out_of_training():
    train = pairs(problems.generate("train", 3000, seed=0))
    for split in ("test", "unseen"):
        assert not train & pairs(problems.generate(split, 500, seed=1))


def test_unseen_pairs_occur_nowhere_in_pretraining():
    """Neither as an equation nor in words: the corpus is searched for every pair of numbers that stands close."""
    import random
    import re

    unseen = {tuple(sorted(row["operands"])) for row in problems.generate("unseen", 400, seed=5)}
    rng = random.Random(0)
    facts = set()
    text = "\n".join(corpus.document(rng) for _ in range(4000))
    for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+) =", text):
        facts.add((sign, *sorted((int(a), int(b)))))
    assert len(facts) > 1000
    assert not {fact[1:] for fact in facts} & unseen


def test_no_answer_is_common():
    """A model that always gives one answer scores next to nothing."""
    from collections import Counter

    answers = Counter(row["answer"] for row in problems.generate("test", 500, seed=1))
    assert answers.most_common(1)[0][1] / 500 < 0.08


def test_the_rows_are_plain_data():
    rows = problems.generate("train", 5)
    assert json.loads(json.dumps(rows)) == rows


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, test, unseen"):
        problems.generate("validation", 1)
