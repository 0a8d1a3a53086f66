"""What a training took: ``fit.json`` in the run's directory."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Literal

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import has_shape, read_json
from adapters_pl.runs.run import Run

FILE = "fit.json"
#: ``running`` also of a training that was killed, which can no longer say so.
State = Literal["running", "complete", "interrupted", "crashed"]

_SHAPE = {"state": str, "began": str, "written": str, "seconds": (int, float), "trainable_parameters": int}


class Effort:
    """Counts what a training takes, and writes it down; a resumed one adds to what is there.

    ``fit.json`` holds ``state``, ``error`` (a line, or ``None``), ``began`` and ``written`` (UTC), ``seconds`` (of all
    parts, validation included, and without loading the base), ``steps``, ``epochs``, ``trainable_parameters``,
    ``adapters`` (parameters by name), ``peak_bytes``, ``device`` and ``processes``.

    Args:
        run: whose training it is.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._earlier: dict[str, Any] = {}
        self._since = 0.0

    def begin(self, adapters: dict[str, int]) -> None:
        """Begin to count.

        Args:
            adapters: the parameters that each adapter trains, by its name.
        """
        self._earlier = read_effort(self.run) or {"began": _now(), "seconds": 0.0}
        self._earlier |= {"trainable_parameters": sum(adapters.values()), "adapters": adapters}
        self._since = time.monotonic()

    def write(self, state: State, error: str | None, peak_bytes: int, **progress: Any) -> None:
        """Bring the file up to date.

        Args:
            state: how training stands.
            error: what ended it, in a line.
            peak_bytes: the most memory that this part of it took.
            progress: ``steps``, ``epochs``, ``device`` and ``processes``.

        Raises:
            UserError: the system refused.
        """
        seconds = self._earlier["seconds"] + time.monotonic() - self._since
        peak = max(peak_bytes, self._earlier.get("peak_bytes") or 0)
        content = {**self._earlier, **progress, "seconds": round(seconds, 3), "peak_bytes": peak}
        self.run.write(FILE, {"state": state, "error": error, **content, "written": _now()})


def read_effort(run: Run) -> dict[str, Any] | None:
    """What ``fit.json`` says; ``None`` where there is none, as in runs of earlier versions, or it is no such file."""
    if not (run.path / FILE).is_file():
        return None
    try:
        found = read_json(run.own(FILE))
    except UserError:
        return None
    return found if has_shape(found, _SHAPE) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
