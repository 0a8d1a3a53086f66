"""Adapter directories: what peft and the recorded cases say, round trips, and everything broken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters_pl import (
    IA3,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    SeriesAdapter,
    UserError,
    load_adapter,
    save_adapter,
)
from adapters_pl.adapters import adapter_layers
from tests.conftest import GOLDEN, shared, tiny_model

CASES = sorted(path for path in (GOLDEN / "cases").glob("*/") if (path / "case.json").is_file())


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def directory(tmp_path):
    """A saved adapter whose every value counts."""
    model, adapter = tiny_model("llama"), LoRA(rank=4, alpha=8)
    adapter.attach_to(model)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(model).values():
            parameter.normal_(0, 0.2)
    return save_adapter(model, adapter, tmp_path / "adapter", "org/base")


def test_there_are_recorded_cases_where_the_shared_data_is():
    assert len(CASES) >= 64 or not GOLDEN.exists()


@shared(GOLDEN)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_recorded_logits_and_generations(case: Path):
    description = json.loads((case / "case.json").read_text())
    tolerance = description["tolerance"]
    io = load_file(case / "io.safetensors")
    model = AutoModelForCausalLM.from_pretrained(case / "base", dtype=torch.float32, attn_implementation="eager")
    assert load_adapter(model, case / "adapter") is model
    batch = {"input_ids": io["input_ids"], "attention_mask": io["attention_mask"]}
    here, virtual = batch["attention_mask"].bool(), description["n_virtual_positions_in_logits"]
    close = {"atol": tolerance["atol"], "rtol": tolerance["rtol"]}
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits[here], io["logits"][:, virtual:][here], **close)
        if virtual:
            everything = model(**batch, return_virtual=True).logits
            assert torch.allclose(everything[:, :virtual], io["logits"][:, :virtual], **close)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for cache in ("cache", "nocache"):
        if f"gen_greedy_{cache}" in io:
            # A row is sound where the recorded code's generation agrees with its own forward pass.
            sound = description["greedy_rows_equal_to_iterated_full_forward"][f"gen_greedy_{cache}"]
            new = model.generate(**batch, use_cache=cache == "cache", **settings)[:, batch["input_ids"].shape[1] :]
            assert any(sound)
            assert torch.equal(new[sound], io[f"gen_greedy_{cache}"][sound])


@shared(GOLDEN)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_recorded_gradients(case: Path):
    tolerance = json.loads((case / "case.json").read_text())["tolerance"]
    io = load_file(case / "io.safetensors")
    model = AutoModelForCausalLM.from_pretrained(case / "base", dtype=torch.float32, attn_implementation="eager")
    load_adapter(model, case / "adapter")
    parameters = {}
    for path, layer in adapter_layers(model).items():
        for name, parameter in layer.named_parameters():
            matrix = name.startswith(("lora_", "adapter_down", "adapter_up"))
            key = "lora_magnitude_vector" if name == "magnitude" else f"{name}.weight" if matrix else name
            site = path.removesuffix("adapters.default")
            parameters[name if name == "prompt_embeddings" else f"base_model.model.{site}{key}"] = parameter
            parameter.requires_grad_(True)
    batch = {"input_ids": io["input_ids"], "attention_mask": io["attention_mask"]}
    extra = {"return_virtual": True} if "grad.prompt_embeddings" in io else {}
    (model(**batch, **extra).logits * io["grad_probe"]).sum().backward()
    gradients = _in_the_files_layout(case / "adapter", model, {key: p.grad for key, p in parameters.items()})
    recorded = {key.removeprefix("grad."): value for key, value in io.items() if key.startswith("grad.")}
    assert gradients.keys() == recorded.keys()
    largest = max(value.abs().max() for value in recorded.values())
    for key, value in recorded.items():
        assert (gradients[key] - value).abs().max() <= tolerance["grad_atol_rel_to_max"] * largest, key


def _in_the_files_layout(folder: Path, model, gradients):
    """Gradients with respect to a file's own tensors, where those were read as tensors of another layout."""
    if not (folder / "adapter_model.bin").is_file():
        return gradients
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    method = next(cls for cls in (LoRA, PrefixTuning, SeriesAdapter) if cls.reads(config) or cls is SeriesAdapter)
    _, read = method.convert(config, dict(tensors), model.config, old=True)
    torch.autograd.backward([read[key] for key in gradients], list(gradients.values()))
    return {key: tensor.grad for key, tensor in tensors.items()}


