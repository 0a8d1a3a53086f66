"""LoRA directories that PEFT writes and reads: every setting that says which function they hold."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adapters_pl import IA3, LoRA, ParallelAdapter, SeriesAdapter, UserError, load_adapter, save_adapter
from adapters_pl.adapters import adapter_layers
from tests.conftest import tiny_model
from tests.helpers.methods import with_biases

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def shaken(model):
    """Move whatever is trained, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def agree(ours, theirs, base):
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-4)
    assert not torch.allclose(logits(ours), logits(base), atol=1e-2)


OURS = {
    "pissa": lambda: LoRA(rank=4, alpha=12, init="pissa"),
    "pissa-rslora": lambda: LoRA(rank=4, alpha=6, init="pissa", rslora=True, alpha_pattern={".*v.*": 3}),
    "pissa-patterns": lambda: LoRA(rank=4, alpha=6, init="pissa", rank_pattern={".*v.*": 2}),
    "pissa-beyond": lambda: LoRA(rank=24, alpha=24, init="pissa", placement="attn"),
    "olora-dora": lambda: LoRA(rank=4, alpha=4, init="olora", dora=True),
    "bias": lambda: LoRA(rank=4, alpha=8, bias="lora_only", placement="attn"),
    "bias-all": lambda: LoRA(rank=4, alpha=8, bias="all"),
    "bias-dora": lambda: LoRA(rank=4, alpha=8, bias="all", dora=True),
    "parts": lambda: LoRA(rank=4, alpha=8, parts=["q", "v"]),
    "parts-dora": lambda: LoRA(rank=4, alpha=8, parts=["k"], dora=True, placement="attn"),
}


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bloom", "gptj"])
@pytest.mark.parametrize("method", OURS)
def test_peft_loads_what_we_write_and_so_do_we(method, name, tmp_path):
    model, adapter = with_biases(name), OURS[method]()
    adapter.attach_to(model)
    save_adapter(shaken(model), adapter, tmp_path)
    agree(model, PeftModel.from_pretrained(with_biases(name), tmp_path), with_biases(name))
    assert torch.allclose(logits(load_adapter(with_biases(name), tmp_path)), logits(model), atol=1e-5)


