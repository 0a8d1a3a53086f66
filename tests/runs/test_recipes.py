"""Where ``--config NAME`` is looked for, and what is listed."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

from adapters_pl.cli.main import COMMANDS
from adapters_pl.inputs.errors import UserError
from adapters_pl.runs.recipes import available, describe, find, name_of


def main(words):
    """Run ``recipes`` with ``words``."""
    return COMMANDS["recipes"].run("recipes", words, debug=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder and an empty installed package; place files in them."""
    (tmp_path / "work").mkdir()
    (tmp_path / "site" / "adapters_pl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path / "site" / "adapters_pl")

    def place(*names, text="# A recipe\nmodel:\n"):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return place


def resolved(files):
    return [file.resolve() for file in files]


FOLDERS = ["work", "work/configs", "site/adapters_pl/configs", "site/configs"]


@pytest.mark.parametrize("first", range(4), ids=["path", "configs", "wheel", "checkout"])
@pytest.mark.parametrize("name", ["lora.yaml", "lora", "trainer/fsdp.yaml", "trainer/fsdp"])
def test_the_nearest_of_the_files_of_one_name_is_taken(place, first, name):
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    top = place(*(f"{folder}/{file}" for folder in FOLDERS[first:]))
    assert resolved(find(name)) == [top / FOLDERS[first] / file]


def test_a_path_may_lead_anywhere_and_have_any_ending(place):
    top = place("elsewhere/mine.yml")
    assert find(str(top / "elsewhere" / "mine.yml")) == [top / "elsewhere" / "mine.yml"]
    assert resolved(find("../elsewhere/mine.yml")) == [top / "elsewhere" / "mine.yml"]


def test_a_folder_is_no_config(place):
    top = place("work/lora/notes.txt", "site/configs/lora.yaml")
    assert resolved(find("lora")) == [top / "site" / "configs" / "lora.yaml"]


def test_everything_is_listed_once_by_its_name_below_its_folder(place):
    top = place("work/configs/lora.yaml", "site/configs/lora.yaml", "site/configs/trainer/fsdp.yaml", "work/other.yaml")
    place("work/configs/notes.txt")
    assert {name: resolved(files) for name, files in available().items()} == {
        "lora.yaml": [top / "work" / "configs" / "lora.yaml"],
        "trainer/fsdp.yaml": [top / "site" / "configs" / "trainer" / "fsdp.yaml"],
    }


# ---- a method and a model


def test_a_method_and_a_model_are_a_recipe_wherever_they_lie(place):
    top = place(
        "site/configs/methods/_common.yaml", "work/configs/models/a_1.5b.yaml", "site/configs/methods/my_lora.yaml"
    )
    files = [top / "site/configs/methods/_common.yaml", top / "work/configs/models/a_1.5b.yaml"]
    for name in ("my_lora_a_1.5b", "my_lora_a_1.5b.yaml"):
        assert resolved(find(name)) == [*files, top / "site/configs/methods/my_lora.yaml"]


def test_without_anything_in_common_a_recipe_is_its_two_files(place):
    top = place("work/configs/models/b.yaml", "work/configs/methods/a.yaml")
    assert resolved(find("a_b")) == [top / "work/configs/models/b.yaml", top / "work/configs/methods/a.yaml"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_of_a_pairs_name_wins_over_the_pair(place, folder):
    top = place("work/configs/models/b.yaml", "work/configs/methods/a.yaml", f"{folder}/a_b.yaml")
    assert resolved(find("a_b")) == [top / folder / "a_b.yaml"]


def test_the_nearest_method_and_the_nearest_model_are_taken(place):
    halves = ("methods/_common.yaml", "models/b.yaml", "methods/a.yaml")
    top = place(*(f"{folder}/{half}" for folder in FOLDERS[1:] for half in halves))
    assert resolved(find("a_b")) == [top / "work/configs" / half for half in halves]


def test_what_is_no_method_makes_no_recipe(place):
    place("work/configs/models/b.yaml", "work/configs/methods/_common.yaml", "work/configs/methods/old/a.yaml")
    place("work/configs/trainer/c.yaml", "work/configs/mymethods/d.yaml")
    assert [name for name in available() if "/" not in name] == []


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["configs/quickstart.yaml"], "quickstart"),
        (["a/methods/_common.yaml", "b/models/opt6.7b.yaml", "a/methods/lora.yaml"], "lora_opt6.7b"),
        (["models/llama3_8b.yaml", "methods/my_lora.yaml", "trainer/gpu.yaml"], "my_lora_llama3_8b"),
        (["mine.yaml", "a/methods/_common.yaml", "b/models/opt6.7b.yaml", "a/methods/lora.yaml"], "mine"),
        (["methods/lora.yaml"], "lora"),
        (["methods/_common.yaml"], "_common"),
    ],
)
def test_a_run_is_called_after_its_first_recipe(files, name):
    assert name_of([Path(file) for file in files]) == name


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("lora_lama7b.yaml", "did you mean 'lora_llama7b.yaml'?"),
        ("lora_lama7b", "did you mean 'lora_llama7b.yaml'?"),
        ("trainer/fsdb.yaml", "did you mean 'trainer/fsdp.yaml'?"),
        ("lorra_llama3", "did you mean 'lora_llama3.yaml'?"),
        ("zzz", "adapters-pl recipes lists them."),
    ],
)
def test_a_misspelt_name_offers_the_nearest(place, name, offered):
    place("site/configs/lora_llama7b.yaml", "work/configs/trainer/fsdp.yaml")
    place("work/configs/models/llama3.yaml", "site/configs/methods/lora.yaml")
    with pytest.raises(UserError) as caught:
        find(name)
    assert str(caught.value) == f"config '{name}': no such file or recipe: {offered}"


