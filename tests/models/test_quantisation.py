"""8-bit and 4-bit bases: loading, training, merging. None of it needs a GPU.

This was never run on a CPU with avx512_bf16, whose repacking of 4-bit weights is only known to be switched off.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from adapters_pl import CausalLMModule, LoRA, PEFTAdapter, UserError, load_adapter
from adapters_pl.cli.main import main
from adapters_pl.models import quantisation
from adapters_pl.models.base import load_base
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.fingerprint import fingerprint, same_base
from adapters_pl.models.placement import linear_modules, linear_sizes, resolve
from adapters_pl.models.quantisation import dequantised, is_quantised, plain_weight
from tests.helpers import quantised_grid
from tests.helpers.methods import METHODS as EVERY_METHOD
from tests.helpers.methods import logits, perturb, tokens
from tests.helpers.training import fit

bitsandbytes = pytest.importorskip("bitsandbytes")
WIDTHS = ("8bit", "4bit")
#: Variants that differ only in where they go, or in their initial values, are alike here.
ALIKE = (
    "lora-attn",
    "lora-mlp",
    "lora-patterns",
    "lora-all-linear",
    "lora-parts",
    "series-houlsby",
    "parallel-both",
    "prompt-random",
)
METHODS = {name: make for name, make in EVERY_METHOD.items() if name not in ALIKE}
#: Input sizes of 64, which the CPU's own 4-bit kernel can do, and of 96 and 32, which it cannot.
LLAMA = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def base_of(make_base):
    """A frozen tiny base in 8-bit, 4-bit or another dtype: a copy of its own for every caller."""
    made = {}

    def load(width, name="llama"):
        if (width, name) not in made:
            folder = str(make_base(name, **(LLAMA if name == "llama" else {})))
            made[width, name] = (
                load_base(folder, quantization=width) if width in WIDTHS else load_base(folder, dtype=width)
            )
        return copy.deepcopy(made[width, name])

    return load


def exact(model):
    """The model in evaluation, but for 8-bit layers, which do not round their inputs in training."""
    for module in model.eval().modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.training = True
    return model


# ---- loading


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_linear_layers_are_quantised_and_keep_their_logical_sizes(base_of, width, name):
    plain, model = base_of("float32", name), base_of(width, name)
    kind = bitsandbytes.nn.Linear8bitLt if width == "8bit" else bitsandbytes.nn.Linear4bit
    linears = linear_modules(plain)
    assert linears
    assert {path: linear_sizes(module) for path, module in linear_modules(model).items()} == {
        path: linear_sizes(module) for path, module in linears.items()
    }
    assert all(isinstance(module, kind) for module in linear_modules(model).values())
    for unquantised in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert unquantised.weight.dtype == torch.float32
    arch = architecture_of(plain)
    for wanted in (None, "all-linear"):
        assert resolve(model, arch, "both", wanted) == resolve(plain, arch, "both", wanted)
    assert same_base(fingerprint(model), fingerprint(plain))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.num_parameters() == plain.num_parameters()


def test_4_bit_is_nf4_with_double_quantisation_computed_in_float32(base_of):
    layers = [module for module in base_of("4bit").modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert {(layer.weight.quant_type, layer.weight.quant_state.nested) for layer in layers} == {("nf4", True)}
    assert {layer.compute_dtype for layer in layers} == {torch.float32}


@pytest.mark.parametrize(("width", "error"), [("8bit", 0.01), ("4bit", 0.1)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_layer_multiplies_by_what_its_weight_stands_for(base_of, width, error, name):
    """Also where rows do not end with a block of 64, which bitsandbytes' kernel for CPUs gets wrong."""
    plain, model = linear_modules(base_of("float32", name)), exact(base_of(width, name))
    for path, module in linear_modules(model).items():
        unit = torch.eye(module.in_features)
        shift = 0 if module.bias is None else module.bias
        assert torch.allclose(module(unit) - shift, dequantised(module).T, atol=1e-5), path
        weight = plain[path].weight
        assert (plain_weight(module) - weight).abs().mean() < error * weight.std(), path


