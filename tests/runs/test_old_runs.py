"""What earlier versions wrote is read: checkpoints and runs of format 1, which name private modules, and of 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters_pl import LoRA, UserError, load_adapter
from adapters_pl.adapters.base import describe_adapter
from adapters_pl.cli.main import main
from adapters_pl.inputs.names import public_name, with_public_names
from adapters_pl.quickstart import BASE
from adapters_pl.training.checkpoint import build_adapter

RUNS = Path(__file__).parent / "old_runs"
#: The last 16 logits that the version which wrote them gave with each.
LOGITS = {
    folder + run: logits
    for folder in ("", "format_2/")
    for run, logits in json.loads((RUNS / folder / "logits.json").read_text()).items()
}


@pytest.mark.parametrize("run", LOGITS)
def test_an_old_checkpoint_gives_what_it_gave(run):
    written = torch.load(RUNS / run / "checkpoints/last.ckpt", weights_only=True)["adapters_pl"]
    assert written["format"] == (2 if "/" in run else 1)
    assert written["adapters"][0]["class_path"].startswith("adapters_pl." if "/" in run else "adapters_pl.adapters.")
    for source in ("checkpoints/last.ckpt", "adapter"):
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        load_adapter(model, RUNS / run / source)
        with torch.no_grad():
            logits = model(torch.arange(5, 25)[None]).logits[0, -1, :16]
        torch.testing.assert_close(logits, torch.tensor(LOGITS[run]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("run", LOGITS)
def test_an_old_run_is_tested_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUNS / run, tmp_path / "runs" / (run := Path(run).name))
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    where = ["--ckpt_path", f"runs/{run}"]
    assert main(["test", *where, "--data.test_rows", "2", "--data.max_new_tokens", "2", *quiet]) == 0
    assert json.loads(Path("runs", run, "results.json").read_text())["sets"]["word_problems"]["n"] == 2
    assert main(["fit", *where, "--trainer.max_steps", "3", *quiet]) == 0
    now = torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)
    assert now["global_step"] == 3
    assert now["adapters_pl"]["format"] == 2
    assert now["adapters_pl"]["adapters"][0]["class_path"].count(".") == 1


def test_a_checkpoint_of_a_later_format_says_so(tmp_path):
    stored = torch.load(RUNS / "lora-1/checkpoints/last.ckpt", weights_only=True)
    stored["adapters_pl"]["format"] = 99
    torch.save(stored, tmp_path / "last.ckpt")
    model = AutoModelForCausalLM.from_pretrained(BASE)
    with pytest.raises(UserError, match="format 99, of a later adapters-pl; this one reads up to 2"):
        load_adapter(model, tmp_path / "last.ckpt")


def test_classes_are_written_by_their_public_names_and_read_by_any():
    assert describe_adapter(LoRA())["class_path"] == "adapters_pl.LoRA"
    assert isinstance(build_adapter({"class_path": "adapters_pl.somewhere.before.LoRA", "init_args": {}}), LoRA)
    assert public_name("mine.LoRA") == "mine.LoRA"
    assert public_name("adapters_pl.data.fetch.download") == "adapters_pl.data.fetch.download"
    config = {"data": {"class_path": "adapters_pl.data.arithmetic.GSM8K"}, "adapter": [{"class_path": "mine.Own"}]}
    assert with_public_names(config) == {
        "data": {"class_path": "adapters_pl.GSM8K"},
        "adapter": [{"class_path": "mine.Own"}],
    }
