"""Methods of peft's, through the same matrix as our own."""

from __future__ import annotations

import copy
import json
import sys

import peft
import pytest
import torch
from peft import PeftModel

from adapters_pl import (
    CausalLMModule,
    InstructionJSON,
    LoRA,
    PEFTAdapter,
    PrefixTuning,
    UserError,
    load_adapter,
    save_adapter,
)
from adapters_pl.adapters import activate, adapter_layers
from adapters_pl.adapters.base import describe_adapter
from adapters_pl.cli.main import main
from adapters_pl.models.base import meta_model
from adapters_pl.models.fingerprint import fingerprint
from adapters_pl.training.checkpoint import build_adapter
from tests.conftest import tiny_config, tiny_model
from tests.helpers.methods import logits, perturb, tokens, untouched
from tests.helpers.training import fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore")

#: The configuration, and whether the method begins as the base.
CONFIGS = {
    "adalora": (lambda: peft.AdaLoraConfig(total_step=10, init_r=4, target_r=2), True),
    "vera": (lambda: peft.VeraConfig(r=4), True),
    "vera-unsaved": (lambda: peft.VeraConfig(r=4, save_projection=False), True),
    "randlora": (lambda: peft.RandLoraConfig(r=4), True),
    "fourierft": (lambda: peft.FourierFTConfig(n_frequency=20, scaling=10.0), False),
    "ia3": (lambda: peft.IA3Config(), True),
    "lntuning": (lambda: peft.LNTuningConfig(), True),
    "gralora": (lambda: peft.GraloraConfig(r=4), True),
    "hira": (lambda: peft.HiraConfig(r=4), True),
    "vblora": (lambda: peft.VBLoRAConfig(num_vectors=16, vector_length=8, r=2, topk=2), False),
    "waveft": (lambda: peft.WaveFTConfig(n_frequency=20, scaling=10.0), True),
    "lora": (lambda: peft.LoraConfig(r=4, init_lora_weights="orthogonal"), True),
    # These know nn.Linear only.
    "oft": (lambda: peft.OFTConfig(oft_block_size=4, r=0), True),
    "boft": (lambda: peft.BOFTConfig(boft_block_size=4), True),
    "loha": (lambda: peft.LoHaConfig(r=4), True),
    "lokr": (lambda: peft.LoKrConfig(r=4), True),
    "hra": (lambda: peft.HRAConfig(r=4), True),
    "c3a": (lambda: peft.C3AConfig(block_size=8), False),
    "delora": (lambda: peft.DeloraConfig(r=4), True),
    "miss": (lambda: peft.MissConfig(r=4), True),
}
LINEAR_ONLY = ("oft", "boft", "loha", "lokr", "hra", "c3a", "delora", "miss")
#: The methods that go through every check on a third architecture too, one of each kind.
EVERYWHERE = ("adalora", "vera", "ia3", "lntuning", "lora", "oft", "loha")
CELLS = [
    pytest.param((method, arch), id=f"{method}-{arch}")
    for method in CONFIGS
    for arch in ("llama", "gpt2", "bloom")
    if method in EVERYWHERE or arch == "llama" or (arch == "bloom") == (method in LINEAR_ONLY)
    if arch != "gpt2" or method not in LINEAR_ONLY
]


@pytest.fixture(params=CELLS)
def cell(request):
    """A model with an injected adapter, its twin without, the adapter, and whether step 0 is the identity."""
    method, arch = request.param
    make, identity = CONFIGS[method]
    base = untouched(arch)
    model, adapter = copy.deepcopy(base), PEFTAdapter(make())
    torch.manual_seed(0)
    assert adapter.attach_to(model, seed=1)
    return model.eval(), base, adapter, identity


def test_the_function_at_step_0(cell):
    model, base, _, identity = cell
    assert torch.allclose(logits(model), logits(base), atol=1e-5) == identity


def test_only_declared_parameters_change(cell):
    model, _, adapter, _ = cell
    declared = adapter.adapter_parameters(model)
    assert declared
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    perturb(model, adapter)
    model(**tokens()).logits.square().mean().backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trainable, lr=0.1).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(declared)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(declared)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in declared.values())


