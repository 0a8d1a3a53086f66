"""LoRA: its equation, its initial values, its arguments."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import CausalLMModule, InstructionJSON, LoRA, UserError, load_adapter
from adapters_pl.adapters import adapter_layers
from tests.conftest import tiny_model
from tests.helpers.training import fit, trainer


def test_the_equation():
    model = tiny_model("llama")
    linear = model.model.layers[0].self_attn.q_proj
    weight = linear.weight.detach().clone()
    LoRA(rank=4, alpha=12, dropout=0.5, target_modules=["layers.0.self_attn.q_proj"]).attach_to(model)
    layer = model.eval().model.layers[0].self_attn.q_proj.adapters["default"]
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(2, 5, 32)
    expected = x @ weight.T + 3.0 * (x @ layer.lora_A.T @ layer.lora_B.T)
    assert torch.allclose(linear(x), expected, atol=1e-5)


def test_the_first_matrix_is_uniform_and_the_second_zero():
    model = tiny_model("llama")
    LoRA(rank=16).attach_to(model, seed=0)
    for layer in adapter_layers(model).values():
        bound = layer.lora_A.shape[1] ** -0.5
        assert layer.lora_A.abs().max() <= bound
        assert layer.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not layer.lora_B.any()


def test_gaussian_initial_values_have_the_standard_deviation_one_over_rank():
    model = tiny_model("llama")
    LoRA(rank=16, init="gaussian").attach_to(model, seed=0)
    drawn = torch.cat([layer.lora_A.flatten() for layer in adapter_layers(model).values()])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=0.003)


def test_patterns_choose_rank_and_alpha_by_the_end_of_a_path():
    model = tiny_model("llama")
    LoRA(rank=8, alpha=16, rank_pattern={"q_proj": 2, r"layers\.1\..*": 4}, alpha_pattern={"mlp.up_proj": 3}).attach_to(
        model
    )
    layer = model.model.layers[0].self_attn.q_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (2, 8.0)
    layer = model.model.layers[1].self_attn.k_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (4, 4.0)
    layer = model.model.layers[0].mlp.up_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (8, 3 / 8)


def test_rank_stabilised_scaling():
    model = tiny_model("llama")
    LoRA(rank=16, alpha=8, rslora=True).attach_to(model)
    assert {layer.scaling for layer in adapter_layers(model).values()} == {2.0}


def test_lora_plus_gives_the_b_matrices_a_group_of_their_own():
    model = tiny_model("llama")
    adapter = LoRA(rank=4, lr_ratio=16)
    adapter.attach_to(model)
    rest, fast = adapter.parameter_groups(model)
    layers = list(adapter_layers(model).values())
    assert {id(p) for p in fast["params"]} == {id(layer.lora_B) for layer in layers}
    assert {id(p) for p in rest["params"]} == {id(layer.lora_A) for layer in layers}
    assert (fast["lr_ratio"], rest.get("lr_ratio", 1)) == (16, 1)


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = tiny_model("llama")
    LoRA(rank=4, dropout=0.5).attach_to(model)
    layer = next(iter(adapter_layers(model).values()))
    with torch.no_grad():
        layer.lora_B.fill_(1.0)
    x, y = torch.ones(64, 32), torch.zeros(64, 32)
    layer.train()
    assert len(layer.after(x, y, torch.nn.Identity()).unique(dim=0)) > 1
    layer.eval()
    assert len(layer.after(x, y, torch.nn.Identity()).unique(dim=0)) == 1


@pytest.mark.parametrize("training", [True, False])
def test_new_layers_are_in_the_mode_of_what_they_hang_on(training):
    model = tiny_model("llama").train(training)
    LoRA(rank=4, dropout=0.5).attach_to(model)
    assert {layer.training for layer in adapter_layers(model).values()} == {training}


def test_a_modules_first_values_are_its_own_whatever_else_is_adapted():
    few, many = tiny_model("llama"), tiny_model("llama")
    LoRA(rank=4, placement="mlp", layers="1").attach_to(few)
    LoRA(rank=4).attach_to(many)
    of_few, of_many = ({path: layer.lora_A for path, layer in adapter_layers(m).items()} for m in (few, many))
    assert len(of_few) == 2
    assert all(torch.equal(matrix, of_many[path]) for path, matrix in of_few.items())
    assert len({tuple(matrix.flatten().tolist()) for matrix in of_many.values()}) == 10


def test_defaults_are_the_papers():
    assert LoRA().init_args() == {
        "rank": 32,
        "alpha": 64,
        "dropout": 0.05,
        "placement": "both",
        "target_modules": None,
        "rslora": False,
        "dora": False,
        "init": "kaiming",
        "bias": "none",
        "parts": None,
        "rank_pattern": None,
        "alpha_pattern": None,
        "lr_ratio": 1.0,
        "name": "default",
        "layers": None,
        "exclude": None,
        "modules_to_save": None,
    }


def test_the_default_in_llama_7b_has_the_papers_number_of_parameters():
    """Planned on the meta device: q, k, v (4096 x 4096), up and down (4096 x 11008), rank 32, 32 layers."""
    from transformers import LlamaConfig

    from adapters_pl.models.base import meta_model

    model, adapter = meta_model(LlamaConfig()), LoRA()
    adapter.attach_to(model, seed=None)
    by_hand = 32 * 32 * (3 * (4096 + 4096) + 2 * (4096 + 11008))
    assert sum(p.numel() for p in adapter.adapter_parameters(model).values()) == by_hand == 56_098_816


def test_two_adapters_add_up():
    model = tiny_model("llama")
    one, two = LoRA(rank=2, name="one"), LoRA(rank=3, name="two", placement="attn")
    one.attach_to(model)
    two.attach_to(model)
    x = torch.randn(4, 32)
    linear = model.model.layers[1].self_attn.v_proj
    with torch.no_grad():
        plain = linear(x)
        for layer in adapter_layers(model).values():
            layer.lora_B.normal_()
        model.eval()
        both = linear(x)
        with one.disabled(model):
            only_two = linear(x)
        with two.disabled(model):
            only_one = linear(x)
    assert torch.allclose(both - plain, (only_one - plain) + (only_two - plain), atol=1e-5)
    assert not set(one.adapter_parameters(model)) & set(two.adapter_parameters(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rank_pattern": {"q_proj": 0}}, "a rank in rank_pattern is 0"),
        ({"lr_ratio": 0}, "lr_ratio is 0"),
        ({"placement": "mpl"}, "placement 'mpl'"),
        ({"name": "a.b"}, "adapter name 'a.b'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LoRA(**arguments)


def test_a_rank_beyond_the_layer_is_refused_and_nothing_is_injected():
    model = tiny_model("llama")
    with pytest.raises(UserError, match=r"rank 33 is larger than model\.layers\.0\.self_attn\.q_proj \(32 x 32\)"):
        LoRA(rank=33).attach_to(model)
    assert adapter_layers(model) == {}


def test_a_rank_between_the_two_sides_of_a_layer_is_allowed():
    """Key and value are narrow under grouped queries; a recipe's rank need not fit them."""
    model = tiny_model("llama_gqa")
    LoRA(rank=24, placement="attn").attach_to(model)
    assert model.model.layers[0].self_attn.k_proj.adapters["default"].lora_B.shape == (16, 24)


