"""Bases in GGUF files: what is computed, what is recorded, and files that are not what they say."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters_pl import UserError
from adapters_pl.cli.main import main
from adapters_pl.models import gguf_files
from adapters_pl.models.base import load_base, load_config, load_tokenizer, stored_as
from adapters_pl.models.fingerprint import fingerprint, same_base
from adapters_pl.models.gguf_files import ARCHITECTURES, MOST_KEYS, MOST_LISTED, MOST_TENSORS
from adapters_pl.models.named import NAMED
from adapters_pl.training.adapter_files import base_of
from tests.conftest import tiny_model, tiny_tokenizer

pytest.importorskip("gguf")

from tests.helpers.gguf_files import write_gguf

IDS = torch.arange(3, 40)[None]
TEMPLATE = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
#: What makes a tiny model one of an architecture, where transformers reads no such size from the file.
MODELS = {
    "llama": ("llama_gqa", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "gpt2": ("gpt2", {"n_positions": 1024, "max_position_embeddings": 1024}),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A quantised file of a tiny llama."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, tiny_model("llama_gqa"), tiny_tokenizer(), "Q4_1", TEMPLATE)


# ---- what is computed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_from_a_file_computes_what_it_did(architecture, tmp_path):
    name, changes = MODELS[architecture]
    model = tiny_model(name, **changes)
    base = str(write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), "F32"))
    loaded = load_base(base)
    assert stored_as(base) == "F32"
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_weights_are_dequantised_and_the_model_is_a_plain_one(file, tmp_path, capfd):
    loaded, model = load_base(str(file)), tiny_model("llama_gqa")
    assert stored_as(str(file)) == "Q4_1"
    assert loaded.dtype == torch.float32
    weight, stored = loaded.lm_head.weight, model.lm_head.weight
    assert not torch.equal(weight, stored)
    # Blocks of 32 values from 0.6 below to 0.6 above in 16 steps.
    torch.testing.assert_close(weight, stored, rtol=0, atol=0.08)
    assert load_base(str(file), dtype="bfloat16").dtype == torch.bfloat16
    loaded.save_pretrained(tmp_path / "saved")
    load_tokenizer(str(file)).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert same_base(fingerprint(loaded), fingerprint(again))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, loaded(IDS).logits)
    assert "Converting" not in capfd.readouterr().err


def test_tokenizer_and_template_are_the_files_own_whatever_lies_beside_it(file, tmp_path, monkeypatch):
    for name in ("tokenizer_config.json", "config.json", "adapter_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text('{"model_type": "gpt2", "peft_type": "LORA"}')
    here = tmp_path / "tiny.gguf"
    here.symlink_to(file)
    (tmp_path / "base.gguf").write_bytes(b"another file of the name that is used within")
    monkeypatch.chdir(tmp_path)
    tokenizer, text = load_tokenizer("tiny.gguf"), "the answer is 12 apples"
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<x>"
    assert load_config("tiny.gguf").model_type == "llama"
    assert load_base("tiny.gguf").config.name_or_path == "tiny.gguf"


# ---- a run


def test_a_run_on_a_file_is_tested_taken_up_and_merged(file, tmp_path, rows_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("here.gguf").symlink_to(file)
    own = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.max_new_tokens", "4"]
    data = ["--data", "InstructionJSON", "--data.path", str(rows_file), *own]
    assert main(["fit", "--model.base", "here.gguf", "--adapter", "LoRA", "--trainer.max_steps", "2", *data]) == 0
    assert main(["test", "--data.limit_test", "2", *own]) == 0
    results = json.loads(Path("runs/lora-1/results.json").read_text())
    assert results["base"] == {"id": str(file), "stored_as": "Q4_1"}
    config = json.loads(Path("runs/lora-1/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "here.gguf"
    tested = ["--data", "InstructionJSON", "--data.test_path", str(rows_file), "--data.limit_test", "2", *own]
    assert main(["test", "--adapter_path", "runs/lora-1/adapter", *tested]) == 0
    assert main(["export", "--merge", "--out", "merged"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert not hasattr(merged.config, "quantization_config")
    assert AutoTokenizer.from_pretrained("merged")("apples").input_ids == tiny_tokenizer()("apples").input_ids
    assert main(["plan", "--model.base", "here.gguf", "--adapter", "LoRA"]) == 0
    other = write_gguf(tmp_path / "other.gguf", tiny_model("llama_gqa", seed=1), tiny_tokenizer())
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "runs/lora-1", "--model.base", str(other), *own]) == 1
    assert "belongs to another base" in capsys.readouterr().err


def test_an_adapter_of_a_named_base_names_the_hub_id_and_finds_the_name_again(file, tmp_path, rows_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adapters_pl.models.base.find", lambda name: file)
    Path("smollm2").mkdir()  # a folder of the name is another thing
    own = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.max_new_tokens", "4"]
    data = ["--data", "InstructionJSON", "--data.path", str(rows_file), *own]
    assert main(["fit", "--model.base", "smollm2", "--adapter", "LoRA", "--trainer.max_steps", "2", *data]) == 0
    config = json.loads(Path("runs/lora-1/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with safe_open("runs/lora-1/adapter/adapter_model.safetensors", "pt") as opened:
        assert opened.metadata()["base"] == "smollm2"
    tested = ["--data", "InstructionJSON", "--data.test_path", str(rows_file), "--data.limit_test", "2", *own]
    for source in ("runs/lora-1/adapter", "runs/lora-1"):
        assert main(["test", "--adapter_path", source, *tested]) == 0
    # A directory whose base was changed by hand means what stands there.
    config["base_model_name_or_path"] = "./elsewhere"
    Path("runs/lora-1/adapter/adapter_config.json").write_text(json.dumps(config))
    assert base_of("runs/lora-1/adapter") == ("./elsewhere", None)


# ---- files that are not what they say


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def listed(kind: int, count: int) -> bytes:
    return text("a") + struct.pack("<IIQ", 9, kind, count)


def tensor(*shape: int, kind: int = 0, place: int = 0, name: str = "t") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)


LLAMA = text("general.architecture") + struct.pack("<I", 8) + text("llama")
MAMBA = text("general.architecture") + struct.pack("<I", 8) + text("mamba")
YARN = text("llama.rope.scaling.type") + struct.pack("<I", 8) + text("yarn")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not begin as a GGUF file"),
        (b"GGUF", "is cut"),
        (b"PK\x03\x04" + bytes(40), "does not begin as a GGUF file"),
        (header(0, 0, version=1), "version 1"),
        (header(0, 0, version=3 << 24), "version 50331648"),
        (header(0, 2**62), f"keys, over {MOST_KEYS:,}"),
        (header(2**62, 0), f"tensors, over {MOST_TENSORS:,}"),
        (header(0, 5), "is cut"),
        (header(0, 1) + struct.pack("<Q", 2**63), "is cut"),
        (header(0, 1) + listed(0, 2**60), f"values, over {MOST_LISTED:,}"),
        (header(0, 1) + listed(0, MOST_LISTED), "is cut"),
        (header(0, 1) + listed(8, MOST_LISTED), "is cut"),
        (header(0, 1) + listed(9, 5_000) + struct.pack("<IQ", 9, 1) * 5_000, "a list of values of type 9"),
        (header(0, 1) + text("a") + struct.pack("<I", 77), "unknown type 77"),
        (header(0, 1) + text("a").replace(b"a", b"\xff") + struct.pack("<IB", 0, 0), "is no text"),
        (header(1, 1) + LLAMA + tensor(2**33, 2**31) + bytes(64), "would end at byte"),
        (header(1, 1) + LLAMA + tensor(32, 0), "impossible shape"),
        (header(1, 1) + LLAMA + tensor(31, kind=3) + bytes(64), "impossible shape"),
        (header(1, 1) + LLAMA + tensor(*[1] * 5) + bytes(64), "5 dimensions"),
        (header(1, 1) + LLAMA + tensor(32, kind=4) + bytes(64), r"type 4\) that this gguf does not know"),
        (
            header(2, 1) + LLAMA + tensor(8) + tensor(8, place=16, name="u") + bytes(99),
            "tensor 'u' lies within another",
        ),
        (header(0, 2) + LLAMA + text("general.alignment") + struct.pack("<II", 4, 12), "no power of two"),
        (header(0, 0), "its architecture is None"),
        (header(0, 1) + MAMBA, "its architecture is 'mamba', .* these are: llama, qwen2"),
        (header(0, 2) + LLAMA + YARN, r"it scales positions \('yarn'\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_describes_another_file_is_refused_in_a_line(content, says, tmp_path, monkeypatch):
    path = tmp_path / "strange.gguf"
    path.write_bytes(content)
    # It would take a text of any length for what it says, and a list until the memory is full.
    monkeypatch.setattr("gguf.GGUFReader", None)
    for read in (load_config, load_tokenizer, load_base):
        with pytest.raises(UserError, match=f"strange.gguf': .*{says}") as error:
            read(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_is_refused(file, tmp_path, share):
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match=r"cut.gguf': .*cut"):
        load_base(str(path))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"more": {"rope_freqs.weight": np.ones(4, "float32")}}, "no place for: rope_freqs.weight"),
        ({"more": {"blk.7.attn_q.weight": np.ones((32, 32), "float32")}}, r"no place for: blk\.7\.attn_q\.weight"),
        ({"settings": {"llama.block_count.": "x", "tokenizer.ggml.tokens.": "y"}}, None),
    ],
)
def test_a_tensor_that_nothing_takes_is_refused_by_name(how, says, tmp_path):
    path = str(write_gguf(tmp_path / "more.gguf", tiny_model("llama_gqa"), tiny_tokenizer(), "F32", **how))
    if says is None:
        assert load_base(path)
        return
    with pytest.raises(UserError, match=says):
        load_base(path)


def test_sizes_that_no_model_has_and_weights_that_do_not_fit_are_refused(tmp_path):
    model, tokenizer = tiny_model("llama_gqa"), tiny_tokenizer()
    model.config.max_position_embeddings = 2_000_000_000
    with pytest.raises(UserError, match=r"long.gguf': its header says max_position_embeddings 2000000000"):
        load_base(str(write_gguf(tmp_path / "long.gguf", model, tokenizer, "F32")))
    model = tiny_model("llama_gqa")
    model.config.head_dim = 1_000_000_000
    with pytest.raises(UserError, match=r"head.gguf': its header says head_dim 1000000000"):
        load_base(str(write_gguf(tmp_path / "head.gguf", model, tokenizer, "F32")))
    model = tiny_model("llama_gqa")
    model.config.intermediate_size = 64
    with pytest.raises(UserError, match=r"of another shape than its header says"):
        load_base(str(write_gguf(tmp_path / "wide.gguf", model, tokenizer, "F32")))
    model = tiny_model("llama_gqa")
    model.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        load_base(str(write_gguf(tmp_path / "nan.gguf", model, tokenizer, "F32")))


def test_a_file_is_not_quantised_again(file):
    with pytest.raises(UserError, match=r"stored in Q4_1.*leave out --model.quantization"):
        load_base(str(file), quantization="4bit")


def test_what_is_not_there_is_said(file, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none.gguf': no such file"):
        load_config(str(tmp_path / "none.gguf"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tiny.gguf").symlink_to(file)
    with pytest.raises(UserError, match=r"no config.json.* Name the GGUF file that lies in it: .*tiny.gguf"):
        load_config(str(folder))
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None if name == "gguf" else 1)
    with pytest.raises(UserError, match=r"needs gguf: pip install 'adapters-pl\[gguf\]'"):
        load_config(str(file))


# ---- the real one


@pytest.mark.slow
@pytest.mark.skipif(
    not NAMED["smollm2"].path.is_file(), reason="smollm2 is not in the cache: adapters-pl base fetch smollm2"
)
def test_smollm2_goes_on_with_paris():
    model, tokenizer = load_base("smollm2"), load_tokenizer("smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    said = model.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=2)
    assert tokenizer.decode(said[0]).startswith("The capital of France is Paris")
