"""``adapters-pl base``: list and fetch."""

from __future__ import annotations

import pytest

from adapters_pl.cli.commands import base as command
from adapters_pl.cli.main import main
from adapters_pl.models.named import NAMED


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_every_name_is_listed_with_where_it_is(capsys, monkeypatch):
    assert main(["base", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [smollm2] = [line for line in lines if " smollm2 " in line]
    assert [word.strip() for word in smollm2.strip("│ ").split("│")] == [
        *("smollm2", "94", "-", "Apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    ]
    assert any(" quickstart " in line and "in the package" in line for line in lines)
    monkeypatch.setattr(command, "at_hand", lambda base: True)
    assert main(["base", "list"]) == 0
    assert " cache " in capsys.readouterr().out


def test_fetch_brings_what_is_not_at_hand(capsys, monkeypatch):
    fetched = []
    monkeypatch.setattr(command, "fetch", lambda base: fetched.append(base) or "PLACE")
    assert main(["base", "fetch", "smollm2"]) == 0
    assert fetched == [NAMED["smollm2"]]
    assert "smollm2: PLACE" in capsys.readouterr().out
    monkeypatch.setattr(command, "at_hand", lambda base: True)
    assert main(["base", "fetch", "smollm2"]) == 0
    assert len(fetched) == 1
    assert "(in the cache)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smolm2", "'smolm2' is no base that can be fetched: did you mean 'smollm2'?"),
        ("quickstart", "'quickstart' came with the package"),
    ],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name, says, capsys):
    assert main(["base", "fetch", name]) == 1
    assert says in capsys.readouterr().err


def test_a_base_that_was_not_fetched_is_asked_for_in_a_line(capsys):
    assert main(["test", "--model.base", "smollm2", "--data", "WordProblems"]) == 1
    said = capsys.readouterr().err
    assert "adapters-pl base fetch smollm2" in said
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in said
    assert len(said.splitlines()) == 1