def test_a_taken_name_is_refused():
    model = tiny_model("llama")
    LoRA(rank=2).attach_to(model)
    linear = model.model.layers[0].self_attn.q_proj
    from adapters_pl.adapters import attach
    from adapters_pl.adapters.lora_layers import LoRALayer
    from adapters_pl.models.placement import Site

    layer = LoRALayer(Site("x", 0, 32, 32), 2, 2.0, 0.0, "kaiming")
    with pytest.raises(UserError, match="Two adapters are named 'default'"):
        attach(linear, layer, "default")


def test_the_description_counts_parameters_and_share():
    model = tiny_model("llama")
    adapter = LoRA(rank=2, placement="attn")
    adapter.attach_to(model)
    # three projections of 32 x 32 in each of two layers, with two matrices of rank 2
    own = 2 * 3 * 2 * (32 + 32)
    total = sum(p.numel() for p in model.parameters())
    assert adapter.describe(model) == (
        f"LoRA 'default': 6 modules (k_proj, q_proj, v_proj), {own} trainable parameters, "
        f"{100 * own / total:.3g}% of {total:,}"
    )


def test_a_merge_that_is_not_finite_is_refused_and_undone():
    model = tiny_model("llama")
    adapter = LoRA(rank=2)
    adapter.attach_to(model)
    weights = {name: value.clone() for name, value in model.state_dict().items() if "adapters" not in name}
    layers = list(adapter_layers(model).values())
    with torch.no_grad():
        layers[-1].lora_B.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        adapter.merge(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(layer.enabled for layer in layers)


# ---- initial values from the weight, biases, parts of a fused projection


@pytest.mark.parametrize("alpha", [4, 12])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pissa_begins_as_the_best_approximation_of_the_weight(name, alpha):
    model = tiny_model(name)
    LoRA(rank=4, alpha=alpha, init="pissa").attach_to(model)
    for path, layer in adapter_layers(model).items():
        weight = model.get_submodule(path.removesuffix(".adapters.default")).weight
        weight = weight.T if name == "gpt2" else weight
        u, s, v = torch.linalg.svd(weight)
        assert torch.allclose(layer.scaling * layer.lora_B @ layer.lora_A, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5)
        # Both matrices take the same share, as in the paper's equation 2.
        assert torch.allclose(layer.lora_A.norm(dim=1), layer.lora_B.norm(dim=0), rtol=1e-4)


def test_olora_begins_as_a_qr_decomposition():
    model = tiny_model("llama")
    LoRA(rank=4, alpha=12, init="olora").attach_to(model)
    for path, layer in adapter_layers(model).items():
        q, r = torch.linalg.qr(model.get_submodule(path.removesuffix(".adapters.default")).weight)
        assert torch.allclose(layer.lora_B @ layer.lora_A, q[:, :4] @ r[:4], atol=1e-5)
        assert torch.allclose(layer.lora_B.T @ layer.lora_B, torch.eye(4), atol=1e-5)


def test_pissa_is_the_identity_at_step_0_in_training_too():
    model, ids = tiny_model("llama"), torch.tensor([[5, 6, 7]])
    LoRA(rank=4, dropout=0.5, init="pissa").attach_to(model)
    assert torch.equal(model.train()(ids).logits, tiny_model("llama")(ids).logits)


def test_pissa_takes_pefts_first_step(tmp_path):
    """One step of SGD moves both implementations to the same function."""
    from peft import LoraConfig, get_peft_model

    model, ids = tiny_model("llama"), torch.tensor([[5, 6, 7, 8]])
    adapter = LoRA(rank=4, alpha=8, dropout=0.0, init="pissa", placement="attn")
    adapter.attach_to(model)
    targets = ["q_proj", "k_proj", "v_proj"]
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=targets)
    theirs = get_peft_model(tiny_model("llama"), config)
    for one in (model, theirs):
        one(ids, labels=ids).loss.backward()
        torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.5).step()
    assert torch.allclose(model(ids).logits, theirs(ids).logits, atol=1e-4)
    assert not torch.allclose(model(ids).logits, tiny_model("llama")(ids).logits, atol=1e-2)


