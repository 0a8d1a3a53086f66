"""What comes from a stranger is data: nothing in it runs, is imported, or chooses where to write."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import uuid
from pathlib import Path

import pytest
import torch

from adapters_pl.adapters import LoRA
from adapters_pl.cli.main import main
from adapters_pl.cli.received import received
from adapters_pl.inputs.errors import UserError
from adapters_pl.runs.run import Run
from adapters_pl.training.checkpoint import build_adapter

LAST = Path("runs/lora-1/checkpoints/last.ckpt")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUICK = ["--trainer.max_epochs", "1", *QUIET]
ROWS = ["--data", "InstructionJSON", "--data.path", "rows.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_base):
    """A folder with a run that is complete."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "answer": str(n)} for n in range(20)]
    (folder / "rows.json").write_text(json.dumps(rows))
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", "rows.json"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert (
            main(["fit", *own, "--adapter", "LoRA", "--data.val_size", "2", "--data.max_new_tokens", "3", *QUICK]) == 0
        )
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it to stand in, whose modules leave a mark when they are imported."""
    here = tmp_path / "here"
    shutil.copytree(finished, here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return here


@pytest.fixture
def hostile(folder):
    """A module in the folder with classes of every kind; importing it leaves a mark."""
    name = f"hostile_{uuid.uuid4().hex}"
    (folder / f"{name}.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
        "import torch, adapters_pl\nfrom lightning.pytorch import Callback\n"
        "class A(adapters_pl.LoRA): pass\nclass D(adapters_pl.InstructionJSON): pass\n"
        "class M(adapters_pl.CausalLMModule): pass\nclass O(torch.optim.SGD): pass\nclass C(Callback): pass\n"
    )
    return name


def forge(change):
    """Change what the checkpoint says of itself."""
    stored = torch.load(LAST, weights_only=True)
    change(stored["adapters_pl"])
    torch.save(stored, LAST)


# ---- a base's own code


@pytest.fixture
def base_with_code(folder, make_base):
    """The same base, of an unknown type, with code in its directory."""
    base = folder / "coded"
    shutil.copytree(make_base(), base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "coded", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "code.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'coded'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    return base


SPELLINGS = {
    "init_args": lambda base: {"class_path": "adapters_pl.CausalLMModule", "init_args": base},
    "bare": lambda base: base,
    "dict_kwargs": lambda base: {
        "class_path": "adapters_pl.CausalLMModule",
        "init_args": {"base": base["base"]},
        "dict_kwargs": {"trust_remote_code": True},
    },
    "dotted": lambda base: {
        "class_path": "adapters_pl.CausalLMModule",
        **{f"init_args.{k}": v for k, v in base.items()},
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", ["test", "fit"])
def test_no_spelling_in_a_checkpoint_runs_the_code_of_a_base(folder, base_with_code, spelling, command, capsys):
    model = SPELLINGS[spelling]({"base": str(base_with_code), "trust_remote_code": True})
    forge(lambda ours: ours["config"].update(model=model))
    assert main([command, "--ckpt_path", "last", *QUIET]) == 1
    assert not Path("ran").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_configuration_does_not_run_the_code_of_a_base_unless_it_is_typed(folder, base_with_code, capsys):
    Path("theirs.yaml").write_text(
        "model:\n  class_path: adapters_pl.CausalLMModule\n"
        f"  init_args: {{base: {base_with_code}, trust_remote_code: true}}\n"
    )
    fit = [
        "fit",
        "--config",
        "theirs.yaml",
        "--adapter",
        "LoRA",
        "--data",
        "InstructionJSON",
        "--data.path",
        "rows.json",
    ]
    assert main([*fit, *QUICK]) == 1
    assert "--model.trust_remote_code true" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert main([*fit, *QUICK, "--model.trust_remote_code", "true", "--data.val_size", "0"]) == 0
    assert Path("ran").exists()


def test_the_name_of_a_configuration_types_nothing(folder, base_with_code, capsys):
    Path("trust_remote_code.yaml").write_text(f"model:\n  base: {base_with_code}\n  trust_remote_code: true\n")
    assert main(["plan", "--config", "trust_remote_code.yaml", "--adapter", "LoRA"]) == 1
    assert not Path("ran").exists()


def test_what_was_typed_to_run_code_travels_in_no_file(folder):
    arguments = [*ROWS, "--adapter", "LoRA", *QUICK]
    assert main(["fit", *arguments, "--model.trust_remote_code", "true", "--data.val_size", "0"]) == 0
    assert "trust_remote_code" not in Path("runs/lora-2/config.yaml").read_text()
    stored = torch.load("runs/lora-2/checkpoints/last.ckpt", weights_only=True)["adapters_pl"]
    assert "trust_remote_code" not in json.dumps(stored["config"])


def test_a_base_does_not_choose_a_kernel_from_the_hub(folder, make_base):
    from adapters_pl.models.base import load_config

    base = folder / "kernel"
    shutil.copytree(make_base(), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "attn_implementation": "strange/kernel", "experts_implementation": "strange/kernel"})
    )
    read = load_config(str(base))
    assert read._attn_implementation in (None, "eager", "sdpa")
    assert (
        main(["test", "--model.base", str(base), "--data", "InstructionJSON", "--data.path", "rows.json", *QUIET]) == 0
    )


# ---- classes


@pytest.mark.parametrize("where", ["recorded", "adapters", "data", "model"])
@pytest.mark.parametrize("command", ["test", "fit", "export"])
def test_a_class_that_a_checkpoint_names_is_not_imported(folder, hostile, where, command, capsys):
    def change(ours):
        if where == "adapters":
            ours["adapters"][0]["class_path"] = f"{hostile}.A"
            ours["config"] = None
        else:
            section = "adapter" if where == "recorded" else where
            ours["config"][section]["class_path"] = f"{hostile}.{section[0].upper()}"

    forge(change)
    words = ["--out", "out"] if command == "export" else QUIET
    code = main([command, "--ckpt_path", "last", *words])
    assert not Path("ran").exists()
    assert hostile not in sys.modules
    if command != "export" or where == "adapters":  # export takes nothing of the configuration
        assert code == 1
        assert "--trust_checkpoint" in capsys.readouterr().err


def test_an_installed_module_is_not_imported_either(folder, capsys):
    sys.modules.pop("this", None)
    forge(lambda ours: ours["config"]["adapter"].update(class_path="this.d"))
    assert main(["test", *QUIET]) == 1
    assert "this" not in sys.modules


def test_a_class_of_ones_own_is_taken_where_the_command_names_it(folder, hostile):
    forge(lambda ours: [ours["config"]["adapter"].update(class_path=f"{hostile}.A"),
                        ours["adapters"][0].update(class_path=f"{hostile}.A")])  # fmt: skip
    assert main(["test", "--adapter", f"{hostile}.A", *QUIET]) == 0
    assert Path("ran").exists()


def test_a_class_of_ones_own_is_taken_where_the_checkpoint_is_trusted(folder, hostile):
    forge(lambda ours: ours["config"]["adapter"].update(class_path=f"{hostile}.A"))
    assert main(["test", "--trust_checkpoint", *QUIET]) == 0
    assert Path("ran").exists()


def test_an_adapter_is_built_of_a_class_that_is_imported_already():
    class Own(LoRA):
        pass

    path = f"{Own.__module__}.{Own.__qualname__}"
    assert type(build_adapter({"class_path": path, "init_args": {"rank": 2}})) is Own
    with pytest.raises(UserError, match="was not imported"):
        build_adapter({"class_path": "antigravity.LoRA", "init_args": {}})
    assert "antigravity" not in sys.modules


def test_a_configuration_of_peft_that_a_checkpoint_names_is_not_imported(hostile, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    settings = {"peft_config": {"class_path": f"{hostile}.A", "init_args": {}}}
    with pytest.raises(UserError, match="no configuration of peft's"):
        build_adapter({"class_path": "adapters_pl.PEFTAdapter", "init_args": settings})
    assert not (folder / "ran").exists()
    assert hostile not in sys.modules


def test_a_folder_lends_no_module_to_a_library_that_looks_for_one(folder, monkeypatch):
    Path("an_optional_library.py").write_text("")
    assert main(["test", *QUIET]) == 0
    assert str(folder) not in sys.path


# ---- the trainer of a checkpoint


def test_fit_takes_no_object_of_the_trainer_over(folder, hostile, capsys):
    elsewhere = folder.parent / "elsewhere"

    def change(ours):
        lambdas = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.abort"}}
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(elsewhere)}}
        profiler = {
            "class_path": "lightning.pytorch.profilers.SimpleProfiler",
            "init_args": {"dirpath": str(elsewhere)},
        }
        ours["config"]["trainer"] |= {
            "callbacks": [lambdas, {"class_path": f"{hostile}.C"}],
            "logger": logger,
            "profiler": profiler,
            "plugins": [f"{hostile}.C"],
            "strategy": f"{hostile}.C",
            "default_root_dir": str(elsewhere),
            "gradient_clip_val": 0.25,
        }

    forge(change)
    assert main(["fit", "--ckpt_path", "last", *QUIET, "--trainer.max_epochs", "2"]) == 0
    said = capsys.readouterr().out
    for key in ("callbacks", "logger", "profiler", "plugins", "strategy"):
        assert f"trainer.{key}" in said
    assert "--trust_checkpoint" in said
    assert not elsewhere.exists()
    assert not Path("ran").exists()
    assert "gradient_clip_val: 0.25" in Path("runs/lora-1/config.yaml").read_text()


@pytest.mark.parametrize("section", ["optimizer", "lr_scheduler"])
def test_an_optimizer_of_the_folder_is_not_imported(folder, hostile, section, capsys):
    forge(lambda ours: ours["config"].update({section: {"class_path": f"{hostile}.O", "init_args": {"lr": 0.1}}}))
    assert main(["fit", "--ckpt_path", "last", *QUIET, "--trainer.max_epochs", "2"]) == 1
    assert f"--{section} {hostile}.O" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_no_argument_of_a_known_class_names_a_function():
    config = {
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "os.abort"}}
    }
    found = received(config, ["lr_scheduler"], "x.ckpt")
    assert found.config["lr_scheduler"]["init_args"] == {}
    assert found.left_out == ["lr_scheduler.lr_lambda"]


def test_what_torch_and_peft_define_is_taken_over():
    import peft  # noqa: F401

    config = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.5}},
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}},
        "adapter": {
            "class_path": "adapters_pl.PEFTAdapter",
            "init_args": {
                "placement": "attn",
                "peft_config": {"class_path": "peft.VeraConfig", "init_args": {"r": 8, "target_modules": ["q_proj"]}},
            },
        },
    }
    found = received(config, list(config), "x.ckpt")
    assert found.config == config
    assert found.note("x.ckpt") is None


# ---- where is written


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp", "..", ".", "a/b"])
def test_the_pointer_to_the_newest_run_names_a_run(folder, name):
    Path("runs/latest").write_text(name)
    with pytest.raises(UserError, match="latest"):
        Run.latest(Path("runs"))


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize("link", ["predictions", "metrics.csv", "adapter", "checkpoints/best.ckpt"])
def test_a_link_that_leads_out_of_a_run_is_not_written_to(folder, link, command, capsys):
    target = folder.parent / "elsewhere"
    place = Path("runs/lora-1", link)
    if place.suffix:
        target.write_text("as it was")
        place.unlink()
    else:
        target.mkdir()
        shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(target)
    assert main([command, "--ckpt_path", "last", *QUIET, "--trainer.max_epochs", "2"]) == 1
    assert "leads out of its run" in capsys.readouterr().err
    assert target.read_text() == "as it was" if target.is_file() else not any(target.iterdir())


@pytest.mark.parametrize("path", ["../../../../elsewhere.ckpt", "..", "../../.."])
def test_a_checkpoint_does_not_choose_what_is_removed_for_a_better_one(folder, path, capsys):
    kept = folder.parent / "elsewhere.ckpt"
    kept.mkdir()
    (kept / "thesis.txt").write_text("as it was")
    checkpoints = folder / LAST.parent
    stored = torch.load(LAST, weights_only=True)
    (state,) = (state for key, state in stored["callbacks"].items() if key.startswith("ModelCheckpoint"))
    worst, score = f"{checkpoints}/{path}", torch.tensor(1e9)
    state.update(dirpath=str(checkpoints), best_k_models={worst: score}, kth_best_model_path=worst, kth_value=score)
    torch.save(stored, LAST)
    code = main(["fit", "--ckpt_path", "last", *QUIET, "--trainer.max_epochs", "2"])
    assert (kept / "thesis.txt").read_text() == "as it was"
    assert (checkpoints / "last.ckpt").is_file()
    if path.endswith(".."):  # no name of a checkpoint is left of it
        assert code == 1
        assert "what it says of its training is not as adapters-pl writes it" in capsys.readouterr().err
    else:
        assert code == 0


# ---- pickles


class Payload:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def test_no_pickle_is_run_and_nobody_is_told_to_run_it(folder, make_base, capsys):
    base = folder / "pickled"
    shutil.copytree(make_base(), base)
    (base / "model.safetensors").unlink()
    torch.save({"weight": Payload()}, base / "pytorch_model.bin")
    (folder / "evil.ckpt").write_bytes(pickle.dumps(Payload()))
    torch.save({"adapters_pl": Payload(), "state_dict": {}}, folder / "packed.ckpt")
    assert main(["test", "--model.base", str(base), *ROWS, *QUIET]) == 1
    assert main(["test", "--ckpt_path", "evil.ckpt", *QUIET]) == 1
    assert main(["test", "--ckpt_path", "packed.ckpt", *QUIET]) == 1
    assert main(["fit", "--adapter_path", "evil.ckpt", *ROWS, *QUICK]) == 1
    said = capsys.readouterr().err
    assert not Path("ran").exists()
    assert "weights_only" not in said
    assert "mmap" not in said
    assert "Traceback" not in said


def test_a_tokenizer_is_data_too(folder, make_base):
    base = folder / "tokens"
    shutil.copytree(make_base(), base)
    (base / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    main(["test", "--model.base", str(base), *ROWS, *QUIET])
    assert not Path("ran").exists()
