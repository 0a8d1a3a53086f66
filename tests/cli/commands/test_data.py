"""``adapters-pl data``: list, fetch, verify, show."""

from __future__ import annotations

import json

import pytest

from adapters_pl.cli import main as cli
from adapters_pl.cli.commands import data as command
from adapters_pl.data import SETS
from adapters_pl.data import published as fetch
from adapters_pl.data.published import MissingFile, sources
from tests.conftest import DATA, shared


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    """No data root, and a cache of its own."""
    monkeypatch.delenv("ADAPTERS_PL_DATA", raising=False)
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """The exit code, the output and the complaint of one command."""

    def run(*words):
        code = cli.main(["data", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def root(tmp_path):
    """A root with one file that is not as published."""
    path = tmp_path / "root/dataset/AddSub/test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"instruction": "Say [bold] 1.", "answer": "1"}, {"instruction": "2?", "answer": "2"}]))
    return str(tmp_path / "root")


def test_every_published_set_is_listed(run):
    code, out, _ = run("list")
    assert code == 0
    published = [name for name, kind in SETS.items() if kind.spec.train or kind.spec.test]
    assert len(published) == 24
    assert all(f" {name} " in out for name in published)
    assert "Arithmetic: MultiArith, gsm8k, AddSub, AQuA, SingleEq, SVAMP" in out
    assert "local" not in out


def test_what_is_at_hand_is_marked(run, root):
    _, out, _ = run("list", "--root", root)
    assert out.count("local") == 1


@shared(DATA)
def test_the_published_files_are_as_published(run):
    code, out, _ = run("verify", "--root", str(DATA))
    assert code == 0
    assert out.count("as published") == sum((DATA / path).is_file() for path in sources())


def test_a_file_that_is_not_as_published_is_an_error(run, root):
    code, out, err = run("verify", "--root", root)
    assert code == 1
    assert "another file: SHA-1" in out
    assert "(cut: " in out
    assert err == (
        "error: 1 of 1 files are not as published: dataset/AddSub/test.json. Copy them, or run 'adapters-pl data "
        "fetch NAME'.\n"
    )


def test_a_missing_file_is_an_error_only_where_it_is_named(run, root):
    code, out, err = run("verify", "SVAMP", "--root", root)
    assert code == 1
    assert "missing" in out
    assert "dataset/SVAMP/test.json" in err
    code, _, err = run("verify")
    assert code == 1
    assert err.startswith("error: No published file is at hand")


def test_a_set_is_shown_with_its_rows(run, root):
    code, out, _ = run("show", "AddSub", "--rows", "1", "--root", root)
    assert code == 0
    assert sources()["dataset/AddSub/test.json"].url in out
    assert "395 rows of instruction, input, output, answer, SHA-1 " in out
    assert "ODC-By-1.0" in out
    assert "Hosseini et al. 2014" in out
    assert "Say [bold] 1." in out
    assert "2?" not in out


def test_a_training_set_shows_what_it_is_judged_on_and_drawn_from(run):
    _, out, _ = run("show", "Math10K", "--rows", "0")
    assert "judged on: MultiArith, gsm8k, AddSub, AQuA, SingleEq, SVAMP" in out
    assert "drawn from: gsm8k, AQuA, mawps, AddSub, MultiArith, SingleEq" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "addsub"], "dataset 'addsub' does not exist: did you mean 'AddSub'"),
        (["fetch", "Aritmetic"], "dataset 'Aritmetic' does not exist: did you mean 'Arithmetic'"),
        (["verify", "GSM8"], "did you mean 'gsm8k'"),
        (["fetch", "word_problems"], "is generated or your own; it has no published files"),
        (["show", "AddSub", "--split", "train"], "AddSub has no split 'train': known: test"),
        (["show", "AddSub", "--split", "dev"], "invalid choice: 'dev'"),
        (["show", "AddSub", "--rows", "-1"], "it must be at least 0"),
        (["show", "AddSub"], "AddSub: no file"),
        (["fetch"], "the following arguments are required: NAME"),
        ([], "the following arguments are required: list|fetch|verify|show"),
        (["lst"], "invalid choice: 'lst'"),
    ],
)
def test_what_is_wrong_is_one_line(run, words, message):
    code, _, err = run(*words)
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_is_help(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "verify" in out


def test_a_suite_and_a_training_set_bring_all_their_files(run, monkeypatch):
    downloaded = []
    monkeypatch.setattr(command, "download", lambda source, target, announce: downloaded.append(source.path))
    assert run("fetch", "Math10K", "Arithmetic", "boolq")[0] == 0
    arithmetic = [f"dataset/{name}/test.json" for name in SETS["Math10K"].spec.judged_on]
    boolq = ["dataset/boolq/train.json", "dataset/boolq/test.json"]
    assert downloaded == ["ft-training_set/math_10k.json", *arithmetic, *boolq]


def test_one_file_that_fails_does_not_keep_the_others_from_coming(run, monkeypatch):
    def download(source, target, announce):
        if "SVAMP" in source.path:
            raise MissingFile("no network.")
        return target

    monkeypatch.setattr(command, "download", download)
    code, out, err = run("fetch", "SVAMP", "AddSub")
    assert code == 1
    assert "dataset/SVAMP/test.json: no network." in out
    assert f"dataset/AddSub/test.json: {fetch.cached_path('dataset/AddSub/test.json')}" in out
    assert err == "error: 1 of 2 files were not fetched; try again, or put them below --root.\n"


def test_offline_nothing_is_fetched(run):
    code, out, _ = run("fetch", "AddSub")
    assert code == 1
    assert "HF_HUB_OFFLINE forbids downloading" in out
