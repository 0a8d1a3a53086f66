"""The notebooks run from top to bottom, and show what they say."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture
def execute(tmp_path):
    def run(path):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            values = client.kc.execute_interactive(
                "", user_expressions={"accuracies": "accuracies"}, store_history=False, silent=True
            )["content"]["user_expressions"]
        return notebook, values

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


def test_the_quickstart_notebook_learns(execute):
    _, values = execute(FOLDER / "01_quickstart.ipynb")
    accuracies = eval(values["accuracies"]["data"]["text/plain"])
    assert accuracies.keys() == {"word_problems", "word_problems-fresh", "word_problems-unseen"}
    base, adapted = accuracies["word_problems"]
    assert base <= 0.1
    assert adapted >= 0.75
