"""The loss on general text is that of transformers on the same rows."""

from __future__ import annotations

import pytest
import torch

from adapters_pl.data.general_text import ROW, TOKENS, GeneralText
from adapters_pl.data.tokens import IGNORE
from adapters_pl.inputs.errors import UserError
from tests.conftest import tiny_model, tiny_tokenizer


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "general.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, 敏捷的棕色狐狸. " * 20, encoding="utf-8")
    return path


@pytest.mark.parametrize("changes", [{}, {"bos_token": None}], ids=["bos", "no bos"])
@pytest.mark.parametrize("context", [None, 64], ids=["row", "context"])
def test_every_token_is_predicted_once(file, changes, context):
    tokenizer = tiny_tokenizer(**changes)
    text = GeneralText.read(str(file), tokenizer, context)
    ids = tokenizer(file.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    assert max(map(len, text.rows)) == (context or ROW)
    predicted = [token for row in text.rows for token in row[1:]]
    if changes:  # the first has nothing before it
        assert predicted == ids[1:]
    else:
        assert predicted == ids
        assert {row[0] for row in text.rows} == {tokenizer.bos_token_id}


def test_the_loss_is_that_of_transformers(file):
    model = tiny_model("llama")
    text = GeneralText.read(str(file), tiny_tokenizer(), 128)

    def losses(batch, labels):
        shifted = labels[0, 1:]
        logits = model(**batch).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits[shifted != IGNORE], shifted, reduction="none")

    with torch.no_grad():
        found = text.loss(losses, torch.device("cpu"))
        own = [(model(input_ids=ids, labels=ids).loss, ids.shape[1] - 1) for ids in map(_batch, text.rows)]
    assert found["tokens"] == sum(count for _, count in own)
    assert found["loss"] == pytest.approx(float(sum(loss * count for loss, count in own)) / found["tokens"], rel=1e-5)


def _batch(row):
    return torch.tensor([row])


def test_the_text_that_comes_with_python_is_cut_to_a_fixed_number_of_tokens():
    text = GeneralText.read("python", tiny_tokenizer(), 512)
    assert sum(len(row) - 1 for row in text.rows) == TOKENS
    assert text.name.startswith("help texts of Python 3.")


def test_what_is_no_text_is_one_clear_line(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 10)
    for name, message in [("missing.txt", "there is no file"), ("latin.txt", "no text in UTF-8"), ("", "no file")]:
        with pytest.raises(UserError, match=f"data.general_text: .*{message}"):
            GeneralText.read(str(tmp_path / name), tiny_tokenizer(), None)
    with pytest.raises(UserError, match=r"empty\.txt has no two tokens"):
        GeneralText.read(str(tmp_path / "empty.txt"), tiny_tokenizer(), None)
