"""The frozen base: loaded as a whole or refused, and known again."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_pl import LoRA, UserError, load_adapter
from adapters_pl.models import base
from adapters_pl.models.base import load_base
from adapters_pl.models.fingerprint import fingerprint, same_base
from tests.conftest import tiny_model

# ---- known again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
def test_a_base_with_a_lora_merged_into_it_is_another(dtype, path):
    base, merged = (tiny_model("llama").to(dtype) for _ in range(2))
    adapter = LoRA(rank=2, target_modules=path.replace(".", r"\."))
    adapter.attach_to(merged, seed=1)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(merged).values():
            parameter.normal_(0, 0.05)
    adapter.merge(merged)
    adapter.detach_from(merged)
    assert same_base(fingerprint(base), fingerprint(tiny_model("llama").to(dtype)))
    assert not same_base(fingerprint(base), fingerprint(merged))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_is_the_same_in_every_number_type(dtype):
    known = fingerprint(tiny_model("llama"))
    assert same_base(known, fingerprint(tiny_model("llama").to(dtype)))
    assert same_base(fingerprint(tiny_model("llama").to(torch.float16)), fingerprint(tiny_model("llama").to(dtype)))
    assert same_base(known, fingerprint(tiny_model("llama").to(dtype).float()))
    assert not same_base(known, fingerprint(tiny_model("llama", seed=1).to(dtype)))


def test_a_fingerprint_survives_json_and_knows_nothing_on_the_meta_device():
    known = fingerprint(tiny_model("llama"))
    assert same_base(json.loads(json.dumps(known)), known)
    assert same_base(fingerprint(tiny_model("llama").to("meta")), known)


def test_a_fingerprint_of_format_1_is_compared_as_it_was():
    known = fingerprint(tiny_model("llama"))
    old = {key: known[key] for key in ("structure", "sample")}
    assert same_base(old, known)
    assert not same_base(old, fingerprint(tiny_model("llama", seed=1)))


# ---- whole


@pytest.fixture
def spoilt(make_base, tmp_path):
    """A copy of a base's directory whose weights were changed."""

    def spoilt(change, **config):
        folder = shutil.copytree(make_base(), tmp_path / "base")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **config}))
        return str(folder)

    return spoilt


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda w: w.pop(UP), {}, f"its weights lack {UP}"),
        (lambda w: None, {"num_hidden_layers": 4}, r"its weights lack model\.layers\.2\..* and 17 more"),
        (lambda w: None, {"num_hidden_layers": 1}, r"no place for: model\.layers\.1\..* and 8 more"),
        (lambda w: w.update({UP: torch.zeros(3, 3)}), {}, f"of another shape than its config.json says, {UP}"),
        (lambda w: w.update({"tower.weight": torch.zeros(3)}), {}, "no place for: tower.weight"),
        (lambda w: w[UP][3].fill_(torch.nan), {}, f"{UP} holds values that are not finite"),
    ],
    ids=["missing", "more layers", "fewer layers", "shape", "unexpected", "not finite"],
)
def test_a_base_whose_weights_are_not_whole_is_refused_in_a_line(spoilt, change, config, message, capfd):
    base = spoilt(change, **config)
    with pytest.raises(UserError, match=message):
        load_base(base)
    said = capfd.readouterr()
    assert "LOAD REPORT" not in said.out + said.err


@pytest.mark.parametrize("name", ["gptj", "gpt_neo", "gpt2"])
def test_buffers_of_older_files_are_no_weights(make_base, tmp_path, name):
    folder = shutil.copytree(make_base(name), tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    attention = "attn.attention" if name == "gpt_neo" else "attn"
    for buffer in ("bias", "masked_bias"):
        weights[f"transformer.h.0.{attention}.{buffer}"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_base(str(folder))


def test_random_weights_are_what_random_init_asks_for(spoilt):
    base = spoilt(lambda weights: weights.pop(UP))
    assert torch.isfinite(load_base(base, random_init=True).get_parameter(UP)).all()


# ---- a base that uses the name itself


class Towers(torch.nn.ModuleDict):
    """Something of a base's own that it calls ``adapters``."""


@pytest.fixture
def named_alike():
    """A model whose first layer has linear modules of its own under ``adapters``."""
    model = tiny_model("llama")
    torch.manual_seed(0)
    model.model.layers[0].adapters = Towers({"default": torch.nn.Linear(32, 32)})
    return model.requires_grad_(False)


def test_modules_that_a_base_calls_adapters_are_its_own(named_alike, tmp_path):
    from adapters_pl import save_adapter
    from adapters_pl.adapters import adapter_layers
    from adapters_pl.cli.commands.plan import plan
    from adapters_pl.models.placement import linear_modules

    own = "model.layers.0.adapters.default"
    assert own in linear_modules(named_alike)
    other = copy.deepcopy(named_alike)
    torch.nn.init.zeros_(other.get_submodule(own).weight)
    assert not same_base(fingerprint(named_alike), fingerprint(other))
    adapter = LoRA(rank=2, target_modules=["adapters.default", "q_proj"])
    assert plan(named_alike, [adapter]).base == sum(p.numel() for p in named_alike.parameters())
    plain = copy.deepcopy(named_alike)
    adapter.attach_to(named_alike, seed=1)
    assert set(adapter.sites(named_alike)) == {own, *(
        f"model.layers.{i}.self_attn.q_proj" for i in range(2)
    )}  # fmt: skip
    assert same_base(fingerprint(named_alike), fingerprint(plain))
    folder = save_adapter(named_alike, adapter, tmp_path / "adapter")
    assert len(adapter_layers(load_adapter(copy.deepcopy(plain), folder))) == 3


def test_an_attribute_where_adapters_go_is_not_overwritten():
    from adapters_pl import PrefixTuning

    model = tiny_model("llama")
    model.model.adapters = Towers()
    with pytest.raises(UserError, match="LlamaModel has an attribute 'adapters' of its own"):
        PrefixTuning(virtual_tokens=2).attach_to(model, seed=1)
    assert isinstance(model.model.adapters, Towers)


def test_attention_that_is_not_to_be_had_is_a_line(make_base, monkeypatch):
    def from_pretrained(*arguments, **settings):
        raise ImportError("`kernels` is not installed.")

    monkeypatch.setattr(base.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=r"attn_implementation someone/kernel: .*kernels.* Try sdpa"):
        load_base(str(make_base()), attn_implementation="someone/kernel")