LINEAR = {
    "llama": ["q_proj", "v_proj", "up_proj"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bloom": ["query_key_value"],
    "gptj": ["q_proj", "fc_in"],
}
THEIRS = {
    "plain": {},
    "bias": {"bias": "lora_only"},
    "bias-all": {"bias": "all"},
    "bias-all-dora": {"bias": "all", "use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "layers": {"layers_to_transform": [1]},
    "layer": {"layers_to_transform": 0},
    "layers-pattern": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "exclude": {"exclude_modules": ["1.self_attn.q_proj", "h.1.attn.c_attn", "h.0.self_attention.query_key_value"]},
    "exclude-nothing": {"exclude_modules": ["nothing.of.the.kind"]},
    "a-name-too-many": {"target_modules": ["q_proj", "c_attn", "query_key_value", "nothing"]},
    "saved": {"modules_to_save": ["embed_tokens", "wte", "word_embeddings", "lm_head"]},
    "saved-target": {"modules_to_save": ["0.self_attn.q_proj", "h.0.mlp"]},
    "saved-biases": {"modules_to_save": ["lm_head"], "bias": "all"},
    "velora": {"velora_config": {"num_groups": 4, "scale": 1.0}},
    "eva": {"init_lora_weights": "eva"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("setting", THEIRS)
def test_we_load_what_peft_writes(setting, name, tmp_path):
    settings = {"target_modules": LINEAR[name], "r": 4, "lora_alpha": 12, **THEIRS[setting]}
    if named := settings.get("modules_to_save"):
        paths = [path for path, _ in tiny_model(name).named_modules()]
        settings["modules_to_save"] = [own for own in named if any(f".{path}".endswith(f".{own}") for path in paths)]
    torch.manual_seed(3)
    theirs = shaken(get_peft_model(with_biases(name), LoraConfig(task_type="CAUSAL_LM", **settings)))
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(with_biases(name), tmp_path)
    # What counts is what peft itself makes of the directory; in memory it may have been another function.
    again = PeftModel.from_pretrained(with_biases(name), tmp_path)
    agree(ours, again, with_biases(name))
    assert torch.allclose(logits(again), logits(theirs), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.filterwarnings("ignore")
def test_olora_directories_are_read_on_the_unchanged_base(tmp_path):
    config = LoraConfig(init_lora_weights="olora", target_modules=LINEAR["llama"], r=4, lora_alpha=12)
    theirs = shaken(get_peft_model(tiny_model("llama"), config))
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(tiny_model("llama"), tmp_path)
    agree(ours, PeftModel.from_pretrained(tiny_model("llama"), tmp_path), tiny_model("llama"))
    save_adapter(ours, LoRA(rank=4, alpha=12, init="olora"), tmp_path / "again")
    agree(load_adapter(tiny_model("llama"), tmp_path / "again"), theirs, tiny_model("llama"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_bias", True),
        ("use_qalora", True),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"]}),
        ("kasa_config", {"beta": 0.1}),
        ("monteclora_config", {"num_samples": 4}),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5, 6]),
        ("arrow_config", {"top_k": 2}),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("bias", "some"),
    ],
)
def test_a_setting_that_changes_the_function_is_refused_in_one_line(setting, value, tmp_path):
    model, adapter = tiny_model("llama"), LoRA(rank=4)
    adapter.attach_to(model)
    save_adapter(model, adapter, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    plain = tiny_model("llama")
    with pytest.raises(UserError, match=rf"{setting}|bias 'some'") as error:
        load_adapter(plain, tmp_path)
    assert "\n" not in str(error.value)
    assert adapter_layers(plain) == {}


EMBEDDINGS = {
    "llama": ["embed_tokens", "lm_head"],
    "opt": ["embed_tokens", "lm_head"],
    "gpt2": ["wte", "lm_head"],
}
SAVING = {
    "lora": lambda modules: LoRA(rank=4, alpha=8, modules_to_save=modules),
    "lora-plus": lambda modules: LoRA(rank=4, alpha=8, lr_ratio=4, bias="all", modules_to_save=modules),
    "ia3": lambda modules: IA3(modules_to_save=modules),
    "series": lambda modules: SeriesAdapter(8, modules_to_save=modules),
    "parallel": lambda modules: ParallelAdapter(8, modules_to_save=modules),
}


def larger(name, tokens):
    model = tiny_model(name)
    if tokens:
        torch.manual_seed(7)  # the new rows are drawn
        model.resize_token_embeddings(model.config.vocab_size + tokens)
    return model.requires_grad_(False)


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("method", SAVING)
def test_modules_are_trained_whole_and_saved(method, name, tokens, tmp_path):
    model, adapter = larger(name, tokens), SAVING[method](EMBEDDINGS[name])
    adapter.attach_to(model)
    assert torch.equal(logits(model), logits(larger(name, tokens)))
    before = {path: parameter.clone() for path, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(adapter.parameter_groups(model), lr=0.5)
    ids = torch.tensor([[5, model.config.vocab_size - 1, 9, 11]])
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    changed = {path for path, parameter in model.named_parameters() if not torch.equal(parameter, before[path])}
    assert changed <= set(adapter.adapter_parameters(model))
    assert sum(".copy." in path and path.endswith("weight") for path in changed) == 2
    save_adapter(shaken(model), adapter, tmp_path)
    assert torch.equal(logits(load_adapter(larger(name, tokens), tmp_path)), logits(model))
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(larger(name, tokens)))
    if method.startswith(("lora", "ia3")):
        agree(model, PeftModel.from_pretrained(larger(name, tokens), tmp_path), larger(name, tokens))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_added_tokens_of_peft_are_read(name, tmp_path):
    config = LoraConfig(r=4, target_modules=LINEAR[name], modules_to_save=EMBEDDINGS[name])
    theirs = shaken(get_peft_model(larger(name, 3), config))
    theirs.save_pretrained(tmp_path)
    agree(load_adapter(larger(name, 3), tmp_path), theirs, larger(name, 3))


@pytest.mark.filterwarnings("ignore")
def test_embeddings_that_peft_saved_unasked_are_read(tmp_path):
    theirs = shaken(get_peft_model(larger("llama", 3), LoraConfig(r=4, target_modules=LINEAR["llama"])))
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    other = larger("llama", 3)
    with torch.no_grad():
        other.get_input_embeddings().weight[-3:] += 1.0  # drawn otherwise where it is loaded
    agree(load_adapter(other, tmp_path), theirs, larger("llama", 3))


def test_a_missing_tensor_is_no_excluded_module(tmp_path):
    model, adapter = tiny_model("llama"), LoRA(rank=4)
    adapter.attach_to(model)
    save_adapter(model, adapter, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "layers.1" not in key}, file)
    with pytest.raises(UserError, match="is missing"):
        load_adapter(tiny_model("llama"), tmp_path)