@pytest.mark.parametrize("arguments", [{"init": "pissa"}, {"init": "olora", "dora": True, "parts": ["q"]}])
def test_a_checkpoint_keeps_the_first_values_and_does_not_take_them_again(arguments, tmp_path, make_base, rows_file):
    adapter = LoRA(rank=4, dropout=0.0, bias="all", **arguments)
    module, run = fit(tmp_path, make_base(), rows_file, adapter)
    run.save_checkpoint(tmp_path / "pissa.ckpt")
    ids = torch.tensor([[5, 6, 7]])
    trained = module.model.eval()(ids).logits
    base = tiny_model("llama")
    with torch.no_grad():  # a base that another dtype has rounded has other singular vectors
        rounded = base.model.layers[0].self_attn.q_proj.weight
        rounded.copy_(rounded.to(torch.bfloat16))
    loaded = load_adapter(base, tmp_path / "pissa.ckpt")
    layers = adapter_layers(module.model)
    for path, layer in adapter_layers(loaded).items():
        assert all(torch.equal(value, layers[path].state_dict()[key]) for key, value in layer.state_dict().items())
    assert torch.allclose(load_adapter(tiny_model("llama"), tmp_path / "pissa.ckpt")(ids).logits, trained, atol=1e-5)
    # Going on from it restores them too.
    again, data = CausalLMModule(str(make_base())), InstructionJSON(path=str(rows_file), val_size=4)
    resumed = trainer(tmp_path, LoRA(**adapter.init_args()))
    resumed.fit(again, datamodule=data, ckpt_path=tmp_path / "pissa.ckpt", weights_only=True)
    assert torch.equal(again.model.eval()(ids).logits, trained)