def test_disabled_is_the_base_and_enabling_changes_no_gradient(cell):
    model, base, adapter, _ = cell
    perturb(model, adapter)
    before = logits(model)
    for parameter in adapter.adapter_parameters(model).values():
        parameter.requires_grad_(False)
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), before)
    assert not torch.allclose(before, logits(base), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    activate(model)
    assert torch.equal(logits(model), logits(base))


def test_merged_equals_unmerged_and_the_undo_is_exact(cell):
    model, _, adapter, _ = cell
    perturb(model, adapter)
    unmerged = logits(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    undo = adapter.merge(model)
    again = adapter.merge(model)
    assert torch.allclose(logits(model), unmerged, atol=1e-3)  # rotations are inverted and powers taken in float32
    again()
    undo()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), unmerged)


def test_save_and_load_here_and_in_peft(cell, tmp_path):
    model, base, adapter, _ = cell
    perturb(model, adapter)
    save_adapter(model, adapter, tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    loaded = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_second_attachment_changes_nothing_and_detaching_gives_the_base_back(cell):
    model, base, adapter, _ = cell
    perturb(model, adapter)
    before = logits(model)
    assert not adapter.attach_to(model, seed=1)
    assert torch.equal(logits(model), before)
    adapter.detach_from(model)
    assert adapter_layers(model) == {}
    assert model.state_dict().keys() == base.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model), logits(base))


def test_initial_values_depend_on_the_seed_alone_and_leave_the_generator_alone(cell):
    model, base, adapter, _ = cell
    values = {name: p.clone() for name, p in adapter.adapter_parameters(model).items()}
    same = copy.deepcopy(base)
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    adapter.attach_to(same, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, values[name]) for name, p in adapter.adapter_parameters(same).items())


def test_the_base_keeps_its_fingerprint(cell):
    model, base, _, _ = cell
    assert fingerprint(model) == fingerprint(base)


def test_the_arguments_are_plain_and_build_it_again(cell, tmp_path):
    model, base, adapter, _ = cell
    perturb(model, adapter)
    described = describe_adapter(adapter)
    torch.save(described, tmp_path / "described")
    assert json.loads(json.dumps(described)) == described
    again = build_adapter(torch.load(tmp_path / "described", weights_only=True))
    assert again.init_args() == adapter.init_args()
    twin = copy.deepcopy(base)
    again.attach_to(twin, seed=None)
    assert again.adapter_state(twin).keys() == adapter.adapter_state(model).keys()
    twin.load_state_dict(adapter.adapter_state(model), strict=False)
    assert torch.equal(logits(twin.eval()), logits(model))


def test_a_deep_copy_is_independent(cell):
    model, _, adapter, _ = cell
    perturb(model, adapter)
    twin = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(twin), before)
    with adapter.disabled(twin):
        assert torch.equal(logits(model), before)
    adapter.detach_from(twin)
    assert torch.equal(logits(model), before)


def test_generation_with_cache_equals_generation_without(cell):
    model, _, adapter, _ = cell
    perturb(model, adapter)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(**tokens(), use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(**tokens(), use_cache=False, **settings))


def test_it_is_planned_on_the_meta_device(cell):
    model, _, adapter, _ = cell
    skeleton = meta_model(tiny_config(model.config.model_type))
    assert adapter.attach_to(skeleton, seed=None)
    shapes = {name: p.shape for name, p in adapter.adapter_parameters(skeleton).items()}
    assert shapes == {name: p.shape for name, p in adapter.adapter_parameters(model).items()}


# ---- directories of peft's, other adapters, and what is refused


@pytest.mark.parametrize("method", ["vera", "oft", "loha", "fourierft", "adalora"])
def test_directories_that_peft_wrote_are_read(method, tmp_path):
    config = CONFIGS[method][0]()
    config.target_modules = ["q_proj", "v_proj"]
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(tiny_model("llama"), tmp_path)
    assert torch.allclose(logits(ours), logits(theirs.eval()), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(tiny_model("llama")), atol=1e-3)


def test_placement_chooses_where_the_configuration_names_nothing():
    model = tiny_model("llama")
    adapter = PEFTAdapter(peft.LoHaConfig(r=4), placement="mlp", layers="1")
    adapter.attach_to(model)
    parameters = adapter.adapter_parameters(model)
    assert {name.split(".hada")[0] for name in parameters} == {
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    }
    assert adapter.describe(model).startswith("PEFTAdapter 'default': LOHA in 2 modules, ")


