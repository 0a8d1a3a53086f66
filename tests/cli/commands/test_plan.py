"""What a plan says of a configuration is what training would inject, and every recipe's is what arithmetic gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapters_pl import IA3, LoRA, ParallelAdapter, PrefixTuning, SeriesAdapter, UserError
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.commands.plan import PlanCLI, plan, plan_table
from adapters_pl.cli.main import main
from adapters_pl.models import base as base_model
from adapters_pl.models.base import context_length, load_config, meta_model
from adapters_pl.runs import recipes
from tests.conftest import tiny_config, tiny_model
from tests.helpers.architectures import gemma3

SHAPES = Path(__file__).resolve().parents[2] / "helpers/shapes"
RECIPES = sorted(name.removesuffix(".yaml") for name, files in recipes.available().items() if len(files) > 1)

#: The parameters of each base as transformers counts those of the published weights, shared ones once.
PUBLISHED = {
    "llama7b": 6_738_415_616,
    "llama13b": 13_015_864_320,
    "bloomz7b": 7_069_016_064,
    "gptj6b": 6_050_882_784,
    "opt6.7b": 6_658_473_984,
    "llama3_8b": 8_030_261_248,
    "qwen3_8b": 8_190_735_360,
    "smollm2": 134_515_008,
}


def arguments(recipe):
    """The recipe, planned with the shapes beside the tests instead of what the hub has."""
    return CommandLine.read("plan", ["--config", recipe, "--model.base", str(SHAPES / f"{shape_of(recipe)}.json")])


def shape_of(recipe):
    return recipe.partition("_")[2]


def sizes(name):
    """Of a published configuration: layers, hidden size, inner size, size of all keys, linear layers (out, in)."""
    config = json.loads((SHAPES / f"{name}.json").read_text())
    layers = config.get("num_hidden_layers") or config["n_layer"]
    hidden = config.get("hidden_size") or config.get("n_embd") or config["n_embed"]
    inner = config.get("intermediate_size") or config.get("ffn_dim") or 4 * hidden
    heads = config.get("num_attention_heads") or config["n_head"]
    head_dim = config.get("head_dim") or hidden // heads
    keys = config.get("num_key_value_heads", heads) * head_dim
    attention = [(heads * head_dim, hidden), (keys, hidden), (keys, hidden)]
    if config["model_type"] == "bloom":
        attention = [(3 * hidden, hidden)]
    return layers, hidden, keys, [*attention, (inner, hidden), (hidden, inner)]


def expected(recipe):
    """The recipe's trainable parameters, by hand: no module of the package is asked."""
    layers, hidden, keys, linears = sizes(shape_of(recipe))
    method = recipe.partition("_")[0]
    if method == "prompt":
        return 20 * hidden
    if method == "ptuning":
        return 20 * hidden + (hidden + 1) * 128 + (128 + 1) * 128 + (128 + 1) * hidden
    if method == "ia3":
        scaled = [out for out, _ in linears[:-2]]
        on_a_layer = sum(scaled[-2:]) + linears[-1][1]
    elif method in ("lora", "dora"):
        on_a_layer = sum(32 * (out + into) + (out if method == "dora" else 0) for out, into in linears)
    elif method in ("series", "parallel"):
        on_a_layer = 2 * 256 * hidden
    else:
        assert method == "prefix"
        on_a_layer = 10 * 2 * keys
    return layers * on_a_layer


# ---- the recipes


