"""Several adapters of one base in memory, switched by name."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import LoRA, ParallelAdapter, PrefixTuning, PTuning, UserError, activate, load_adapter, save_adapter
from tests.conftest import tiny_model
from tests.helpers.methods import logits, perturb

METHODS = {"low": lambda: LoRA(4, 8), "beside": lambda: ParallelAdapter(8), "prefix": lambda: PrefixTuning(3)}
METHODS["soft"] = lambda: PTuning(3)
METHODS["whole"] = lambda: LoRA(4, 8, placement="attn", modules_to_save=["lm_head"])


@pytest.fixture
def folders(tmp_path):
    """One saved adapter of each kind."""
    for name, make in METHODS.items():
        model, adapter = tiny_model("llama"), make()
        adapter.attach_to(model)
        perturb(model, adapter)
        save_adapter(model, adapter, tmp_path / name)
    return {name: tmp_path / name for name in METHODS}


@pytest.fixture
def crowd(folders):
    """A model that holds them all."""
    model = tiny_model("llama")
    for name, folder in folders.items():
        load_adapter(model, folder, name)
    return model


@pytest.mark.parametrize("name", METHODS)
def test_the_chosen_one_works_alone(crowd, folders, name):
    activate(crowd, "low", "prefix")
    activate(crowd, name)
    assert torch.equal(logits(crowd), logits(load_adapter(tiny_model("llama"), folders[name])))


def test_none_is_the_base_and_several_work_together(crowd, folders):
    activate(crowd)
    assert torch.equal(logits(crowd), logits(tiny_model("llama")))
    activate(crowd, "beside", "prefix")
    pair = load_adapter(tiny_model("llama"), folders["prefix"], "prefix")
    load_adapter(pair, folders["beside"], "beside")
    assert torch.equal(logits(crowd), logits(pair))


def test_an_unknown_name_is_refused_and_changes_nothing(crowd):
    activate(crowd, "low")
    before = logits(crowd)
    with pytest.raises(UserError, match=r"no adapter 'lo': did you mean 'low'\?"):
        activate(crowd, "lo")
    assert torch.equal(logits(crowd), before)


def test_two_adapters_of_one_name_are_refused_and_the_first_stays(folders):
    model = load_adapter(tiny_model("llama"), folders["low"], "mine")
    before = logits(model)
    for other in ("low", "beside", "whole"):
        with pytest.raises(UserError, match="Two adapters are named 'mine'"):
            load_adapter(model, folders[other], "mine")
    assert torch.equal(logits(model), before)
