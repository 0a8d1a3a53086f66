"""Optuna, with its storage behind an address: how it is reached, and what goes wrong there in our words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.masking import masked
from adapters_pl.inputs.untrusted import reason_of
from adapters_pl.studies.asked import Values

try:
    import optuna
    import sqlalchemy
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise UserError(f"study needs Optuna ({first_line(error)}): pip install 'adapters-pl[study]'") from error

__all__ = ["GRACE", "HEARTBEAT", "FrozenTrial", "TrialState", "connect"]
__all__ += ["of_file", "optuna", "pruner", "reaching", "sampler"]

#: Seconds between two heartbeats, and without one after which a worker of another machine is taken for dead.
HEARTBEAT, GRACE = 20, 120

#: The addresses whose drivers know ``connect_timeout``.
_TIMED = re.compile(r"(postgresql(\+psycopg2?)?|(mysql|mariadb)(\+(pymysql|mysqldb))?)://")


def of_file(path: Path) -> str:
    """The address of a file, whatever characters its path has."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def connect(url: str, when_stale: Callable[[optuna.Study, FrozenTrial], None]) -> optuna.storages.RDBStorage:
    """The storage at ``url``, whose tables are made where they are not there.

    Args:
        url: as SQLAlchemy takes it.
        when_stale: called for each trial that was ended because its heartbeat had stopped.
    """
    if url.startswith("sqlite"):
        _refuse_programs(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # Wait for another process that writes in a file; do not wait for ever for a server that does not answer.
    arguments = {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": 10} if _TIMED.match(url) else {}
    last: Exception | None = None
    for _ in range(3):
        try:
            return optuna.storages.RDBStorage(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna fills a form in
                engine_kwargs={"connect_args": arguments},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=when_stale,
            )
        except Exception as error:
            # Another worker makes the same tables at this moment.
            if not re.search("already exists|[Dd]uplicate|[Uu]nique", str(error)):
                raise
            last = error
    assert last is not None
    raise last


def _refuse_programs(url: str) -> None:
    """Refuse a file with anything that SQLite would run by itself, and that no study writes.

    Raises:
        UserError: it holds a trigger, a view or a virtual table.
    """
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
        ).first()
    engine.dispose()
    if found is not None:
        raise UserError(f"storage {masked(url)}: it holds what no study writes, a {found[0]} '{found[1]}'; remove it.")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Word what goes wrong in the storage at ``url``; within it nothing is done but to ask it and to write into it.

    Raises:
        UserError: it cannot be used, or holds what no study writes; in one line, without a password.
    """
    try:
        yield
    except (UserError, MemoryError, optuna.exceptions.UpdateFinishedTrialError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ImportError):
            raise UserError(
                f"storage {masked(url)}: its driver is missing ({first_line(cause)}); for PostgreSQL: "
                "pip install 'adapters-pl[postgresql]'"
            ) from error
        raise UserError(f"storage {masked(url)}: cannot be used ({reason_of(cause)}); see to it.") from error


def sampler(asked: Values | None, number: int) -> optuna.samplers.BaseSampler:
    """What draws the values of the trial ``number``: by a seed of its own, so that two workers do not draw the same."""
    seed = ((asked or {}).get("seed", 0) + number) % 2**32
    if asked and asked["name"] == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(asked: Values | None) -> optuna.pruners.BasePruner:
    """What stops trials that fall behind.

    Raises:
        UserError: it does not take these arguments.
    """
    if asked is None:
        return optuna.pruners.NopPruner()
    kinds: dict[str, Any] = {
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    try:
        return kinds[asked["name"]](**{key: value for key, value in asked.items() if key != "name"})
    except ValueError as error:
        raise UserError(f"pruner {asked['name']}: {first_line(error).rstrip('.')}.") from error
