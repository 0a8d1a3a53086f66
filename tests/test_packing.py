"""Packed rows give the loss and the gradients of the same rows apart, or are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from adapters_pl import CausalLMModule, InstructionJSON, LoRA, PrefixTuning, SeriesAdapter, UserError
from adapters_pl.data.tokenize import Collate, TokenRow, TrainingRows
from tests.conftest import tiny_model

LENGTHS = [(5, 3), (20, 9), (7, 1), (12, 14), (3, 2)]


def items(lengths):
    torch.manual_seed(0)
    draw = lambda n: torch.randint(3, 300, (n,)).tolist()  # noqa: E731
    return [TrainingRows([TokenRow(i, draw(p), draw(r))])[0] for i, (p, r) in enumerate(lengths)]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(8, 90),
)
def test_every_token_of_every_row_is_there_once_and_in_order(lengths, size):
    rows = items(lengths)
    batch = Collate(0, pack_to=size)(rows)
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


@pytest.mark.parametrize("base", ["llama_gqa", "gptj", "gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("make", [lambda: LoRA(rank=4, dropout=0.0), lambda: SeriesAdapter(8)])
def test_loss_and_gradients_are_those_of_the_rows_apart(base, make):
    module = CausalLMModule()
    module.model = tiny_model(base)
    module._config = module.model.config
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
