"""The answers of a test that is under way, row by row, so that an interrupted test goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapters_pl.inputs.masking import masked_values
from adapters_pl.inputs.untrusted import has_shape

Record = dict[str, Any]
#: What the records of a test have at least.
_SHAPE = {"row": int, "prompt_hash": str, "output": str, "correct": bool}


class PartialAnswers:
    """A file of records that grows batch by batch; its first line says by what settings they were made.

    Whole lines are appended in one write each, also by several processes, so the file can be read at any moment; a
    line that a crash cut is left out. Records made by other settings, or asked by another prompt, are never taken.

    Args:
        path: the file, ``<set>.partial.jsonl``.
        settings: what every answer depends on beside its prompt: protocol, decoding, base, adapters.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        # As they will be read again: JSON knows no tuples.
        self.settings = masked_values(json.loads(json.dumps(settings)))

    def begin(self, elsewhere: Iterable[Path] = ()) -> None:
        """Make the file, with the records of an interrupted test by the same settings if there are any.

        Args:
            elsewhere: further files that may hold them, the newest last.
        """
        records: list[Record] = []
        for path in (self.path, *reversed(list(elsewhere))):
            records = self._of(path)
            if records:
                break
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(_lines([{"settings": self.settings}, *records]), encoding="utf-8")
        os.replace(temporary, self.path)

    def read(self, hashes: dict[int, str]) -> dict[int, Record]:
        """The records by row; of rows whose prompt is not that of ``hashes`` none.

        Args:
            hashes: the prompt hash of every row that is asked now.
        """
        return {
            record["row"]: record
            for record in self._of(self.path)
            if hashes.get(record["row"]) == record.get("prompt_hash")
        }

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a batch."""
        if records:
            with self.path.open("ab") as file:
                file.write(_lines(records).encode("utf-8"))
                file.flush()  # in one write; on a full disk an error, where an unbuffered file would only write less
                os.fsync(file.fileno())

    def remove(self) -> None:
        """The test is complete: its records lie in ``<set>.jsonl`` now."""
        self.path.unlink(missing_ok=True)

    def _of(self, path: Path) -> list[Record]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return []
        header, *rest = (_parsed(line) for line in lines)
        if header is None or header.get("settings") != self.settings:
            return []
        return [record for record in rest if record is not None and has_shape(record, _SHAPE)]


def _lines(records: Iterable[Record]) -> str:
    # ASCII only: a character that is no valid text (half of a pair) survives, and a line holds no other line's end.
    return "".join(json.dumps(record) + "\n" for record in records)


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