WRITTEN = {
    "lora": lambda: LoRA(rank=4, alpha=12, dropout=0.1),
    "rslora": lambda: LoRA(rank=4, alpha=12, rslora=True),
    "dora": lambda: LoRA(rank=4, alpha=12, dora=True),
    "patterns": lambda: LoRA(rank=4, rank_pattern={"fc1|up_proj": 2}, alpha_pattern={".*v.*": 3}),
    "ia3": lambda: IA3(),
    "prefix": lambda: PrefixTuning(4),
    "prefix-projection": lambda: PrefixTuning(4, projection=8),
    "prompt": lambda: PromptTuning(4),
    "ptuning": lambda: PTuning(4),
    "ptuning-lstm": lambda: PTuning(4, encoder="lstm", encoder_hidden=8),
}


@pytest.mark.parametrize("name", ["llama", "llama_gqa", "bloom", "opt", "gptj", "gpt2"])
@pytest.mark.parametrize("method", WRITTEN)
def test_peft_loads_what_we_write(name, method, tmp_path):
    from peft import PeftModel

    model, adapter = tiny_model(name), WRITTEN[method]()
    adapter.attach_to(model)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_adapter(model.eval(), adapter, tmp_path)
    ids = torch.randint(3, 300, (2, 7))
    theirs = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    with torch.no_grad():
        answers, given = theirs(ids).logits, model(ids).logits
        assert torch.allclose(answers[:, -7:], given, atol=1e-4)  # peft's cover the virtual tokens too
        assert not torch.allclose(given, tiny_model(name)(ids).logits, atol=1e-2)


def test_a_directory_names_its_base_and_modules(directory):
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert len(config["target_modules"]) == 10
    assert sorted(path.name for path in directory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_loaded_adapter_is_active_frozen_and_in_evaluation_mode(directory, model):
    loaded = load_adapter(model, directory)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(loaded(ids).logits, tiny_model("llama")(ids).logits, atol=1e-2)


def broken(directory: Path, how: str) -> None:
    weights, config = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    first = sorted(tensors)[0]
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "cut config":
        config.write_text(config.read_text()[:40])
    elif how == "unknown type":
        config.write_text(json.dumps({**settings, "peft_type": "MAGIC"}))
    elif how == "unsupported setting":
        config.write_text(json.dumps({**settings, "use_bdlora": True}))
    elif how == "missing tensor":
        save_file({k: v for k, v in tensors.items() if k != first}, weights)
    elif how == "left-over tensor":
        save_file({**tensors, "base_model.model.extra.lora_A.weight": torch.zeros(1)}, weights)
    elif how == "other shape":
        save_file({**tensors, first: torch.zeros(4, 99)}, weights)
    elif how == "not finite":
        save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, weights)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "adapter_model.safetensors is missing"),
        ("cut weights", "cannot be read, it may be cut"),
        ("cut config", "cannot be read, it may be cut"),
        (
            "unknown type",
            # Classes that other tests define may follow.
            r"peft_type 'MAGIC' is not known \(known: BOTTLENECK, IA3, LORA, PREFIX_TUNING, PROMPT_TUNING, P_TUNING",
        ),
        ("unsupported setting", "use_bdlora=True, which is not supported"),
        ("missing tensor", "does not fit this model: .* is missing"),
        ("left-over tensor", r"extra\.lora_A\.weight has no place"),
        ("other shape", r"belongs to another base: .* shape \(4, 99\)"),
        ("not finite", "not finite"),
    ],
)
def test_a_broken_directory_is_one_clear_error_and_leaves_the_model_alone(directory, model, how, message):
    broken(directory, how)
    with pytest.raises(UserError, match=message):
        load_adapter(model, directory)
    assert adapter_layers(model) == {}


def test_an_adapter_of_another_architecture_is_refused(directory):
    with pytest.raises(UserError, match="belongs to another base: its model_type is llama, here it is bloom"):
        load_adapter(tiny_model("bloom"), directory)


def test_an_empty_folder_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="no adapter here"):
        load_adapter(model, tmp_path)


def bare_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [bare_pickle, torch.save])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("evil.ckpt", "cannot be read as a checkpoint"),
        ("evil.ckpt/rest.pt", "not whole"),
        ("adapter/adapter_model.bin", "cannot be read as plain tensors"),
    ],
)
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, model, write, file, message):
    witness, path = tmp_path / "ran", tmp_path / file

    class Payload:
        def __reduce__(self):
            return Path.touch, (witness,)

    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".bin":
        (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write({"adapters_pl": Payload(), "state_dict": {}, "parts": 0, "checkpoint": {}}, path)
    with pytest.raises(UserError, match=message):
        load_adapter(model, path if file == "evil.ckpt" else path.parent)
    assert not witness.exists()
