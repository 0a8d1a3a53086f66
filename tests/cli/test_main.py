"""The front door: what it answers itself, what it imports, and how it ends."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from adapters_pl import __version__
from adapters_pl.cli.main import COMMANDS, main
from adapters_pl.inputs.errors import LONGEST_LINE, MOST_LINES

HEAVY = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse")


ASK = [[command, "--help"] for command in COMMANDS]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], ["fit", "--config", "nope"], [], ["data", "show", "-h"], *ASK]
)
def test_the_front_door_imports_nothing_heavy(arguments):
    program = (
        "import sys; from adapters_pl.cli.main import main; main(sys.argv[1:]); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adapters-pl {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_begins_with_its_usage(capsys, command):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: adapters-pl {command}")


def test_an_unknown_command_offers_the_nearest(capsys):
    assert main(["tets"]) == 1
    assert capsys.readouterr().err == "error: There is no command 'tets': did you mean 'test'?\n"


def test_recipes_are_listed_with_a_line_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (quickstart,) = [line for line in lines if line.startswith("quickstart.yaml ")]
    assert len(quickstart.split(maxsplit=1)[1]) > 20


def test_an_unknown_recipe_offers_the_nearest_and_debug_shows_the_traceback(capsys):
    from adapters_pl import UserError

    assert main(["fit", "--config", "quickstrat.yaml"]) == 1
    assert "did you mean 'quickstart.yaml'" in capsys.readouterr().err
    with pytest.raises(UserError):
        main(["fit", "--config", "quickstrat.yaml", "--debug"])


def test_config_needs_a_value(capsys):
    assert main(["fit", "--config"]) == 1
    assert "--config needs a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["x" * 100_000],
        ["recipes", "y " * 50_000],
        ["recipes", "y\n" * 50_000],
        ["fit", "--config", "z" * 100_000],
        ["data", "show", "n o" * 50_000],
    ],
)
def test_what_was_given_is_shortened_within_an_error(capsys, words):
    assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert any("..." in line for line in lines)
    assert len(lines) <= MOST_LINES
    assert all(len(line.partition("known: ")[0]) <= LONGEST_LINE for line in lines)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m adapters_pl recipes | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "adapters_pl", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"adapters-pl {__version__}\n")


@pytest.mark.parametrize("words", [["recipes"], ["export", "--out", "new", "--ckpt_path", "missing.ckpt"]])
def test_what_the_console_imports_is_never_garbage_and_the_rest_is_collected(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    before = gc.get_freeze_count()
    main(words)
    assert gc.get_freeze_count() == before, "in a notebook it would keep what is garbage there"
    gc.disable()  # as the console does
    try:
        main(words)
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
        gc.enable()