def test_4_bit_layers_never_repack_their_weights(base_of, make_base, monkeypatch):
    """As on a CPU with avx512_bf16, where an evaluation would leave them without gradients."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert bitsandbytes.nn.Linear4bit(2, 2).support_avx512bf16_for_cpu
    model = load_base(str(make_base("llama", **LLAMA)), quantization="4bit")
    config = BitsAndBytesConfig(load_in_4bit=True)
    own = AutoModelForCausalLM.from_pretrained(make_base("llama", **LLAMA), quantization_config=config)
    LoRA(4, 8).attach_to(own)  # a user's model, which load_base has not seen
    for mended in (model, own):
        layers = [module for module in mended.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert layers
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_base_that_is_stored_quantised_is_loaded_so(base_of, make_base, tmp_path, width):
    base_of(width).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(make_base("llama", **LLAMA)).save_pretrained(tmp_path)
    for wanted in (None, width):
        stored = load_base(str(tmp_path), quantization=wanted)
        assert torch.equal(logits(stored), logits(base_of(width)))
    other = next(kind for kind in WIDTHS if kind != width)
    with pytest.raises(UserError, match=f"stored in {width}, --model.quantization asks for {other}: leave it out"):
        load_base(str(tmp_path), quantization=other)
    module = CausalLMModule(str(tmp_path))
    module.add_adapter(LoRA(4, 8))
    assert same_base(module.base_fingerprint(), fingerprint(base_of("float32")))


def test_what_cannot_be_quantised_is_refused(make_base, tmp_path, monkeypatch):
    base = str(make_base())
    with pytest.raises(UserError, match="random_init has no weights"):
        load_base(base, random_init=True, quantization="4bit")
    config = json.loads(Path(base, "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UserError, match="quantised by gptq, which is not supported; name the base"):
        load_base(str(tmp_path))
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'adapters-pl\[quant\]'"):
        load_base(base, quantization="8bit")
    load_base(base)


def test_plan_needs_nothing_of_it(make_base, capsys, monkeypatch):
    monkeypatch.setattr(quantisation, "is_bitsandbytes_available", lambda: False)
    words = ["plan", "--model.base", str(make_base()), "--adapter", "LoRA"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--model.quantization", "4bit"]) == 0
    trainable = [line for line in plain.splitlines() if line.startswith("trainable parameters")]
    assert trainable
    assert trainable[0] in capsys.readouterr().out


# ---- training


def steps(model, parameters, count):
    """Train on one batch at a learning rate that is lost in bfloat16."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)
    batch = tokens()
    for _ in range(count):
        model.train()
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


PEFT_METHODS = {
    "peft-lora": lambda: PEFTAdapter(peft.LoraConfig(r=4)),
    "peft-vera": lambda: PEFTAdapter(peft.VeraConfig(r=4)),
    "peft-ia3": lambda: PEFTAdapter(peft.IA3Config()),
    "peft-oft": lambda: PEFTAdapter(peft.OFTConfig(oft_block_size=4, r=0)),
    "peft-fourierft": lambda: PEFTAdapter(peft.FourierFTConfig(n_frequency=20, scaling=10.0)),
    "peft-adalora": lambda: PEFTAdapter(peft.AdaLoraConfig(total_step=10, init_r=4, target_r=2)),
    "modules-to-save": lambda: LoRA(4, 8, target_modules=["q_proj"], modules_to_save=["down_proj"]),
}


@pytest.mark.parametrize("width", [*WIDTHS, "bfloat16"])
@pytest.mark.parametrize("method", [*METHODS, *PEFT_METHODS])
@pytest.mark.filterwarnings("ignore")
def test_adapters_are_float32_and_learn_at_a_small_rate_before_and_after_an_evaluation(base_of, width, method):
    model, adapter = base_of(width), {**METHODS, **PEFT_METHODS}[method]()
    adapter.attach_to(model, seed=1)
    declared = adapter.adapter_parameters(model)
    assert {parameter.dtype for parameter in declared.values()} == {torch.float32}
    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in declared}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(declared)
    for _ in range(2):
        before = {name: parameter.detach().clone() for name, parameter in declared.items()}
        steps(model, declared.values(), 3)
        for name, parameter in declared.items():
            assert not torch.equal(parameter, before[name]), name
            assert (parameter - before[name]).abs().max() < 1e-4, name
        logits(model.eval())
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("method", ["lora", "lora-dora", "series", "parallel", "ia3", "prefix", "prompt"])
def test_switched_off_or_taken_out_it_leaves_the_base(base_of, width, method):
    model, adapter = base_of(width), METHODS[method]()
    base = logits(model)
    adapter.attach_to(model, seed=1)
    perturb(model.eval(), adapter)
    assert not torch.allclose(logits(model), base, atol=1e-3)
    with adapter.disabled(model):
        assert torch.equal(logits(model), base)
    adapter.detach_from(model)
    assert torch.equal(logits(model), base)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("width", WIDTHS)
