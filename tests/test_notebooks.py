"""The notebooks run from top to bottom, and show what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest

from tests.helpers import matrix, warm

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: The matrix of the built-in methods, but for its check of random initial values: the notebook's method draws none.
MATRIX = [check for check in matrix.CHECKS if check is not matrix.initial_values_depend_on_seed_and_name_only]


def test_there_are_notebooks():
    assert NOTEBOOKS


#: Runs the cells as a kernel does, in a process that need not import anything.
RUN = """
import json, sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        shell.run_cell(cell.source, store_history=True).raise_error()
json.dump(eval(sys.argv[2], shell.user_ns), open(sys.argv[3], "w"))
"""


def execute(path, folder, result):
    """Run a notebook in ``folder`` and return the value of its variable ``result``."""
    folder.joinpath("in").mkdir()
    words = [sys.executable, "-c", RUN, path, result, folder / "result.json"]
    done = warm.run(words, cwd=folder / "in", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(folder.joinpath("result.json").read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


def test_the_quickstart_notebook_learns(tmp_path):
    accuracies = execute(FOLDER / "01_quickstart.ipynb", tmp_path, "accuracies")
    assert accuracies.keys() == {"word_problems", "word_problems-fresh", "word_problems-unseen"}
    base, adapted = accuracies["word_problems"]
    assert base <= 0.1
    assert adapted >= 0.75


def test_the_notebook_about_an_own_adapter_shows_what_it_says(tmp_path):
    result = "[base_accuracy, accuracy, merged_difference, checks, compared, exit_codes]"
    base, accuracy, merged, checks, compared, codes = execute(
        FOLDER / "02_write_your_own_adapter.ipynb", tmp_path, result
    )
    assert base <= 0.1
    assert accuracy >= 0.4
    assert merged < 1e-4
    assert len(checks) >= 5
    assert all(len(found) == 8 and all(found.values()) for found in checks.values())
    (_, plain_certainty, _), (_, focal_certainty, _) = compared["cross-entropy"], compared["focal loss"]
    assert focal_certainty < plain_certainty
    assert codes == [0, 0]
    assert not list((tmp_path / "in").iterdir())


@pytest.fixture(scope="module")
def own_method():
    """The adapter class that the notebook defines in the cell tagged ``adapter``."""
    notebook = nbformat.read(FOLDER / "02_write_your_own_adapter.ipynb", as_version=4)
    [source] = [cell.source for cell in notebook.cells if "adapter" in cell.metadata.get("tags", [])]
    namespace = {"__name__": "mine"}
    exec(compile(source, "mine.py", "exec", dont_inherit=True), namespace)  # as a module of its own
    return namespace["MoRA"]


@pytest.mark.parametrize("arch", ["llama_gqa", "bloom", "gpt2"])
@pytest.mark.parametrize("check", MATRIX, ids=lambda check: check.__name__)
def test_the_own_adapter_passes_the_matrix(check, arch, own_method):
    matrix.check_method(check, lambda: own_method(rank=4), arch)


def test_the_notebook_about_peft_shows_what_it_says(tmp_path):
    differences, codes, refused = execute(
        FOLDER / "05_from_and_to_peft.ipynb", tmp_path, "[differences, exit_codes, refused]"
    )
    assert len(differences) == 10
    assert max(differences.values()) < 1e-4
    assert codes.pop("merge of a bottleneck") == 1
    assert codes == {"test": 0, "fit": 0, "export": 0, "merge": 0}
    assert refused
    assert not list((tmp_path / "in").iterdir())


def test_the_notebook_about_studies_and_reports_shows_what_it_says(tmp_path):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    result = "[exit_codes, [(t['state'], t['values']) for t in trials], untouched, page]"
    codes, trials, untouched, page = execute(FOLDER / "04_study_and_report.ipynb", tmp_path, result)
    assert codes == {"study": 0, "again": 0, "misspelt": 1, "report": 0, "runs": 0}
    assert trials == [
        ["complete", {"adapter": adapter, "seed_everything": seed}] for adapter in ("LoRA", "IA3") for seed in (1, 2)
    ]
    assert untouched
    assert page.count("<svg") >= 3
    assert not list((tmp_path / "in").iterdir())