def test_every_recipe_has_the_shapes_of_its_base():
    assert {shape_of(recipe) for recipe in RECIPES} == {path.stem for path in SHAPES.glob("*.json")} == set(PUBLISHED)
    bases = {(shape_of(recipe), recipes.merged(recipe)["model"]["base"].value) for recipe in RECIPES}
    assert len(bases) == len(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_are_those_of_the_published_weights(name):
    assert plan(meta_model(load_config(str(SHAPES / f"{name}.json"))), []).base == PUBLISHED[name]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_parameters_are_what_arithmetic_gives(recipe):
    cli = PlanCLI(arguments(recipe))
    planned = plan(meta_model(cli.model.config), cli.adapters)
    assert planned.trainable == expected(recipe)
    assert planned.base == PUBLISHED[shape_of(recipe)]


def test_the_papers_first_recipe():
    assert expected("lora_llama7b") == 56_098_816
    cli = PlanCLI(arguments("lora_llama7b"))
    planned = plan(meta_model(cli.model.config), cli.adapters)
    assert planned.trainable == 56_098_816
    assert f"{100 * planned.share:.4f}" == "0.8256"
    assert [(row.modules, row.count, row.base_shape) for row in planned.rows] == [
        ("model.layers.{0-31}.self_attn.q_proj", 32, (4096, 4096)),
        ("model.layers.{0-31}.self_attn.k_proj", 32, (4096, 4096)),
        ("model.layers.{0-31}.self_attn.v_proj", 32, (4096, 4096)),
        ("model.layers.{0-31}.mlp.up_proj", 32, (11008, 4096)),
        ("model.layers.{0-31}.mlp.down_proj", 32, (4096, 11008)),
    ]
    assert planned.rows[3].shapes == {"lora_A": (32, 4096), "lora_B": (11008, 32)}
    assert planned.rows[3].parameters == 32 * 32 * (4096 + 11008)


# ---- the plan of a model


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(rank=4, dora=True),
        LoRA(rank=4, layers="1", rank_pattern={"q_proj": 2}),
        SeriesAdapter(8, placement="both", layer_norm=True),
        ParallelAdapter(8, scaling="learned"),
        IA3(),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
@pytest.mark.parametrize("name", ["llama_gqa", "bloom", "opt", "phi3"])
def test_a_plan_counts_what_would_be_injected_and_leaves_the_model_as_it_was(name, adapter):
    if adapter.init_args().get("rank_pattern") and name in ("bloom", "phi3"):
        adapter = LoRA(rank=4, layers="1")
    with torch.device("meta"):
        skeleton = tiny_model(name)
    before = [path for path, _ in skeleton.named_modules()]
    planned = plan(skeleton, [adapter])
    assert [path for path, _ in skeleton.named_modules()] == before
    model = tiny_model(name)
    assert planned.base == sum(p.numel() for p in model.parameters())
    adapter.attach_to(model)
    own = adapter.adapter_parameters(model)
    assert planned.trainable == sum(p.numel() for p in own.values())
    assert sum(row.count * len(row.shapes) for row in planned.rows) == len(own)
    assert planned.share == pytest.approx(planned.trainable / sum(p.numel() for p in model.parameters()))
    again = plan(model, [adapter])
    assert again == planned
    assert adapter.adapter_parameters(model).keys() == own.keys()


def test_rows_collapse_what_is_alike_and_nothing_else():
    model = tiny_model("llama", num_hidden_layers=6)
    first = LoRA(rank=4, target_modules=["q_proj"], layers="0-2,5", rank_pattern={r"1\.self_attn\.q_proj": 2})
    planned = plan(model, [first, LoRA(rank=2, target_modules=["layers.3.mlp.up_proj"], name="other")])
    assert [(row.adapter, row.modules, row.count, row.shapes["lora_A"]) for row in planned.rows] == [
        ("LoRA 'default'", "model.layers.{0,2,5}.self_attn.q_proj", 3, (4, 32)),
        ("LoRA 'default'", "model.layers.1.self_attn.q_proj", 1, (2, 32)),
        ("LoRA 'other'", "model.layers.3.mlp.up_proj", 1, (2, 32)),
    ]


def test_virtual_tokens_hang_on_the_decoder():
    (row,) = plan(tiny_model("llama_gqa"), [PrefixTuning(virtual_tokens=5)]).rows
    assert (row.modules, row.base_shape) == ("model", None)
    assert row.parameters == 5 * 2 * 2 * 16  # tokens, layers, key and value, key-value heads of 8
    assert list(row.shapes.values()) == [(5, 2 * 2 * 16)]


def test_an_adapter_that_does_not_fit_leaves_nothing_behind():
    model = tiny_model("llama")
    with pytest.raises(UserError, match="matches no linear module"):
        plan(model, [LoRA(rank=4), LoRA(target_modules=["nowhere"], name="other")])
    assert not any("adapters" in path for path, _ in model.named_modules())


def test_the_table_shows_shapes_and_the_sum():
    planned = plan(tiny_model("llama_gqa"), [LoRA(rank=4, placement="attn", target_modules=["k_proj"])])
    cells = [list(column.cells) for column in plan_table(planned, "title").columns]
    assert cells == [["model.layers.{0-1}.self_attn.k_proj"], ["16 × 32"], ["lora_A 4 × 32, lora_B 16 × 4"], ["384"]]
    assert plan_table(planned, "title").columns[3].footer == "384"


# ---- the command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, where reading a weight or a tokenizer fails."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments, **settings):
        raise AssertionError("a plan reads a configuration alone")

    monkeypatch.setattr(base_model.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(base_model.AutoTokenizer, "from_pretrained", refuse)
    return tmp_path


def test_the_command_prints_the_plan_and_writes_nothing(here, capsys):
    given = arguments("lora_llama7b")
    assert (
        main(["plan", *given.words(), "--adapter.rank", "8", "--adapter.placement=attn", "--data.root", "/nowhere"])
        == 0
    )
    out = capsys.readouterr().out
    assert "LoRA 'default' in" in out
    assert "model.layers.{0-31}.self_attn.v_proj" in out
    assert "4096 × 4096" in out
    assert "lora_A 8 × 4096, lora_B 4096 × 8" in out
    assert "trainable parameters: 6,291,456\nbase parameters: 6,738,415,616\n" in out
    assert "trainable share: 0.0933% of 6,744,707,072" in out
    assert list(here.iterdir()) == []


def test_the_command_ends_with_the_memory_that_the_run_needs(here, capsys, monkeypatch):
    monkeypatch.setattr(
        "adapters_pl.training.planning.memory_advice.free_memory", lambda accelerator, processes: 24 * 2**30
    )
    given = arguments("prefix_llama7b")
    assert main(["plan", *given.words(), "--model.activation_checkpointing", "true", "--data.batch_size", "2"]) == 0
    *_, batches, host, line = capsys.readouterr().out.splitlines()
    assert batches == "batches of 2 rows of 256 tokens, all of them labelled"
    assert host.startswith("host: about 13.")
    # 6,738,415,616 weights in two bytes, and a prefix with its gradient and AdamW's two states.
    assert "of 24.0 GiB free (base 12.6 GiB, adapter 10 MiB, gradients 10 MiB, optimizer 20 MiB, activations " in line
    assert line.endswith("); fits")


def test_the_plan_of_a_run_that_does_not_fit_says_what_would(here, capsys, monkeypatch):
    monkeypatch.setattr("adapters_pl.training.planning.memory_advice.free_memory", lambda accelerator, processes: 2**19)
    given = ["--adapter", "LoRA", "--data", "WordProblems", "--data.batch_size", "8", "--trainer.accelerator", "cpu"]
    assert main(["plan", *given]) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("does not fit. No option makes it fit: take a smaller base, or more memory.")
    )


def test_hardware_that_is_not_here_can_be_planned(here, capsys):
    hardware = ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.strategy", "fsdp"]
    assert main(["plan", "--adapter", "LoRA", *hardware]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert " on each of 8 GPUs (base " in line
    assert line.endswith("; there is no GPU here to compare with")


@pytest.mark.parametrize(("chosen", "size"), [([], "2 MiB"), (["--optimizer", "torch.optim.SGD"], "0 MiB")])
def test_the_configured_optimizer_is_planned_with(here, capsys, chosen, size):
    assert main(["plan", "--adapter", "LoRA", *chosen]) == 0
    assert f", optimizer {size}, " in capsys.readouterr().out.splitlines()[-1]


def test_the_command_takes_a_list_of_adapters_an_embedded_base_and_no_data(here, capsys):
    (here / "two.yaml").write_text(
        "adapter:\n- {class_path: LoRA, init_args: {rank: 2}}\n- {class_path: IA3, init_args: {name: scales}}\n"
    )
    assert main(["plan", "--config", "two.yaml"]) == 0
    out = capsys.readouterr().out
    assert "LoRA 'default', IA3 'scales' in quickstart (LlamaForCausalLM)" in out
    assert "base parameters: 1,383,840" in out


def test_the_command_takes_a_directory(here, make_base, capsys):
    assert main(["plan", "--adapter", "SeriesAdapter", "--model.base", str(make_base("opt"))]) == 0
    assert "model.decoder.layers.{0-1}.fc2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Nothing to plan: there is no adapter. Pass --adapter LoRA."),
        (["--adapter", "LoRA", "--adapter.rnk", "4"], "unknown key 'adapter.rnk': did you mean 'rank'?"),
        (["--adapter", "LoRA", "--adapter.rank", "0"], "adapter.rank is 0; it must be at least 1."),
        (["--adapter", "LoRA", "--adapter.target_modules", "[w]"], "'w' matches no linear module of LlamaForCausalLM"),
        (["--adapter", "LoRA", "--model.base", "./nowhere"], "base './nowhere': no such directory."),
        (["--adapter", "LoRA", "--model.base", "empty.json"], "base 'empty.json': this file is no model configuration"),
        (["--config", "lora_lama7b"], "config 'lora_lama7b': no such file or recipe: did you mean"),
    ],
)
def test_what_is_wrong_is_an_error_of_one_line(here, capsys, given, message):
    (here / "empty.json").write_text("{}")
    assert main(["plan", *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_the_options_of_fit(here, capsys):
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: adapters-pl plan" in out
    assert "--adapter" in out


def test_a_fault_of_ours_is_told_from_an_error_of_the_users(here, capsys, monkeypatch):
    monkeypatch.setattr("adapters_pl.training.adapted.meta_model", lambda *given: 1 / 0)
    assert main(["plan", "--adapter", "LoRA"]) == 2
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["plan", "--adapter", "LoRA", "--debug"])


# ---- a configuration alone


def test_a_configuration_alone_has_no_weights_to_train_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_config("llama").save_pretrained(tmp_path)
    for load in (base_model.load_base, base_model.load_tokenizer):
        with pytest.raises(UserError, match="a configuration alone has no weights and no tokenizer"):
            load("config.json")
    assert main(["fit", "--adapter", "LoRA", "--model.base", "config.json", "--data", "WordProblems"]) == 1
    assert "a configuration alone has no weights" in capsys.readouterr().err


def test_the_context_of_a_multimodal_model_is_its_decoders():
    assert context_length(gemma3().config) == 131_072