def test_without_any_recipe_the_error_says_where_they_would_be_listed(place):
    with pytest.raises(UserError, match="adapters-pl recipes lists them"):
        find("lora.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# LoRA, rank 8\n# more\nmodel:\n", "LoRA, rank 8"),
        ("##  LoRA: größer \n", "LoRA: größer"),
        ("model:\n# later\n", ""),
        ("", ""),
    ],
)
def test_a_recipe_describes_itself_in_its_first_comment(place, text, line):
    top = place("mine.yaml", text=text)
    assert describe([top / "mine.yaml"]) == line


def test_the_listing_has_recipes_first_and_then_their_parts_and_overlays(place, capsys):
    place("site/configs/trainer/cpu.yaml", "site/configs/prefix.yaml", text="# Of the package\n")
    place("work/configs/lora.yaml", "work/configs/prefix.yaml", text="# Mine\n")
    place("site/configs/methods/_common.yaml", text="# Common\n")
    place("site/configs/methods/ia3.yaml", text="# IA3\n")
    place("site/configs/models/opt.yaml", text="# OPT\n")
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ia3_opt.yaml          IA3; OPT",
        "lora.yaml             Mine",
        "prefix.yaml           Mine",
        "methods/_common.yaml  Common",
        "methods/ia3.yaml      IA3",
        "models/opt.yaml       OPT",
        "trainer/cpu.yaml      Of the package",
        "",
        "Use one with: adapters-pl fit --config NAME",
    ]


def test_show_says_where_every_value_is_from(place, capsys):
    place(
        "site/configs/methods/_common.yaml",
        text="data:\n  class_path: D  # the paper: [4]\n  init_args: {a: 1, b: 2}\n",
    )
    place("work/configs/models/m.yaml", text="# M\nmodel: {base: x/y, lr: 1.0}  # theirs\n")
    place(
        "site/configs/methods/a.yaml", text="# A\nmodel:\n  lr: 2.0\ndata:\n  init_args: {b: 3}  # ours\nadapter: A\n"
    )
    assert main(["show", "a_m"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "# A; M",
        "data:",
        "  class_path: D  # methods/_common.yaml: the paper: [4]",
        "  init_args:",
        "    a: 1  # methods/_common.yaml",
        "    b: 3  # methods/a.yaml: ours",
        "model:",
        "  base: x/y  # models/m.yaml: theirs",
        "  lr: 2.0  # methods/a.yaml",
        "adapter: A  # methods/a.yaml",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("3.0e-4", "0.0003"),
        ("'4'", "'4'"),
        ("null", "null"),
        ("{}", "{}"),
        ("[a, {b: 1}]", "[a, {b: 1}]"),
        ('"--- a\\n--- b"', '"--- a\\n--- b"'),
        ("|-\n  two\n  lines", '"two\\nlines"'),
    ],
)
def test_show_writes_a_value_in_one_line(place, capsys, written, shown):
    place("work/mine.yaml", text=f"# Mine\nkey: {written}\n")
    assert main(["show", "mine"]) == 0
    assert capsys.readouterr().out == f"# Mine\nkey: {shown}  # mine.yaml\n"


def test_show_takes_a_file_too_and_refuses_what_fit_refuses(place, capsys):
    place("work/mine.yml", text="a: 1\n")
    assert main(["show", "mine.yml"]) == 0
    assert "a: 1  # mine.yml" in capsys.readouterr().out
    place("work/mine.yml", text="a: 1\na: 2\n")
    with pytest.raises(UserError, match="the key 'a' stands twice"):
        main(["show", "mine.yml"])
    with pytest.raises(UserError, match="config 'nowhere': no such file or recipe"):
        main(["show", "nowhere"])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["show", "--help"]])
def test_the_help_says_both(place, capsys, words):
    assert main(words) == 0
    assert "usage: adapters-pl recipes\n       adapters-pl recipes show NAME" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["show"], ["show", "a", "b"], ["list"]])
def test_other_arguments_are_refused(place, words):
    with pytest.raises(UserError) as caught:
        main(words)
    assert str(caught.value) == (
        f"recipes takes nothing or 'show NAME', got: {' '.join(words)}. See: adapters-pl recipes --help"
    )


def test_the_packages_own_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [file] = find("quickstart")
    assert file.name == "quickstart.yaml"
    assert file.is_absolute()
    assert describe([file]) != ""
    assert [file.name for file in find("ia3_qwen3_8b")] == ["_common.yaml", "qwen3_8b.yaml", "ia3.yaml"]


def test_nothing_heavy_is_imported():
    program = "import sys, adapters_pl.runs.recipes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "jsonargparse", "transformers"}.isdisjoint(done.stdout.split())


def test_a_name_of_two_pairs_is_refused(place):
    place(*(f"work/configs/{name}.yaml" for name in ("methods/a", "methods/a_b", "models/b_c", "models/c")))
    with pytest.raises(UserError, match="'a_b_c' could be method a with model b_c or method a_b with model c: rename"):
        find("a_b_c")
    assert len(find("a_c")) == 2
