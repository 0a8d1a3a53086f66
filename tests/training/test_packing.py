"""Packed rows give the loss and the gradients of the same rows apart, or are refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from adapters_pl import CausalLMModule, InstructionJSON, LoRA, PrefixTuning, SeriesAdapter, UserError
from adapters_pl.data.tokens import Collate, TokenRow, TrainingRows, _balanced
from adapters_pl.training.checks import check_packing
from tests.conftest import tiny_model

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
LENGTHS = [(5, 3), (20, 9), (7, 1), (12, 14), (3, 2)]


def items(lengths):
    torch.manual_seed(0)
    draw = lambda n: torch.randint(3, 300, (n,)).tolist()  # noqa: E731
    return [TrainingRows([TokenRow(i, draw(p), draw(r))])[0] for i, (p, r) in enumerate(lengths)]


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(8, 90),
)
def test_every_token_of_every_row_is_there_once_and_in_order(lengths, size):
    rows = items(lengths)
    batch = Collate(0, pack_to=size, least_saving=-math.inf)(rows)
    found = []
    for ids, labels, mask, positions, segments in zip(
        *(batch[key].tolist() for key in ("input_ids", "labels", "attention_mask", "position_ids", "segment_ids")),
        strict=True,
    ):
        assert segments == sorted(segments)
        for segment in range(max(segments) + 1):
            at = [i for i, number in enumerate(segments) if number == segment]
            assert [positions[i] for i in at] == list(range(len(at)))
            if mask[at[0]]:
                found.append(([ids[i] for i in at], [labels[i] for i in at]))
            else:
                assert not any(mask[i] for i in at)
                assert {labels[i] for i in at} == {-100}
    expected = [([*item["row"].prompt, *item["row"].response], item["labels"]) for item in rows]
    assert sorted(found) == sorted(expected)
    longest = max(p + r for p, r in lengths)
    assert batch["input_ids"].shape[1] <= max(size, longest)
    assert len(batch["input_ids"]) <= len(rows)


@PROPERTY
@given(st.lists(st.integers(2, 60), min_size=2, max_size=12), st.integers(8, 200))
def test_sequences_are_as_few_as_the_size_asks_for_and_about_as_long(lengths, size):
    sequences = _balanced(lengths, size)
    filled = [sum(lengths[i] for i in sequence) for sequence in sequences]
    assert sorted(i for sequence in sequences for i in sequence) == list(range(len(lengths)))
    assert max(filled) <= max(size, *lengths)
    assert all(filled)
    # No sequence is further below another than the shortest row in the longer one: else it would have got that row.
    longest = filled.index(max(filled))
    assert max(filled) - min(filled) <= min(lengths[i] for i in sequences[longest])
    # On average they are more than half full: else two of them would be one.
    assert len(sequences) == 1 or sum(lengths) > (len(sequences) - 1) * max(size, *lengths) * 0.5


@PROPERTY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(8, 90), st.booleans())
def test_a_batch_is_packed_where_that_saves_tokens_and_never_has_more_of_them(lengths, size, one_sequence):
    rows = items([(length, 1) for length in lengths])
    plain, batch, forced = (
        Collate(0, pack_to=pack_to, one_sequence=one_sequence, least_saving=least)(rows)
        for pack_to, least in ((None, 0), (size, 0.1), (size, -math.inf))
    )
    saves = forced["input_ids"].numel() <= 0.9 * plain["input_ids"].numel()
    assert ("segment_ids" in batch) == saves
    expected = forced if saves else plain
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])


@pytest.mark.parametrize("base", ["llama_gqa", "gptj", "gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("make", [lambda: LoRA(rank=4, dropout=0.0), lambda: SeriesAdapter(8)])
def test_loss_and_gradients_are_those_of_the_rows_apart(base, make):
    module = CausalLMModule()
    module.model = tiny_model(base)
    module.source.config = module.model.config
    module.add_adapter(make())
    for parameter in module.adapter_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for collate in (Collate(0), Collate(0, pack_to=40)):
        batch = collate(items(LENGTHS))
        module.zero_grad()
        loss = module.label_losses(module.hidden_states(batch), batch["labels"]).sum()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in module.adapter_parameters().values()])
        found.append((loss.detach(), gradient, len(batch["input_ids"])))
    (apart, gradient, rows), (packed, packed_gradient, sequences) = found
    assert (rows, sequences) == (5, 2)
    torch.testing.assert_close(packed, apart, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed_gradient, gradient, rtol=0, atol=2e-6 * float(gradient.abs().max()))


def fit(base, rows_file, adapter, packing, folder):
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=6, accumulate_grad_batches=2, callbacks=[adapter], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    module = CausalLMModule(str(base))
    module.optimizer_factory = lambda groups: torch.optim.SGD(groups, lr=0.05)
    data = InstructionJSON(path=str(rows_file), batch_size=4, val_size=0, packing=packing, cutoff=400)
    trainer.fit(module, data)
    return module.adapter_state()


def test_a_packed_run_ends_where_the_plain_one_ends(make_base, rows_file, tmp_path):
    plain, packed = (
        fit(make_base(), rows_file, LoRA(rank=4, dropout=0.0), packing, tmp_path) for packing in (False, True)
    )
    assert plain.keys() == packed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(packed[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("base", "adapter"), [("bloom", LoRA), ("opt", LoRA), ("llama", PrefixTuning)])
def test_what_cannot_keep_rows_apart_is_refused(make_base, rows_file, tmp_path, base, adapter):
    with pytest.raises(UserError, match="cannot keep packed rows apart"):
        fit(make_base(base), rows_file, adapter(), True, tmp_path)


def _one_sequence_only(module, query, key, value, attention_mask, **settings):
    """Attention as transformers runs it by flash attention: packed rows are told apart in a batch of one alone."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    positions = settings["position_ids"]
    width = query.shape[2]
    seen = torch.ones(width, width, dtype=torch.bool).tril()
    if len(positions) == 1:
        rows = (positions[0] == 0).cumsum(0)
        seen &= rows[:, None] == rows[None]
    mask = torch.zeros(width, width).masked_fill(~seen, torch.finfo(query.dtype).min)[None, None]
    return eager_attention_forward(module, query, key, value, mask, **settings)