def test_parameters_are_float32_on_a_bfloat16_base():
    model = tiny_model("llama").to(torch.bfloat16)
    adapter = PEFTAdapter(peft.LoHaConfig(r=4))
    adapter.attach_to(model)
    assert {p.dtype for p in adapter.adapter_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_modules_to_save_are_copies_and_the_base_stays(tmp_path):
    model = tiny_model("llama")
    adapter = PEFTAdapter(peft.LoHaConfig(r=4, modules_to_save=["lm_head"]))
    adapter.attach_to(model)
    perturb(model, adapter)
    assert sum("lm_head" in name for name in adapter.adapter_parameters(model)) == 1
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    save_adapter(model, adapter, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    assert torch.equal(logits(load_adapter(tiny_model("llama"), tmp_path)), logits(model))
    with pytest.raises(UserError, match="cannot be merged"):
        adapter.merge(model)


def test_it_stands_beside_adapters_of_ours():
    model = tiny_model("llama")
    ours, theirs = LoRA(rank=4, name="ours"), PEFTAdapter(peft.LoHaConfig(r=4), name="theirs")
    prefix = PrefixTuning(3, name="prefix")
    for adapter in (ours, prefix, theirs):
        adapter.attach_to(model)
        perturb(model, adapter)
    declared = [set(adapter.adapter_parameters(model)) for adapter in (ours, prefix, theirs)]
    assert len(set.union(*declared)) == sum(map(len, declared))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set.union(*declared)
    all_active = logits(model.eval())
    activate(model, "ours")
    alone = tiny_model("llama")
    ours.attach_to(alone)
    perturb(alone, ours)
    assert torch.allclose(logits(alone.eval()), logits(model), atol=1e-5)
    activate(model, "ours", "prefix", "theirs")
    assert torch.equal(logits(model), all_active)
    with pytest.raises(UserError, match="there can be one"):
        PEFTAdapter(peft.LoHaConfig(r=4), name="more").attach_to(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3), r"PromptTuningConfig cannot be injected; .*LOHA.* can"),
        (lambda: peft.AdaptionPromptConfig(), "AdaptionPromptConfig cannot be injected"),
        (lambda: peft.LoraConfig(bias="all"), "bias other than 'none'"),
        (lambda: peft.LoraConfig(init_lora_weights="pissa"), "'pissa' changes the base"),
        (lambda: None, "which method"),
        (lambda: {"class_path": "os.path.Nothing"}, r"peft_config os\.path\.Nothing: "),
        (lambda: {"class_path": "builtins.dict"}, "no configuration of peft's"),
        (lambda: {"class_path": "peft.LoHaConfig", "init_args": {"rr": 4}}, "rr"),
        (lambda: {"class_path": "peft.AdaLoraConfig"}, "total_step"),
    ],
)
def test_what_cannot_be_injected_is_refused_in_one_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        PEFTAdapter(config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arch", "targets"), [("gpt2", ["c_attn"]), ("gpt2", ["nothing"]), ("llama", ["q_proj", "model.norm"])]
)
def test_a_failed_injection_leaves_the_model_as_it_was(arch, targets):
    """The last one fails when q_proj has been wrapped already."""
    model, base = tiny_model(arch), tiny_model(arch)
    with pytest.raises(UserError, match="peft cannot inject LOHA here: "):
        PEFTAdapter(peft.LoHaConfig(r=4, target_modules=targets)).attach_to(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(logits(model), logits(base))
    assert not hasattr(model, "peft_config")


def test_without_peft_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'adapters-pl\[peft\]'"):
        PEFTAdapter({"class_path": "peft.VeraConfig"})
    assert not PEFTAdapter.reads({"peft_type": "VERA"})


# ---- training


def pruned(folder, base, rows_file, ckpt_path=None, **settings):
    config = peft.AdaLoraConfig(total_step=9, init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, orth_reg_weight=0.5)
    adapter = PEFTAdapter(config)
    module = CausalLMModule(str(base), lr=1e-2)
    run = trainer(folder, adapter, max_epochs=2, **settings)
    data = InstructionJSON(path=str(rows_file), val_size=4, batch_size=12)
    run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return adapter, module, run


def energies(module):
    return {name: value for name, value in module.state_dict().items() if ".lora_E." in name}


def test_adalora_prunes_to_its_target_and_goes_on_where_it_was(tmp_path, make_base, rows_file):
    adapter, module, run = pruned(tmp_path, make_base(), rows_file)
    assert run.global_step == 6
    kept = sum(int(value.count_nonzero()) for value in energies(module).values())
    assert kept == 2 * len(energies(module))
    run.save_checkpoint(tmp_path / "whole.ckpt")
    half, _, stopped = pruned(tmp_path, make_base(), rows_file, max_steps=5)
    assert half._adalora().config.total_step == 5
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    again, resumed, _ = pruned(tmp_path, make_base(), rows_file, ckpt_path=tmp_path / "whole.ckpt")
    assert again.state_dict()["rank_pattern"] == adapter.state_dict()["rank_pattern"]
    assert again.state_dict()["ipt"].keys() == adapter.state_dict()["ipt"].keys()
    assert all(torch.equal(value, energies(module)[name]) for name, value in energies(resumed).items())


def test_adaloras_penalty_pulls_its_factors_towards_orthogonal():
    model = tiny_model("llama")
    adapter = PEFTAdapter(peft.AdaLoraConfig(total_step=10, init_r=4, orth_reg_weight=0.5))
    adapter.attach_to(model)
    wrapped = PeftModel(
        tiny_model("llama"),
        peft.AdaLoraConfig(
            total_step=10,
            init_r=4,
            orth_reg_weight=0.5,
            target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        ),
    )
    state = {key.replace("peft_adapter", "default"): value for key, value in adapter.adapter_state(model).items()}
    wrapped.base_model.model.load_state_dict(state, strict=False)
    ids = tokens()["input_ids"]
    plain = wrapped.base_model.model(ids, labels=ids).loss
    (wrapped.base_model(ids, labels=ids).loss - plain).backward()
    adapter.on_before_optimizer_step(None, None, None)
    theirs = {
        name.replace("default", "peft_adapter"): p.grad for name, p in wrapped.base_model.model.named_parameters()
    }
    for name, parameter in adapter.adapter_parameters(model).items():
        if "lora_E" not in name:
            assert torch.allclose(parameter.grad, theirs[name], atol=1e-5), name
            assert parameter.grad.abs().sum() > 0


def test_a_checkpoint_holds_it_and_gives_it_back(tmp_path, make_base, rows_file):
    module, run = fit(tmp_path, make_base(), rows_file, PEFTAdapter(peft.VeraConfig(r=4), name="v"))
    run.save_checkpoint(tmp_path / "vera.ckpt")
    loaded = load_adapter(tiny_model("llama"), tmp_path / "vera.ckpt")
    assert torch.allclose(logits(loaded), logits(module.model.eval()), atol=1e-5)  # which attends by another kernel
    assert torch.equal(logits(load_adapter(tiny_model("llama"), tmp_path / "vera.ckpt", "other")), logits(loaded))
    restored = CausalLMModule(str(make_base()))
    data = InstructionJSON(path=str(rows_file), val_size=4, max_new_tokens=4)
    adapter = build_adapter(describe_adapter(module.adapters["v"]))
    trainer(tmp_path, adapter).test(restored, datamodule=data, ckpt_path=tmp_path / "vera.ckpt", weights_only=True)
    assert torch.equal(logits(restored.model), logits(module.model))


def test_the_command_line_takes_peft_configurations_by_class(tmp_path, monkeypatch, make_base, rows_file, capsys):
    monkeypatch.chdir(tmp_path)
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    adapter = ["--adapter", "PEFTAdapter", "--adapter.peft_config=peft.LoHaConfig", "--adapter.peft_config.r=2"]
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert (
        main(
            [
                "fit",
                *own,
                "--data.val_size",
                "4",
                "--data.max_new_tokens",
                "4",
                *quick,
                *adapter,
                "--trainer.max_steps",
                "2",
            ]
        )
        == 0
    )
    assert main(["test", *quick]) == 0
    assert "PEFTAdapter 'default'" in capsys.readouterr().out
    stored = torch.load("runs/peftadapter-1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert len(stored) == 40
