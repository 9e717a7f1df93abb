"""One database behind one pair of doors: `reading` and `writing`, over SQLite and PostgreSQL.

Knows transactions, locks and what the database's errors mean to a user; nothing of tables.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from caudal.domain.errors import CaudalError, StorageFailed, UsageError

BUSY_TIMEOUT_S = 10.0
"""How long a writer waits for the other process's transaction; ours take milliseconds."""

_BEGIN = "caudal_begin"  # the execution option that says how SQLite begins
_SYNC = "caudal_sync"  # the one that says whether its commit waits for the disk
_PG_NOT_ALLOWED = "42501"  # PostgreSQL's code for a privilege that the user lacks

_SQLITE_WHY = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; what was stored before is still valid"),
    sqlite3.SQLITE_READONLY: (
        "the database may not be written",
        "check the owner of the file and its folder",
    ),
    sqlite3.SQLITE_PERM: ("the database may not be opened", "check the owner of the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("the database cannot be opened", "check that the folder is there and yours"),
    sqlite3.SQLITE_NOTADB: ("the file is not a database", "name another file, or move this one away"),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", "put a backup in its place, or move it away"),
    sqlite3.SQLITE_IOERR: ("the disk does not do as asked", "check the disk"),
    sqlite3.SQLITE_BUSY: ("another process keeps the database locked", "see which process holds the file"),
}


class Database:
    """A pool of connections to one database. Safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self.where = self._url.render_as_string(hide_password=True)
        self.sqlite = self._url.get_backend_name() == "sqlite"
        in_memory = self.sqlite and self._url.database in (None, "", ":memory:")
        self._engine = _engine(self._url, in_memory)
        self._reader = self._engine.execution_options(**self._reader_options())
        self._durable = self._engine.execution_options(**{_SYNC: "FULL"})
        # All threads share the one connection that a database in memory has: one transaction at a time.
        # Writers to a file also queue here: SQLite's own waiting is by sleeping, and unfair.
        gate = threading.RLock()
        self._write_gate: AbstractContextManager[Any] = gate if self.sqlite else nullcontext()
        self._read_gate: AbstractContextManager[Any] = gate if in_memory else nullcontext()
        if self.sqlite and not in_memory:
            self._prepare_file()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction in which every statement sees the same moment. Raises StorageFailed."""
        with self._read_gate, self._explained(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, durable: bool = False) -> Iterator[Connection]:
        """A transaction that is kept wholly or not at all. SQLite's holds the write lock from its begin, so
        that what it reads cannot change before it writes. With `durable` its commit is on the disk when this
        returns, also in SQLite. Raises StorageFailed."""
        engine = self._durable if durable else self._engine
        with self._write_gate, self._explained(), engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _reader_options(self) -> dict[str, Any]:
        return {_BEGIN: "BEGIN"} if self.sqlite else {"isolation_level": "REPEATABLE READ"}

    def _prepare_file(self) -> None:
        """Make the folder, and switch the file to a write-ahead log, which then stays: readers go on while
        another process writes. The switch ignores the busy timeout, so two first starts need this loop."""
        folder = Path(str(self._url.database)).absolute().parent
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            deadline_s = time.monotonic() + BUSY_TIMEOUT_S
            while True:
                try:
                    with self._engine.connect() as connection:
                        raw = connection.connection.driver_connection
                        assert isinstance(raw, sqlite3.Connection)
                        raw.execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError as error:
                    if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                        raise
                time.sleep(0.01)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the database's errors into the domain's; a statement that is wrong is our bug and stays."""
        try:
            yield
        except (IntegrityError, ProgrammingError) as error:
            if getattr(error.orig, "sqlstate", None) != _PG_NOT_ALLOWED:
                raise
            raise self._explain(error) from error
        except (DBAPIError, sqlite3.Error, OSError, PoolTimeout) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> CaudalError:
        """What the user is told."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        why = str(cause).strip().split("\n", 1)[0][:300]
        if isinstance(error, DataError):
            return UsageError("the database cannot hold this value", where=self.where, why=why)
        if isinstance(cause, sqlite3.Error):
            what, remedy = _SQLITE_WHY.get(_code(cause), ("the database failed", ""))
            return StorageFailed(what, where=self.where, why=why, remedy=remedy)
        return StorageFailed(
            "the database did not do what was asked",
            where=self.where,
            why=why,
            remedy="check that it runs, that the address is right and that the user may create tables",
        )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where it gave none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _parse(url: str) -> URL:
    """The URL with the driver that Caudal uses. Raises UsageError."""
    try:
        parsed = make_url("postgresql" + url[len("postgres") :] if url.startswith("postgres://") else url)
    except ArgumentError as error:
        raise _no_database_url() from error
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise _no_database_url(parsed.drivername)
    return parsed


def _no_database_url(scheme: str = "") -> CaudalError:
    """Says which addresses are understood; shows no more of the given one, which may hold a password."""
    return UsageError(
        "this is not the address of a database that Caudal can use",
        why=f"its scheme is {scheme!r}" if scheme else "it has no scheme",
        remedy="use sqlite:///path/to/state.db or postgresql://user@host/name",
    )


def _engine(url: URL, in_memory: bool) -> Engine:
    """SQLAlchemy's pool and dialect for the URL."""
    options: dict[str, Any] = {"poolclass": StaticPool} if in_memory else {}
    if url.get_backend_name() == "sqlite":
        options |= {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
    else:
        options |= {"pool_pre_ping": True, "connect_args": {"connect_timeout": int(BUSY_TIMEOUT_S)}}
    try:
        engine = create_engine(url, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise UsageError(
            "the driver for PostgreSQL is not installed",
            why=str(error),
            remedy="pip install 'caudal[postgres]'",
        ) from error
    except (SQLAlchemyError, TypeError) as error:
        raise _no_database_url() from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    """Take the transactions from the driver, which would begin them late and not around schema changes."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")


def _on_sqlite_begin(connection: Connection) -> None:
    """synchronous=NORMAL: in a write-ahead log a power cut may undo the last commits and damages nothing. An
    intent that is lost so leaves at most a machine with our tag and no lease, which the loop releases. What
    somebody else forgets once it is kept here is committed with FULL."""
    options = connection.get_execution_options()
    begin = options.get(_BEGIN, "BEGIN IMMEDIATE")
    if begin == "BEGIN IMMEDIATE":
        connection.exec_driver_sql(f"PRAGMA synchronous={options.get(_SYNC, 'NORMAL')}")
    connection.exec_driver_sql(begin)
