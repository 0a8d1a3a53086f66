"""``metrics.csv``, in which a resumed run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from adapters_pl.compat.lightning import KeepingWriter
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.runs.at_once import replacing
from adapters_pl.runs.run import GO_ON, writing


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, which keeps the rows that are there already.

    Args:
        run: the run's directory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run.parent, run.name, "")
        self._writer: _Writer | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._writer is None:
            self._writer = _Writer(self.log_dir)
        return self._writer

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Keep the rows of the first ``steps`` optimizer steps: the others will come again."""
        self.experiment.rewind(steps)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; where training has failed, its own error is what counts."""
        try:
            if self._writer is not None:
                self.save()
        except UserError:
            if status == "success":
                raise


class _Writer(KeepingWriter):
    """Adds rows to the file. Where the file or a column is new, a new file takes its place in one step."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self.metrics_keys = self._read()[0]

    def save(self) -> None:
        if not self.metrics:
            return
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if keys == self.metrics_keys and self._path.is_file():
            with self._writing(), self._path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, keys).writerows(self.metrics)
        else:
            self._write(keys, [*self._read()[1], *self.metrics])
        self.metrics_keys, self.metrics = keys, []

    def rewind(self, steps: int) -> None:
        keys, rows = self._read()
        if keys:
            # A row that was cut when its process died has no number in its last column.
            self._write(keys, [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < steps])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self._path.is_file():
            return [], []
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                keys, rows = list(reader.fieldnames or []), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{self._path}: is no CSV ({first_line(error)}); move it away, then go on.") from error
        if keys and "step" not in keys:
            raise UserError(f"{self._path}: has no column 'step'; move it away, then go on.")
        return keys, rows

    def _write(self, keys: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, keys)
        writer.writeheader()
        writer.writerows(rows)
        with self._writing(), replacing(self._path) as file:
            file.write(text.getvalue().encode())

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._path, self._path.parent / "checkpoints", GO_ON)
