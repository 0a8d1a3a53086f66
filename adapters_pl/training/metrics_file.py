"""``metrics.csv``, in which a resumed run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.runs.run import GO_ON, replacing, writing


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, which keeps the rows that are there already.

    Args:
        run: the run's directory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run.parent, run.name, "")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Keep the rows of the first ``steps`` optimizer steps: the others will come again."""
        self.experiment.rewind(steps)

    def finalize(self, status: str) -> None:
        """Write what is left; where training has failed, its own error is what counts."""
        try:
            super().finalize(status)
        except UserError:
            if status == "success":
                raise


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self.metrics_keys = list(self._read()[0])

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def save(self) -> None:
        with writing(self._path, self._path.parent / "checkpoints", GO_ON):
            super().save()

    def rewind(self, steps: int) -> None:
        keys, rows = self._read()
        if keys:
            # A row that was cut when its process died has no number in its last column.
            self._write(keys, [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < steps])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self._read()[1])

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

    def _write(self, fieldnames: list[str], rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        with writing(self._path, self._path.parent / "checkpoints", GO_ON), replacing(self._path) as file:
            file.write(text.getvalue().encode())
