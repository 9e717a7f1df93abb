"""A PostgreSQL server for tests: one per run, a schema per store."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SETTINGS = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=40")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL of our own on a Unix socket; the URL without options. Skips where it is not installed."""
    found = (
        sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if Path("/usr/lib/postgresql").is_dir()
        else []
    )
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed here: apt-get install postgresql")
    # Not below tmp_path: its folders are closed to the other user, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="caudal-pg-"))
    user = "postgres" if os.getuid() == 0 else None  # postgres refuses to run as root
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", str(data), "-U", "caudal", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, user=user, cwd=folder, timeout=60,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [str(Path(initdb).with_name("postgres")), "-D", str(data), "-k", str(folder), *SETTINGS],
                stdout=log, stderr=log, user=user, cwd=folder,
            )  # fmt: skip
        try:
            _wait_for(folder, server)
            yield f"postgresql://caudal@/postgres?host={folder}"
        finally:
            server.send_signal(2)  # SIGINT: PostgreSQL's fast shutdown
            server.wait(timeout=20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(folder: Path, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers."""
    import psycopg

    deadline_s = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host=str(folder), user="caudal", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError((folder / "log").read_text()) from None
            time.sleep(0.05)


def new_schema(postgres_url: str) -> str:
    """The URL of an empty schema of its own."""
    import psycopg

    name = f"t{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgres_url}&options=-csearch_path%3D{name}"