def test_pissa_needs_weights_that_can_be_decomposed():
    model = tiny_model("llama")
    projection = model.model.layers[0].self_attn.k_proj
    projection.weight = torch.nn.Parameter(torch.zeros(32 * 32 // 2, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=r"init pissa decomposes weights, but that of .*k_proj is quantised"):
        LoRA(rank=4, init="pissa").attach_to(model)
    assert adapter_layers(model) == {}
    with pytest.raises(UserError, match=r"rank 24 is too large for init pissa in .*k_proj: choose at most 16"):
        LoRA(rank=24, init="pissa").attach_to(tiny_model("llama_gqa"))


def test_biases_are_trained_where_they_are_wanted():
    """Of OPT's two layers, five linear modules each are adapted, and every linear module and norm has a bias."""
    every = sum(name.endswith("bias") for name, _ in tiny_model("opt").named_parameters())
    assert every == 2 * (6 + 2) + 1
    for bias, count in (("none", 0), ("lora_only", 2 * 5), ("all", every)):
        model, adapter = tiny_model("opt"), LoRA(rank=4, bias=bias)
        adapter.attach_to(model)
        declared = adapter.adapter_parameters(model)
        biases = [name for name in declared if name.endswith("bias")]
        assert len(biases) == count
        for name in biases:
            assert torch.equal(declared[name], model.get_submodule(name.split(".adapters.")[0]).bias)


def test_a_trained_bias_takes_the_place_of_the_bases():
    model = tiny_model("opt")
    adapter = LoRA(rank=4, bias="all")
    adapter.attach_to(model.eval())
    linear, norm = model.model.decoder.layers[0].fc1, model.model.decoder.layers[0].final_layer_norm
    x = torch.randn(3, 32)
    with torch.no_grad():
        for module, own in ((linear, "base_bias"), (norm, "bias")):
            plain = module(x) - module.bias
            getattr(module.adapters["default"], own).fill_(2.0)
            assert torch.allclose(module(x), plain + 2.0, atol=1e-5)


@pytest.mark.parametrize("parts", [["q"], ["v", "k"], ["q", "k", "v"]])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "bloom", "gpt_neox", "phi3", "falcon", "opt"])
def test_parts_change_the_same_rows_in_fused_and_in_separate_projections(name, parts):
    from adapters_pl.models.discovery import architecture_of

    model = tiny_model(name)
    arch = architecture_of(model)
    adapter = LoRA(rank=4, parts=parts, placement="attn", dropout=0.0)
    adapter.attach_to(model.eval())
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.lora_B.normal_()
    x = torch.randn(3, 32)
    for index, own in ((index, own) for index in range(2) for own in arch.attn.inputs):
        module = model.get_submodule(f"{arch.layers}.{index}.{own}")
        with torch.no_grad():
            adapted = module(x)
            with adapter.disabled(model):
                changed = ((adapted - module(x)) != 0).all(dim=0)
        if arch.fused:
            rows = arch.fused.parts(model.config, adapted.shape[-1])
            expected = torch.zeros_like(changed)
            expected[torch.cat([rows[part] for part in parts])] = True
            assert torch.equal(changed, expected)
            assert module.adapters["default"].lora_B.shape == (int(expected.sum()), 4)
        else:
            wanted = dict(zip(arch.attn.inputs, "qkv", strict=True))[own] in parts
            assert bool(changed.all() if wanted else not changed.any())
    projections = len(arch.attn.inputs) if not arch.fused else 1
    assert len(adapter_layers(model)) == 2 * (len(parts) if projections == 3 else 1)


def test_parts_leave_the_mlp_as_it_is_and_need_an_attention():
    model = tiny_model("gpt2")
    LoRA(rank=4, parts=["v"]).attach_to(model)
    assert len(adapter_layers(model)) == 6
    with pytest.raises(UserError, match="no query, key or value is among the modules"):
        LoRA(rank=4, parts=["v"], placement="mlp").attach_to(tiny_model("gpt2"))
    with pytest.raises(UserError, match="leave no module"):
        LoRA(rank=4, parts=["v"], target_modules=["q_proj"]).attach_to(tiny_model("llama"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "zeros"}, "init 'zeros': choose kaiming, gaussian, pissa or olora"),
        ({"bias": "some"}, "bias 'some'"),
        ({"parts": []}, "choose some of q, k and v"),
        ({"parts": ["q", "x"]}, "choose some of q, k and v"),
        ({"init": "pissa", "alpha": 0}, "every alpha must be above 0"),
    ],
)
def test_bad_choices_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LoRA(**arguments)
