"""A ``study.db`` that comes from a stranger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers import hostile_inputs
from tests.helpers.hostile_cases.common import (
    Canary,
    as_link,
    both,
    cut,
    flip,
    pickled,
    put,
    remove,
)
from tests.helpers.hostile_cases.studies.files import AGAIN, STORED, Case, sql, stand_in


def study_storage_cases() -> Iterator[hostile_inputs.Case]:
    """A ``study.db`` that comes from a stranger."""
    files: dict[str, Callable[[], Any]] = {
        "empty": put(STORED, b""),
        "text": put(STORED, "hello"),
        "garbage": put(STORED, os.urandom(5000)),
        "header alone": put(STORED, b"SQLite format 3\0"),
        "a pickle": pickled(STORED, Canary),
        "another database": both(remove(STORED), sql("CREATE TABLE x (y)")),
        **{f"cut at {share:.0%}": cut(STORED, share) for share in (0.05, 0.5, 0.95)},
        **{f"overwritten at {share:.0%}": flip(STORED, share, 400) for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)},
        "journal of garbage": put(STORED.with_name("study.db-journal"), os.urandom(900)),
        "journal a pipe": lambda: os.mkfifo(STORED.with_name("study.db-journal")),
        "journal a link out": as_link(STORED.with_name("study.db-journal"), "../../../elsewhere/j"),
        "write-ahead log": both(sql("PRAGMA journal_mode=WAL"), put(STORED.with_name("study.db-wal"), b"x" * 900)),
    }
    for what, spoil in files.items():
        yield Case(f"study/db {what}", AGAIN, both(stand_in, spoil), "any", ("study.db",), how=f"study.db: {what}")
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    statements: dict[str, tuple[str, ...]] = {
        "no tables": tuple(f"DROP TABLE {table}" for table in ("trials", "studies", "trial_user_attributes")),
        "no trials": ("DELETE FROM trials",),
        "no version": ("DELETE FROM version_info",),
        "another version": ("UPDATE version_info SET schema_version = 99",),
        "version a text": ("UPDATE version_info SET schema_version = 'x'",),
        "library another": ("UPDATE version_info SET library_version = 'x'",),
        "revision unknown": ("UPDATE alembic_version SET version_num = 'no.such'",),
        "revision old": ("UPDATE alembic_version SET version_num = 'v0.9.0.a'",),
        "no revision": ("DELETE FROM alembic_version",),
        "direction unknown": ("UPDATE study_directions SET direction = 'x'",),
        "direction missing": ("DELETE FROM study_directions",),
        "directions two": ("INSERT INTO study_directions (direction, study_id, objective) VALUES ('MAXIMIZE', 1, 1)",),
        "direction the other": ("UPDATE study_directions SET direction = 'MINIMIZE'",),
        "name another": ("UPDATE studies SET study_name = 'x'",),
        "asked missing": ("DELETE FROM study_user_attributes",),
        "asked no JSON": ("UPDATE study_user_attributes SET value_json = '{[x'",),
        "asked a list": ("UPDATE study_user_attributes SET value_json = '[1]'",),
        "asked a number": ("UPDATE study_user_attributes SET value_json = '3'",),
        "asked axes a list": ("""UPDATE study_user_attributes SET value_json = '{"axes": [1], "set": 3}'""",),
        "asked deep": (f"UPDATE study_user_attributes SET value_json = '{'[' * 100_000}'",),
        "asked a blob": ("UPDATE study_user_attributes SET value_json = x'80049500'",),
        "state unknown": ("UPDATE trials SET state = 'x'",),
        "state running": ("UPDATE trials SET state = 'RUNNING'",),
        "state waiting": ("UPDATE trials SET state = 'WAITING'",),
        "state failed": ("UPDATE trials SET state = 'FAIL'",),
        "number null": ("UPDATE trials SET number = NULL",),
        "number a text": ("UPDATE trials SET number = 'x'",),
        "number the same": ("UPDATE trials SET number = 0",),
        "number huge": ("UPDATE trials SET number = 9223372036854775807",),
        "dates of text": ("UPDATE trials SET datetime_start = 'x', datetime_complete = 'y'",),
        "dates missing": ("UPDATE trials SET datetime_start = NULL, datetime_complete = NULL",),
        "slot missing": ("DELETE FROM trial_user_attributes",),
        "slot a list": ("UPDATE trial_user_attributes SET value_json = '[1]' WHERE key = 'slot'",),
        "slot a text": ("""UPDATE trial_user_attributes SET value_json = '"x"' WHERE key = 'slot'""",),
        "slot negative": ("UPDATE trial_user_attributes SET value_json = '-1' WHERE key = 'slot'",),
        "slot a float": ("UPDATE trial_user_attributes SET value_json = '0.0' WHERE key = 'slot'",),
        "slot true": ("UPDATE trial_user_attributes SET value_json = 'true' WHERE key = 'slot'",),
        "slot no JSON": ("UPDATE trial_user_attributes SET value_json = 'x' WHERE key = 'slot'",),
        "slot a huge number": (f"UPDATE trial_user_attributes SET value_json = '{'9' * 5000}' WHERE key = 'slot'",),
        "error a list": (
            "UPDATE trial_user_attributes SET value_json = '[1]', key = 'error' WHERE key = 'host'",
            "UPDATE trials SET state = 'FAIL'",
        ),
        "error of escapes": (
            """UPDATE trial_user_attributes SET value_json = '"\\u001b[31m[bold]x\\n\\ny"', key = 'error' """
            "WHERE key = 'host'",
            "UPDATE trials SET state = 'FAIL'",
        ),
        "fixed values a list": (
            "UPDATE trial_system_attributes SET value_json = '[1]' WHERE key = 'fixed_params'",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "fixed values of another key": (
            """UPDATE trial_system_attributes SET value_json = '{"x": [1]}' WHERE key = 'fixed_params'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "fixed values that are none": (
            """UPDATE trial_system_attributes SET value_json = '{"adapter.rank": [1]}' WHERE key = 'fixed_params'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "value NaN": ("UPDATE trial_values SET value_type = 'x'",),
        "value infinite": ("UPDATE trial_values SET value_type = 'INF_POS'",),
        "value null": ("UPDATE trial_values SET value = NULL",),
        "value a text": ("UPDATE trial_values SET value = 'x'",),
        "value missing": ("DELETE FROM trial_values",),
        "value huge": ("UPDATE trial_values SET value = 1e300",),
        "distribution no JSON": ("UPDATE trial_params SET distribution_json = 'x'",),
        "distribution a list": ("UPDATE trial_params SET distribution_json = '[1]'",),
        "distribution unknown": ("""UPDATE trial_params SET distribution_json = '{"name": "os.system"}'""",),
        "distribution empty": (
            """UPDATE trial_params SET distribution_json = '{"name": "CategoricalDistribution", """
            """"attributes": {"choices": []}}'""",
        ),
        "distribution another": (
            """UPDATE trial_params SET distribution_json = '{"name": "FloatDistribution", "attributes": """
            """{"low": 1.0, "high": 2.0, "log": false, "step": null}}'""",
            "UPDATE trials SET state = 'WAITING'",
        ),
        "parameter beyond": ("UPDATE trial_params SET param_value = 99",),
        "parameter negative": ("UPDATE trial_params SET param_value = -1",),
        "parameter a text": ("UPDATE trial_params SET param_value = 'x'",),
        "parameter null": ("UPDATE trial_params SET param_value = NULL",),
        "parameter of another name": ("UPDATE trial_params SET param_name = 'x'",),
        "heartbeat a text": ("UPDATE trial_heartbeats SET heartbeat = 'x'", "UPDATE trials SET state = 'RUNNING'"),
        "heartbeat of the future": (
            "UPDATE trial_heartbeats SET heartbeat = '9999-01-01 00:00:00'",
            "UPDATE trials SET state = 'RUNNING'",
        ),
        "a trigger that fails": (
            "CREATE TRIGGER t BEFORE UPDATE ON trials BEGIN SELECT RAISE(ABORT, 'no'); END",
            "CREATE TRIGGER u BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'no'); END",
        ),
        "a trigger without an end": (
            f"CREATE TRIGGER t AFTER INSERT ON trial_heartbeats BEGIN SELECT count(*) FROM ({endless}); END",
            "UPDATE trials SET state = 'WAITING'",
            "DELETE FROM trial_heartbeats",
        ),
        "a view without an end": ("DROP TABLE trial_values", f"CREATE VIEW trial_values AS {endless}"),
        "a view of the version": (
            "DROP TABLE version_info",
            f"CREATE VIEW version_info AS SELECT x AS version_info_id, 12 AS schema_version, 'x' AS library_version "
            f"FROM ({endless})",
        ),
        "a table of functions": ("CREATE VIRTUAL TABLE t USING fts5(x)",),
        "many trials": (
            "WITH RECURSIVE c(x) AS (SELECT 9 UNION ALL SELECT x + 1 FROM c LIMIT 30000) INSERT INTO trials "
            "(number, study_id, state) SELECT x, 1, 'WAITING' FROM c",
        ),
    }
    for what, changes in statements.items():
        spoil = both(stand_in, sql(*changes))
        yield Case(f"study/db {what}", AGAIN, spoil, "any", ("study|storage|trial",), how=f"study.db: {what}")
