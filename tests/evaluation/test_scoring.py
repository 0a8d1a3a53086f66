"""Log-likelihoods of options: as lm-evaluation-harness computes them, and the same in every batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from adapters_pl import CausalLMModule, PrefixTuning
from adapters_pl.data.questions import Choices, Pair, encode_choices, encode_pair
from adapters_pl.evaluation.held import Reading, arguments, layers_to_hold
from adapters_pl.evaluation.scoring import Scored, divided, log_likelihoods, log_likelihoods_held, score
from tests.conftest import tiny_tokenizer

OPTIONS = ("true", "false", "answer1", "it is half of the way")


@pytest.fixture(scope="module")
def module(make_base):
    module = CausalLMModule(str(make_base("llama")))
    module.setup("test")
    return module.eval()


def rows(tokenizer, count=9):
    prompts = ["how many apples does she have? " * (1 + i % 4) + str(i) + "\n" for i in range(count)]
    return [encode_choices(tokenizer, prompt, "The answer is", OPTIONS, OPTIONS) for prompt in prompts]


# ---- where context and continuation are divided


def test_white_space_at_the_end_of_the_context_belongs_to_the_continuation(tokenizer):
    plain = encode_pair(tokenizer, "the answer is", " \n true")
    assert encode_pair(tokenizer, "the answer is \n ", "true") == plain
    assert tokenizer.decode(plain.context) == "<bos>the answer is"
    assert tokenizer.decode(plain.continuation) == " \n true"


def test_both_are_encoded_together(tokenizer):
    """Where the tokenizer merges across the border the context keeps its number of ids, as in the harness."""
    text, context = "the answer is", "the answ"
    pair = encode_pair(tokenizer, context, text[len(context) :])
    assert pair.continuation == tokenizer(text)["input_ids"][len(pair.context) :]
    assert len(pair.context) == len(tokenizer(context)["input_ids"])


def test_an_empty_context_becomes_the_beginning(tokenizer):
    pair = encode_pair(tokenizer, "", "true")
    assert pair == Pair([tokenizer.bos_token_id], tokenizer("true", add_special_tokens=False)["input_ids"])
    assert encode_pair(tokenizer, " \n", "true").continuation[-1] == pair.continuation[-1]


def test_no_end_token_stands_between(tokenizer):
    ending = tiny_tokenizer()
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert encode_pair(ending, "the answer is", " true") == encode_pair(tokenizer, "the answer is", " true")


def test_options_follow_the_lead_with_a_space_or_the_prompts_own_line_break(tokenizer):
    led = encode_choices(tokenizer, "Why?\n", "The answer is", ("A", "B"), ("(A)", "(B)"))
    assert [tokenizer.decode(pair.continuation) for pair in led.pairs] == [" (A)", " (B)"]
    assert led.lengths == (3, 3)
    bare = encode_choices(tokenizer, "Why?\n", "", ("yes", "no"), ("yes", "no"))
    assert [tokenizer.decode(pair.continuation) for pair in bare.pairs] == ["\nyes", "\nno"]
    assert tokenizer.decode(encode_choices(tokenizer, "Why?", "", ("a",), ("a",)).pairs[0].continuation) == " a"


# ---- the numbers


def plain_judge(module):
    return partial(log_likelihoods, module, pad_id=0, device="cpu")


def held_judge(module, size=20):
    def call(given):
        hidden = module.model.get_decoder()(**arguments(type(module.model.get_decoder()).forward, given))
        return module.logits(hidden.last_hidden_state[:, -given["logits_to_keep"] :])

    reading = Reading(call, layers_to_hold(module.model, 200), 0, torch.device("cpu"))
    return partial(log_likelihoods_held, reading, size=size)


JUDGES = [plain_judge, held_judge]


@pytest.mark.parametrize("judge", JUDGES)
def test_the_sum_is_that_of_a_plain_forward_over_each_row_alone(module, tokenizer, judge):
    for found in score(rows(tokenizer), judge(module)):
        for pair, total in zip(found.choices.pairs, found.sums, strict=True):
            with torch.no_grad():
                logits = module.model(torch.tensor([pair.context + pair.continuation])).logits[0]
            logs = torch.log_softmax(logits[len(pair.context) - 1 : -1].double(), -1)
            expected = logs.gather(1, torch.tensor(pair.continuation)[:, None]).sum().item()
            assert total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("name", ["llama", "bloom", "opt", "gptj"])
def test_scores_do_not_depend_on_the_batch(make_base, name, tokenizer, judge):
    module = CausalLMModule(str(make_base(name)))
    module.add_adapter(PrefixTuning(3))
    module.setup("test")
    module.eval()
    wanted = rows(tokenizer)
    alone = [score([row], judge(module))[0].sums for row in wanted]
    batched = [found.sums for found in score(wanted, judge(module))]
    assert torch.tensor(batched).allclose(torch.tensor(alone), atol=1e-4)
    assert torch.tensor(alone).std(0).min() > 0.01


def test_the_best_by_sum_and_by_character():
    choices = Choices(("a", "bbbb", "c"), (Pair([1], [2]),) * 3, (1, 4, 1))
    scored = Scored(choices, (-2.0, -4.0, -2.0))
    assert (scored.best(), scored.best_normalised()) == ("a", "bbbb")


@pytest.mark.parametrize("size", [1, 2, 20])
def test_held_continuations_do_not_depend_on_how_many_are_read_at_the_same_time(module, tokenizer, size):
    wanted = rows(tokenizer)
    expected = [found.sums for found in score(wanted, plain_judge(module))]
    found = [found.sums for found in score(wanted, held_judge(module, size))]
    assert torch.tensor(found).allclose(torch.tensor(expected), atol=1e-4)


def test_every_row_has_the_sums_of_its_own_options():
    asked = [Choices(tuple("abc"[:n]), tuple(Pair([n], [n, k]) for k in range(n)), (1,) * n) for n in (2, 3, 1)]
    found = score(asked, lambda pairs: [100.0 * pair.context[0] + pair.continuation[1] for pair in pairs])
    assert [each.choices for each in found] == asked
    assert [each.sums for each in found] == [(200.0, 201.0), (300.0, 301.0, 302.0), (100.0,)]


@pytest.mark.parametrize("judge", JUDGES)
def test_one_token_continuations_of_the_longest_row_are_scored(module, judge):
    [total] = judge(module)([Pair([1, 5, 6], [7])])
    with torch.no_grad():
        logs = torch.log_softmax(module.model(torch.tensor([[1, 5, 6]])).logits[0, -1], -1)
    assert total == pytest.approx(logs[7].item(), abs=1e-5)


class Counting:
    """A scorer that keeps what it is given to read."""

    def __init__(self, module):
        self.module, self.read = module, []
        self.logits = module.logits

    def hidden_states(self, batch):
        self.read += [
            ids[mask.bool()].tolist()
            for ids, mask in zip(*map(batch.get, ("input_ids", "attention_mask")), strict=True)
        ]
        return self.module.hidden_states(batch)


def test_options_that_differ_in_their_last_token_are_read_once(module):
    context = [1, 5, 6, 7]
    choices = [
        Choices(tuple("abcd"), tuple(Pair([*context, row], [8, last]) for last in (9, 10, 11, 12)), (1,) * 4)
        for row in (20, 21, 22)
    ]
    longer = Choices(("a", "b"), (Pair(context, [8, 9]), Pair(context, [8, 13, 9])), (1, 1))
    counting = Counting(module)
    found = score([*choices, longer], plain_judge(counting))
    assert counting.read == [[*context, 20, 8], [*context, 21, 8], [*context, 22, 8], [*context, 8], [*context, 8, 13]]
    for scored in found:
        for pair, total in zip(scored.choices.pairs, scored.sums, strict=True):
            assert total == pytest.approx(log_likelihoods(module, [pair], 0, "cpu")[0], abs=1e-4)


def test_texts_are_divided_by_what_is_read_of_them():
    """Pairs that differ in their last token alone are one text, wherever they stand."""
    pairs = [Pair([1], [8, 2]), Pair([1], [9, 2]), Pair([1], [8, 3]), Pair([2], [4]), Pair([2], [5]), Pair([1, 8], [4])]
    assert divided(pairs, 1) == [[0, 2, 5], [1], [3, 4]]
    assert divided(pairs, 2) == [[0, 2, 5, 1], [3, 4]]
    assert divided([], 2) == []