@pytest.fixture
def flash():
    """A module whose attention keeps packed rows apart in one sequence only, as flash attention does."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("stand_in", _one_sequence_only)
    AttentionMaskInterface.register("stand_in", lambda *args, **kwargs: None)
    module = CausalLMModule()
    module.model = tiny_model("llama")
    module.source.config = module.model.config
    module.model.set_attn_implementation("stand_in")
    return module


def test_under_flash_attention_all_rows_lie_in_one_sequence(flash):
    batch = Collate(0, 32, one_sequence=True)(items(LENGTHS))
    assert batch["input_ids"].shape == (1, sum(map(sum, LENGTHS)))
    check_packing(flash, Collate(0, 32, one_sequence=True))


def test_flash_attention_is_known_by_its_name():
    module = CausalLMModule()
    module.model = tiny_model("llama")
    assert not module.takes_one_packed_sequence
    module.model.config._attn_implementation_internal = "flash_attention_2"
    assert module.takes_one_packed_sequence


@pytest.mark.slow  # on a CPU it is compiled
def test_flex_attention_keeps_packed_rows_apart():
    module = CausalLMModule()
    module.model = tiny_model("llama")
    module.source.config = module.model.config
    module.model.set_attn_implementation("flex_attention")
    apart, packed = (Collate(0, size)(items(LENGTHS)) for size in (None, 40))
    assert len(packed["input_ids"]) == 2
    with torch.no_grad():
        one, other = (module.label_losses(module.hidden_states(b), b["labels"]).sum() for b in (apart, packed))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_flex_attention_is_refused_where_it_cannot_train(make_base, rows_file, tmp_path):
    trainer = Trainer(
        accelerator="cpu", callbacks=[LoRA(rank=2)], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    data = InstructionJSON(path=str(rows_file), val_size=0)
    with pytest.raises(UserError, match="flex_attention has no backward pass on a CPU: take"):
        trainer.fit(CausalLMModule(str(make_base()), attn_implementation="flex_attention"), data)


def test_a_batch_of_several_sequences_that_leak_is_noticed(flash):
    assert len(Collate(0, 32)(items(LENGTHS))["input_ids"]) > 1
    with pytest.raises(UserError, match="cannot keep packed rows apart"):
        check_packing(flash, Collate(0, 32))


def test_the_training_batches_are_packed_as_the_attention_needs_it(tmp_path, make_base):
    rows = [
        {"instruction": f"What is {i}?{' Think.' * (4 * (i % 5))}", "output": f"{i}", "answer": i} for i in range(40)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    seen = []

    class Looking(CausalLMModule):
        takes_one_packed_sequence = True

        def training_step(self, batch, batch_idx):
            seen.append(tuple(batch["input_ids"].shape))
            return super().training_step(batch, batch_idx)

    path = str(tmp_path / "rows.json")
    data = InstructionJSON(path=path, val_size=0, packing=True, batch_size=10, cutoff=600)
    trainer = Trainer(
        callbacks=[LoRA(rank=2)], max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Looking(str(make_base())), datamodule=data)
    assert len(seen) == 4
    assert all(sequences == 1 and width > 600 for sequences, width in seen)
