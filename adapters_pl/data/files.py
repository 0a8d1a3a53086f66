"""Reading rows from files, with errors that name the file, the row and the remedy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyarrow import parquet

from adapters_pl.inputs.errors import UserError, first_line

#: The fields of a row, in the order in which examples use them.
FIELDS = ("id", "instruction", "input", "output", "answer")

#: The longest text of a field.
MOST_CHARACTERS = 1_000_000

_CUT, _MEND = "the file seems to be cut; copy or download it again", "mend the file there"


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The rows of a file: ``.json`` (a list of objects), ``.jsonl`` (an object a line), ``.csv`` or ``.parquet``.

    Every row has an ``instruction``; ``id``, ``input``, ``output`` and ``answer`` are text or nothing (a blank
    ``answer`` is nothing), and other columns stay as they are.

    Args:
        path: the file; another ending than these four is read as JSON.
        columns: which of the file's columns a field is read from, where it has another name.

    Raises:
        UserError: no such file, it is cut or otherwise not what its ending says, it is empty, a row is not as it
            should be, or two have the same id. Rows are counted from 1.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the JSON file itself.")
    if path.suffix == ".parquet":
        rows = _parse_parquet(path)
    else:
        parse = {".jsonl": _parse_lines, ".csv": _parse_csv}.get(path.suffix, _parse_list)
        rows = parse(path, _text(path))
    return checked_rows(rows, str(path), columns)


def checked_rows(rows: Iterable[Any], where: str, columns: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Rows from anywhere in the form that examples are made of; ``where`` names their origin in an error."""
    checked = [_checked(where, number, row, columns or {}) for number, row in enumerate(rows, start=1)]
    if not checked:
        raise UserError(f"{where}: holds no rows; name a file that has some.")
    first: dict[str, int] = {}
    for number, row in enumerate(checked, start=1):
        if row.get("id") is not None and (earlier := first.setdefault(row["id"], number)) != number:
            raise UserError(
                f"{where}: rows {earlier} and {number} have the same id '{row['id']}'; give each row its own, or "
                "leave 'id' out."
            )
    return checked


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions.") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; copy or download it again.")
    return text


def _parse_list(path: Path, text: str) -> list[Any]:
    rows = _json(text, path, "", _MEND if text.rstrip().endswith("]") else _CUT)
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: should hold a list of rows, not {type(rows).__name__}; files of one object a line end in .jsonl."
        )
    return rows


def _parse_lines(path: Path, text: str) -> list[Any]:
    lines = text.rstrip().split("\n")
    return [
        _json(line, path, f"line {number}", _CUT if number == len(lines) else _MEND)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _json(text: str, path: Path, line: str, hint: str) -> Any:
    """What ``text`` holds: all of ``path``, or the one ``line`` of it that is named."""
    try:
        return json.loads(text)
    except RecursionError as error:
        what = f"{line} is nested too deep to be a row" if line else "is nested too deep to be rows"
        raise UserError(f"{path}: {what}; {_MEND}.") from error
    except json.JSONDecodeError as error:
        what = f"{line} is no valid JSON" if line else f"no valid JSON at line {error.lineno}"
        raise UserError(f"{path}: {what}: {error.msg}; {hint}.") from error
    except ValueError as error:  # a number of very many digits
        what = f"{line} is no valid JSON" if line else "no valid JSON"
        raise UserError(f"{path}: {what}: {error}; {hint if line else _MEND}.") from error


def _parse_csv(path: Path, text: str) -> list[Any]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Any] = []
    try:
        header = next(reader, None)
        if header is None:
            return []
        for values in filter(None, reader):
            if len(values) != len(header):
                raise UserError(
                    f"{path}: row {len(rows) + 1} has {len(values)} fields, the header has {len(header)}; quote the "
                    "fields that hold commas."
                )
            # CSV knows no difference between nothing and empty text.
            rows.append({name: value or None for name, value in zip(header, values, strict=True)})
    except csv.Error as error:
        raise UserError(f"{path}: no valid CSV at line {reader.line_num}: {error}; {_MEND}.") from error
    return rows


def _parse_parquet(path: Path) -> list[Any]:
    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except Exception as error:  # what is raised differs from one kind of column to another
        reason = first_line(error).rstrip(".")
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); copy or download it again.") from error


def _checked(where: str, number: int, row: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: row {number} should be an object, not {type(row).__name__}; mend the row.")
    clean = dict(row)
    has = ", ".join(map(repr, row)) or "nothing"
    for field, column in columns.items():
        if column not in row:
            raise UserError(
                f"{where}: row {number} has no '{column}' to read '{field}' from; it has {has}. Mend the row, or name "
                "another column (--data.columns)."
            )
        clean[field] = row[column]
    if strange := next((name for name in row if not str(name).isprintable()), None):
        raise UserError(f"{where}: a column's name holds control characters ({strange!r:.80}); mend the file.")
    instruction = clean.get("instruction")
    if instruction is None:
        raise UserError(
            f"{where}: row {number} has no 'instruction'; it has {has}. Mend the row, or name the column that holds it "
            "(InstructionJSON's --data.columns)."
        )
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{where}: row {number} has no 'instruction' that is text, but {instruction!r}; mend the row.")
    if clean.get("id") is not None:
        clean["id"] = str(clean["id"])
    for field in ("input", "output", "answer"):
        value = clean.get(field)
        if isinstance(value, dict | list):
            raise UserError(
                f"{where}: row {number}: '{field}' should be text, not {type(value).__name__}; mend the row."
            )
        clean[field] = None if value is None else str(value)
    for field in FIELDS:
        if len(clean.get(field) or "") > MOST_CHARACTERS:
            raise UserError(
                f"{where}: row {number}: '{field}' has {len(clean[field]):,} characters, over {MOST_CHARACTERS:,}; "
                "no context holds so many. Mend the row, or leave it out."
            )
        try:
            (clean.get(field) or "").encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: row {number}: '{field}' holds half a character (a lone surrogate), which is no "
                "text; mend the row."
            ) from None
    if not (clean["answer"] or "").strip():
        clean["answer"] = None  # a blank is no gold answer: every model would be right that says nothing
    return clean
