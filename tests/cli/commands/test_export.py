"""``export`` and ``--adapter_path``: adapters that leave for other tools, and adapters that come from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters_pl import IA3, LoRA, ParallelAdapter, PrefixTuning, PTuning, SeriesAdapter, load_adapter, save_adapter
from adapters_pl.cli.commands.export import export_adapter, export_merged
from adapters_pl.cli.main import main
from tests.conftest import tiny_model

IDS = torch.tensor([[1, 40, 41, 42, 43]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def saved(make_base, folder):
    """Save a perturbed adapter of a tiny base as a directory; returns the directory, the base and the logits."""

    def save(adapter, name="llama"):
        base = make_base(name)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapter.attach_to(model)
        with torch.no_grad():
            for parameter in adapter.adapter_parameters(model).values():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_adapter(model, adapter, "adapter", str(base))
        return Path("adapter"), base, model.eval()(IDS).logits

    return save


@pytest.fixture
def trained(folder, make_base, rows_file):
    """A finished run."""

    def fit(*adapter):
        data = ["--data", "InstructionJSON", "--data.path", str(rows_file), "--data.max_new_tokens", "6"]
        own = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        assert main(["fit", "--model.base", str(make_base()), *data, *own, *adapter]) == 0

    return fit


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2"])
@pytest.mark.parametrize("method", [lambda: LoRA(4, 8), lambda: LoRA(4, 8, dora=True), IA3])
def test_a_merged_model_is_a_plain_model_that_computes_the_same(saved, name, method):
    source, base, logits = saved(method(), name)
    assert main(["export", "--adapter_path", str(source), "--out", "merged", "--merge"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert torch.allclose(merged(IDS).logits, logits, atol=1e-4)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(base)(IDS).logits, logits, atol=1e-3)
    assert merged.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    assert len(AutoTokenizer.from_pretrained("merged")) == len(AutoTokenizer.from_pretrained(base))


def test_a_merged_model_has_the_dtype_of_its_base_or_the_one_asked_for(saved, tmp_path):
    source, base, _ = saved(LoRA(4, 8))
    half = AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        export_merged(source, f"merged-{dtype}", str(tmp_path / "half"), dtype=dtype)
        assert AutoModelForCausalLM.from_pretrained(f"merged-{dtype}", dtype="auto").dtype == expected


@pytest.mark.parametrize("method", [SeriesAdapter, ParallelAdapter, PrefixTuning, PTuning])
def test_what_cannot_be_merged_says_so_and_offers_the_directory(saved, capsys, method):
    source, *_ = saved(method())
    capsys.readouterr()
    assert main(["export", "--adapter_path", str(source), "--out", "merged", "--merge"]) == 1
    error = capsys.readouterr().err
    assert f"{method.__name__} cannot be merged" in error
    assert "Leave out --merge" in error
    assert not Path("merged").exists()
    assert not list(Path().glob(".merged*"))


@pytest.mark.parametrize("method", [lambda: LoRA(4, 8), SeriesAdapter, lambda: PrefixTuning(3)])
def test_a_directory_is_exported_again_unchanged_without_the_bases_weights(saved, method, monkeypatch):
    source, base, _ = saved(method())
    monkeypatch.setattr("adapters_pl.cli.commands.export.load_base", None)
    assert main(["export", "--adapter_path", str(source), "--out", "again"]) == 0
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (source, Path("again")))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert json.loads(Path("again/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), "again")
    expected = load_adapter(AutoModelForCausalLM.from_pretrained(base), source)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize(
    "adapter", ["LoRA", "IA3", "SeriesAdapter", "PrefixTuning", "PTuning", "PromptTuning", "ParallelAdapter"]
)
def test_the_last_checkpoint_is_exported(trained, make_base, adapter):
    trained("--adapter", adapter)
    assert main(["export", "--out", "out"]) == 0
    run = next(Path("runs").glob("*-1"))
    one = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), "out")
    other = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), run)
    assert torch.allclose(one(IDS).logits, other(IDS).logits, atol=1e-6)


def test_several_adapters_become_a_folder_each(trained, folder, make_base):
    Path("mam.yaml").write_text(
        "adapter:\n- class_path: PrefixTuning\n  init_args: {virtual_tokens: 3, name: prefix}\n"
        "- class_path: ParallelAdapter\n  init_args: {bottleneck: 4, name: beside}\n"
    )
    trained("--config", "mam.yaml")
    assert main(["export", "--out", "out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["beside", "prefix"]
    one = AutoModelForCausalLM.from_pretrained(make_base())
    load_adapter(one, "out/prefix", "prefix")
    load_adapter(one, "out/beside", "beside")
    other = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), "runs/mam-1")
    assert torch.allclose(one(IDS).logits, other(IDS).logits, atol=1e-6)


def test_a_directory_that_holds_something_is_never_overwritten(saved, capsys):
    source, *_ = saved(LoRA(4, 8))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert main(["export", "--adapter_path", str(source), "--out", str(source)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_half_an_export_is_none(saved, monkeypatch):
    source, base, _ = saved(LoRA(4, 8))

    def fail(*args, **kwargs):
        Path(args[2], "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr("adapters_pl.cli.commands.export.save_adapter", fail)
    with pytest.raises(OSError, match="disk full"):
        export_adapter(source, "out", str(base))
    assert not Path("out").exists()
    assert [path.name for path in Path().glob(".out*")] == [".out.lock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "x"], "No run in 'runs' yet"),
        (["--out", "x", "--adapter_path", "nowhere"], "nowhere: no adapter here"),
        (["--out", "x", "--adapter_path", "org/name"], "org/name"),
        (["--out", "x", "--bogus"], "--bogus"),
        (["--out", "file", "--adapter_path", "adapter"], "exists and is not empty"),
        (["--out", "file/x", "--adapter_path", "adapter"], "cannot be made"),
    ],
)
def test_bad_input_is_one_line(saved, capsys, arguments, message):
    saved(LoRA(4, 8))
    Path("file").write_text("mine")
    assert main(["export", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert Path("file").read_text() == "mine"


def test_pushing_uploads_what_was_written(saved, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, repository, exist_ok):
            calls.append(("create", repository, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return f"https://hub.example/{repo_id}"

    monkeypatch.setattr("adapters_pl.cli.commands.export.HfApi", Hub)
    source, *_ = saved(LoRA(4, 8))
    assert main(["export", "--adapter_path", str(source), "--out", "out", "--push", "org/mine"]) == 0
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert calls == [("create", "org/mine", True), ("upload", "org/mine", files)]
    assert "https://hub.example/org/mine" in capsys.readouterr().out


def test_a_refused_upload_is_one_line_and_keeps_the_directory(saved, monkeypatch, capsys):
    class Hub:
        def create_repo(self, repository, exist_ok):
            raise OSError("401 no token")

    monkeypatch.setattr("adapters_pl.cli.commands.export.HfApi", Hub)
    source, *_ = saved(LoRA(4, 8))
    assert main(["export", "--adapter_path", str(source), "--out", "out", "--push", "org/mine"]) == 1
    assert "out is written. (401 no token)" in capsys.readouterr().err
    assert Path("out/adapter_config.json").is_file()


# ---- --adapter_path

CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def data(rows_file):
    return ["--data", "InstructionJSON", "--data.path", str(rows_file), "--data.max_new_tokens", "6"]


@pytest.mark.parametrize("method", [lambda: LoRA(4, 8), SeriesAdapter, lambda: PrefixTuning(3), lambda: PTuning(3)])
def test_a_directory_is_tested_and_trained_on(saved, data, method, capsys):
    source, base, logits = saved(method())
    assert main(["test", "--adapter_path", str(source), "--data.val_size", "4", *data, *CPU]) == 0
    assert "with adapter" in capsys.readouterr().out
    # A learning rate of zero: the run's own adapter is then the one it began with.
    more = ["--trainer.max_steps", "1", "--model.lr", "0"]
    assert main(["fit", "--adapter_path", str(source), *data, *CPU, *more]) == 0
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), "runs/fit-1/adapter")
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert main(["fit", "--adapter_path", str(source), *data, *CPU, "--trainer.max_steps", "2"]) == 0
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), "runs/fit-2/adapter")
    assert not torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert main(["test", *CPU]) == 0


def test_the_adapters_own_settings_may_be_changed(saved, data):
    source, *_ = saved(LoRA(4, 8))
    words = ["fit", "--adapter_path", str(source), "--adapter.dropout", "0.3", *data, *CPU, "--trainer.max_steps", "1"]
    assert main(words) == 0
    config = json.loads(Path("runs/fit-1/adapter/adapter_config.json").read_text())
    assert (config["lora_dropout"], config["r"]) == (0.3, 4)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_an_adapter_of_another_base_is_refused_before_anything_is_written(saved, data, make_base, capsys, command):
    source, *_ = saved(LoRA(4, 8))
    other = make_base("llama", intermediate_size=64)
    words = [command, "--adapter_path", str(source), "--model.base", str(other), *data, *CPU]
    assert main(words) == 1
    assert "belongs to another base" in capsys.readouterr().err
    assert not list(Path("runs").glob("*-1")) or not any(Path("runs").glob("*-1/checkpoints/*"))


@pytest.mark.parametrize("command", ["fit", "test"])
def test_an_adapter_whose_modules_are_not_there_names_its_directory(saved, data, make_base, capsys, command):
    source, *_ = saved(LoRA(4, 8), "gpt2")
    config = source / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["c_attn"]}))
    weights = load_file(source / "adapter_model.safetensors")
    save_file(weights, source / "adapter_model.safetensors")  # as other tools write it, without our notes
    assert main([command, "--adapter_path", str(source), "--model.base", str(make_base()), *data, *CPU]) == 1
    assert f"error: {source}: does not fit '{make_base()}': target_modules: 'c_attn'" in capsys.readouterr().err
    assert not list(Path("runs").glob("*-1"))


def test_a_deeper_relative_of_the_base_is_another_base(saved, capsys):
    source, *_ = saved(LoRA(4, 8))
    with pytest.raises(Exception, match="num_hidden_layers is 2, here it is 3"):
        load_adapter(tiny_model("llama", num_hidden_layers=3), source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "LoRA"], "leave out --adapter"),
        (["--ckpt_path", "last"], "give one of them"),
    ],
)
def test_two_sources_are_refused(saved, data, capsys, arguments, message):
    source, *_ = saved(LoRA(4, 8))
    assert main(["test", "--adapter_path", str(source), *data, *CPU, *arguments]) == 1
    assert message in capsys.readouterr().err


NEW = "[" + ", ".join(f"<t{i}>" for i in range(40)) + "]"


def test_added_tokens_are_trained_saved_and_come_back(trained, make_base, data, folder):
    adapter = ["--adapter", "LoRA", "--adapter.modules_to_save", "[embed_tokens, lm_head]"]
    trained(*adapter, "--model.add_tokens", NEW)
    base = AutoModelForCausalLM.from_pretrained(make_base())
    rows = base.get_input_embeddings().weight.shape[0]
    size = len(AutoTokenizer.from_pretrained(make_base())) + 40
    assert size > rows
    assert main(["test", "--data.val_size", "4", *CPU]) == 0
    assert main(["export", "--out", "out"]) == 0
    assert main(["export", "--out", "merged", "--merge"]) == 0
    ids = torch.tensor([[1, 40, size - 2, size - 1]])
    logits = []
    for source in ("runs/lora-1", "runs/lora-1/adapter", "out"):
        model = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), source)
        assert model.get_input_embeddings().weight.shape[0] == size
        logits.append(model(ids).logits)
    logits.append(AutoModelForCausalLM.from_pretrained("merged")(ids).logits)
    assert all(torch.allclose(logits[0], other, atol=1e-4) for other in logits)
    for place in ("merged", "out", "runs/lora-1/adapter"):
        assert AutoTokenizer.from_pretrained(place).convert_tokens_to_ids("<t39>") == size - 1
    more = ["--trainer.max_steps", "1", "--model.lr", "0", *data, *CPU]
    assert main(["fit", "--adapter_path", "out", *more]) == 0
    again = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), "runs/fit-1")
    assert torch.allclose(again(ids).logits, logits[0], atol=1e-5)


def test_peft_loads_a_directory_with_added_tokens(trained, make_base):
    from peft import PeftModel

    adapter = ["--adapter", "LoRA", "--adapter.modules_to_save", "[embed_tokens, lm_head]"]
    trained(*adapter, "--model.add_tokens", NEW)
    size = len(AutoTokenizer.from_pretrained("runs/lora-1/adapter"))
    base = AutoModelForCausalLM.from_pretrained(make_base())
    base.resize_token_embeddings(size)
    ids = torch.tensor([[1, 40, size - 2, size - 1]])
    theirs = PeftModel.from_pretrained(base, "runs/lora-1/adapter")(ids).logits
    ours = load_adapter(AutoModelForCausalLM.from_pretrained(make_base()), "runs/lora-1/adapter")(ids).logits
    assert torch.allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("trained_whole", ["lm_head", "wte"])
def test_what_is_trained_in_one_of_two_tied_modules_is_merged_into_one_of_its_own(saved, capsys, trained_whole):
    source, _, logits = saved(LoRA(4, 8, modules_to_save=[trained_whole]), "gpt2")
    assert main(["export", "--adapter_path", str(source), "--out", "merged", "--merge"]) == 0
    assert "it is written with a weight of its own" in capsys.readouterr().out
    assert json.loads(Path("merged/config.json").read_text())["tie_word_embeddings"] is False
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert merged.lm_head.weight is not merged.transformer.wte.weight
    assert not torch.equal(merged.lm_head.weight, merged.transformer.wte.weight)
    assert torch.allclose(merged(IDS).logits, logits, atol=1e-4)


def test_tied_modules_that_nothing_was_trained_in_stay_tied(saved):
    source, *_ = saved(LoRA(4, 8), "gpt2")
    assert main(["export", "--adapter_path", str(source), "--out", "merged", "--merge"]) == 0
    assert json.loads(Path("merged/config.json").read_text()).get("tie_word_embeddings", True) is True
