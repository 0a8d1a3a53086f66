"""The notebooks run from top to bottom, and show what they say."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


def execute(path, folder, result):
    """Run a notebook in ``folder`` and return the value of its variable ``result``."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({result}))"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return json.loads(notebook.cells[-1].outputs[0]["text"])


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
