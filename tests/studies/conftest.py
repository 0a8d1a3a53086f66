"""A PostgreSQL server of Debian's packages, and studies whose trials cost nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def _binaries():
    """The folder of PostgreSQL's programs; ``None`` where there is none."""
    folders = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a database on a server of our own; skips where no server is installed."""
    pytest.importorskip("psycopg")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed here")
    place = Path(tempfile.mkdtemp(prefix="pg"))
    own = {}
    if os.getuid() == 0:  # the server refuses root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            user = pwd.getpwnam("nobody")
        os.chown(place, user.pw_uid, user.pw_gid)
        own = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program, *words):
        log = (place / "log").open("ab")
        with log:
            command = [str(binaries / program), *words]
            subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **own)

    data = str(place / "data")
    (place / "log").touch()
    (place / "log").chmod(0o666)
    try:
        run("initdb", "-D", data, "-U", "tests", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8")
        options = f"-F -k {place} -c listen_addresses='' -c shared_buffers=8MB"
        run("pg_ctl", "-D", data, "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tests@/postgres?host={place}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)
