"""What is used of gguf, and of how transformers reads by it, is as it was when it was written for."""

from __future__ import annotations

import pytest

pytest.importorskip("gguf")

import gguf
from transformers import modeling_gguf_pytorch_utils as theirs

from adapters_pl.compat import gguf as ours
from adapters_pl.models.base import load_base
from tests.conftest import tiny_model, tiny_tokenizer
from tests.helpers.gguf_files import write_gguf


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama_gqa"), tiny_tokenizer())


def test_a_file_is_read_once_and_its_names_are_made_once(file, monkeypatch, capfd):
    read, made = [], []

    class Reader(gguf.GGUFReader):
        def __init__(self, path):
            read.append(path)
            super().__init__(path)

    def names(architecture, layers):
        made.append((architecture, layers))
        return gguf.TensorNameMap(architecture, layers)

    monkeypatch.setattr("gguf.gguf_reader.GGUFReader", Reader)
    monkeypatch.setattr("gguf.tensor_mapping.get_tensor_name_map", names)
    ours.forget()
    ours._names.cache_clear()
    load_base(str(file))
    assert len(read) == len(made) == 1
    assert "Converting" not in capfd.readouterr().err
    ours._names.cache_clear()


def test_what_is_replaced_comes_back(file):
    before = gguf.GGUFReader, gguf.get_tensor_name_map, theirs.tqdm
    with ours.read_once():
        assert gguf.GGUFReader is not before[0]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, theirs.tqdm) == before


def test_a_file_that_changed_is_read_again(file, tmp_path):
    with ours.read_once():
        one = gguf.GGUFReader(str(file))
        assert gguf.GGUFReader(str(file)) is one
        other = write_gguf(tmp_path / "other.gguf", tiny_model("llama_gqa", seed=1), tiny_tokenizer(), "F32")
        other.replace(file)
        assert gguf.GGUFReader(str(file)) is not one


def test_tensors_without_a_place_are_named():
    assert ours.without_place(["blk.0.attn_q.weight", "b", "a"], tiny_model("llama")) == ["a", "b"]
