"""Reading rows from files, with errors that name the file, the row and the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError

from adapters_pl.errors import UserError

ROOT_VARIABLE = "ADAPTERS_PL_DATA"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.json`` (a list of objects) or ``.jsonl`` (an object a line) file.

    Every row has an ``instruction``; ``id``, ``input``, ``output`` and ``answer`` are text or nothing, and other
    columns stay as they are.

    Raises:
        UserError: no such file, it is cut or otherwise no JSON, it is empty, or a row is not as it should be.
            Rows are counted from 1.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the JSON file itself.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    rows = _parse_lines(path, text) if path.suffix == ".jsonl" else _parse_list(path, text)
    if not rows:
        raise UserError(f"{path}: holds no rows.")
    return [_checked(path, number, row) for number, row in enumerate(rows, start=1)]


def as_dataset(rows: list[dict[str, Any]], path: Path, columns: Iterable[str] | None = None) -> Dataset:
    """The rows as a dataset with ``columns``, or with every column that any row has.

    Raises:
        UserError: a column holds values of different types.
    """
    # Arrow would take the columns from the first row alone.
    names = list(columns or dict.fromkeys(column for row in rows for column in row))
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (ArrowInvalid, ArrowTypeError) as error:
        raise UserError(f"{path}: a column mixes types ({str(error).splitlines()[0]}); make it text.") from error


def _parse_list(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        cut = not text.rstrip().endswith("]")
        hint = "the file seems to be cut; copy or download it again" if cut else "mend the file there"
        raise UserError(f"{path}: no valid JSON at line {error.lineno}: {error.msg}; {hint}.") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: should hold a list of rows, not {type(rows).__name__}.")
    return rows


def _parse_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is no valid JSON: {error.msg}.") from error
    return rows


def _checked(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} should be an object, not {type(row).__name__}.")
    instruction = row.get("instruction")
    if instruction is None:
        raise UserError(f"{path}: row {number} has no 'instruction'; it has {', '.join(map(repr, row)) or 'nothing'}.")
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{path}: row {number} has no 'instruction' that is text, but {instruction!r}.")
    clean = dict(row)
    if row.get("id") is not None:
        clean["id"] = str(row["id"])
    for field in ("input", "output", "answer"):
        value = row.get(field)
        if isinstance(value, dict | list):
            raise UserError(f"{path}: row {number}: '{field}' should be text, not {type(value).__name__}.")
        clean[field] = None if value is None else str(value)
    return clean


def find_file(root: str | None, relative: str, wanted_by: str) -> Path:
    """``relative`` below the data root: ``root``, else the environment variable, else the current folder.

    Raises:
        UserError: it is not there; the message says where it was looked for and how to name the root.
    """
    folder = Path(root or os.environ.get(ROOT_VARIABLE) or ".").expanduser()
    path = folder / relative
    if not path.is_file():
        raise UserError(
            f"{wanted_by}: no file {path}. Set --data.root (or {ROOT_VARIABLE}) to the folder that holds '{relative}'."
        )
    return path