def test_a_gpu_makes_and_trains_the_base_itself(make_base, width):
    device = torch.device("cuda", torch.cuda.current_device())
    model = load_base(str(make_base("llama", **LLAMA)), quantization=width, device=device)
    adapter = LoRA(4, 8, 0.0)
    adapter.attach_to(model, seed=1)
    declared = adapter.adapter_parameters(model)
    assert {(p.device, p.dtype) for p in declared.values()} == {(device, torch.float32)}
    batch = {key: value.to(device) for key, value in tokens().items()}
    optimizer = torch.optim.AdamW(declared.values(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.filterwarnings("ignore")
def test_peft_methods_that_take_packed_weights_for_weights_are_refused(base_of):
    for config in (peft.HRAConfig(r=4), peft.LoHaConfig(r=4)):
        with pytest.raises(UserError, match="is not known to work on a quantised base; leave out"):
            PEFTAdapter(config).attach_to(base_of("8bit"))
        PEFTAdapter(config).attach_to(base_of("float32"))
    with pytest.raises(UserError, match="use LoRA with dora"):
        PEFTAdapter(peft.LoraConfig(use_dora=True)).attach_to(base_of("4bit"))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_is_resumed_and_its_checkpoint_loads_into_the_plain_base(make_base, tmp_path, rows_file, width):
    base = make_base("llama", **LLAMA)

    def module():
        return CausalLMModule(str(base), lr=1e-2, quantization=width)

    uninterrupted, _ = fit(tmp_path, base, rows_file, module=module(), max_steps=6, max_epochs=9)
    half, trainer = fit(tmp_path, base, rows_file, module=module(), max_steps=3, max_epochs=9)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), tmp_path / "half.ckpt")
    for name, value in half.adapter_state().items():
        assert torch.equal(model.get_parameter(name.removeprefix("model.")), value)
    again = module()
    again.add_adapter(LoRA(rank=4, dropout=0.0))
    again.load_state_dict(torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"], strict=False)
    assert torch.equal(logits(again.model.eval()), logits(half.model.eval()))
    assert not torch.equal(logits(uninterrupted.model.eval()), logits(half.model))


@pytest.mark.parametrize(("method", "width", "steps"), quantised_grid.SHORT)
@pytest.mark.filterwarnings("ignore")
def test_the_loss_falls_as_it_does_in_float32(method, width, steps):
    """A short course, in which the two are not near each other yet; the whole grid is below."""
    plain, quantised = (quantised_grid.train(method, kind, steps, batch_size=4) for kind in (None, width))
    assert quantised.start - quantised.end > 0.5
    assert quantised.start - quantised.end > 0.5 * (plain.start - plain.end)
    assert quantised.end < quantised.middle  # behind the validation pass it goes on


@pytest.mark.slow
@pytest.mark.parametrize("method", quantised_grid.METHODS)
@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_every_method_falls_as_it_does_in_float32(method):
    plain, *quantised = (quantised_grid.train(method, width) for width in quantised_grid.WIDTHS)
    for course in quantised:
        assert course.start - course.end > 0.5
        assert abs(course.end - plain.end) < 0.1
        assert course.end < course.middle


# ---- merging

MERGED = [name for name in METHODS if name.startswith(("lora", "ia3"))]


def merged_and_unmerged(model, adapter, monkeypatch):
    """Merge, compare, undo and compare again; returns the logits before and after, and what was said."""
    said = []
    monkeypatch.setattr(quantisation, "rank_zero_info", said.append)
    unmerged = logits(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = {path: type(module) for path, module in model.named_modules()}
    undo = adapter.merge(model)
    merged, again = logits(model), adapter.merge(model)
    again()
    assert torch.equal(logits(model), merged)
    undo()
    undone = model.state_dict()
    assert undone.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in undone.items())
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert torch.equal(logits(model), unmerged)
    return unmerged, merged, said


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", MERGED)
def test_merging_dequantises_says_so_and_is_undone_exactly(base_of, width, name, method, monkeypatch):
    model, adapter = base_of(width, name), METHODS[method]()
    adapter.attach_to(model, seed=1)
    perturb(model, adapter)
    unmerged, merged, said = merged_and_unmerged(exact(model), adapter, monkeypatch)
    assert torch.allclose(merged, unmerged, atol=1e-4)
    assert len(said) == 1
    assert "of its modules are plain now, in float32" in said[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("method", PEFT_METHODS)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_injected_is_merged_without_quantising_again(base_of, width, method, monkeypatch):
    model, adapter = base_of(width), PEFT_METHODS[method]()
    adapter.attach_to(model, seed=1)
    perturb(model, adapter)
    unmerged, merged, said = merged_and_unmerged(exact(model), adapter, monkeypatch)
    assert torch.allclose(merged, unmerged, atol=1e-4)
    assert len(said) == 1


def test_merging_into_an_evaluated_8_bit_base_changes_no_more_than_its_rounding_of_inputs(base_of):
    model, adapter = base_of("8bit"), LoRA(4, 8)
    adapter.attach_to(model, seed=1)
    perturb(model.eval(), adapter)
    unmerged = logits(model)
    adapter.merge(model)
    assert (logits(model) - unmerged).norm() < 0.05 * unmerged.norm()  # inputs are rounded to 1 in 127


def test_merging_into_a_base_with_a_bfloat16_stream_gives_bfloat16_weights(make_base):
    model = load_base(str(make_base("llama", **LLAMA)), dtype="bfloat16", quantization="4bit")
    adapter = LoRA(4, 8)
    adapter.attach_to(model, seed=1)
    perturb(model.eval(), adapter)
    unmerged = logits(model).float()
    adapter.merge(model)
    assert {module.weight.dtype for path, module in linear_modules(model).items() if "q_proj" in path} == {
        torch.bfloat16
    }
    assert (logits(model).float() - unmerged).abs().max() < 0.03 * unmerged.abs().max()  # bfloat16 has 8 bits


def test_several_adapters_on_one_module_merge_one_after_the_other(base_of):
    model = base_of("4bit")
    adapters = [LoRA(4, 8, name="one"), LoRA(2, 4, name="two", target_modules=["q_proj"])]
    for adapter in adapters:
        adapter.attach_to(model, seed=1)
        perturb(model, adapter)
    unmerged = logits(model.eval())
    undone = [adapter.merge(model) for adapter in adapters]
    assert torch.allclose(logits(model), unmerged, atol=1e-4)
    for undo in reversed(undone):
        undo()
    assert torch.equal(logits(model), unmerged)


@pytest.fixture
def trained(make_base, rows_file, tmp_path, monkeypatch):
    """A finished 4-bit run in an empty folder; returns its base."""
    monkeypatch.chdir(tmp_path)

    def train(name):
        base = make_base(name, **(LLAMA if name == "llama" else {}))
        words = ["--data", "InstructionJSON", "--data.path", str(rows_file), "--data.max_new_tokens", "6"]
        words += ["--trainer.max_steps", "8", "--trainer.accelerator", "cpu", "--model.lr", "1e-2"]
        words += ["--trainer.enable_progress_bar", "false", "--model.quantization", "4bit", "--adapter", "LoRA"]
        assert main(["fit", "--model.base", str(base), *words, "--adapter.rank", "4"]) == 0
        return base

    return train


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_merged_export_is_a_plain_model_that_computes_what_the_run_did(trained, name, capsys):
    base = trained(name)
    run = next(Path("runs").glob("lora-1"))
    expected = logits(load_adapter(load_base(str(base), quantization="4bit"), run))
    capsys.readouterr()
    assert main(["export", "--merge", "--out", "merged", "--quantization", "4bit", "--dtype", "float32"]) == 0
    assert "The base, quantised to 4bit, is written dequantised, in float32." in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert not any(is_quantised(module) for module in merged.modules())
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert {key: value.shape for key, value in merged.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert main(["export", "--merge", "--out", "into-plain", "--quantization", "none"]) == 0
    into_plain = AutoModelForCausalLM.from_pretrained("into-plain")
    assert not torch.allclose(logits(into_plain), expected, atol=1e-2)


def test_a_checkpoint_says_what_its_base_was_quantised_to(trained, capsys):
    trained("llama")
    assert main(["export", "--merge", "--out", "merged"]) == 0
    assert "quantised to 4bit" in capsys.readouterr().out
