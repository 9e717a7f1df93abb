"""Bring a database's tables to this version: done at each opening, in one transaction, or not at all.

Knows nothing of rows.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, Connection, Text, column, inspect, select, table, text

from caudal.domain.errors import StorageFailed
from caudal.store.database import Database

HEAD = "0004"
"""The newest step in migrations/versions."""

VERSION_TABLE = "caudal_schema"
"""Names the step that the database is at; that it is there makes the database ours."""

_LOCK = 0x6361756461  # PostgreSQL's advisory lock for two processes that open a new database at once


def migrate(database: Database) -> None:
    """Make, or bring forward, the tables. Raises StorageFailed for a database that a newer Caudal wrote or
    that belongs to something else; nothing is changed then."""
    with database.reading() as connection:
        if _step(connection, database.where) == HEAD:
            return
    with database.writing() as connection:
        if not database.sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(config(connection), "head")  # does nothing where another process was first


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file; `connection` is what the steps run on."""
    made = Config()
    # In a Config `%` begins an interpolation, also where a folder's name has one.
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    made.attributes["version_table"] = VERSION_TABLE
    return made


def _step(connection: Connection, where: str) -> str | None:
    """The step that the database is at; None where it is empty."""
    names = inspect(connection).get_table_names()
    if VERSION_TABLE not in names:
        if names:
            raise StorageFailed(
                "this database belongs to something else",
                where=where,
                why=f"it has tables that are not Caudal's: {', '.join(sorted(names)[:5])}",
                remedy="give Caudal a database of its own",
            )
        return None
    number: ColumnElement[str] = column("version_num", Text())
    step = connection.execute(select(number).select_from(table(VERSION_TABLE))).scalar_one_or_none()
    if step is not None and step > HEAD:
        raise StorageFailed(
            "a newer Caudal wrote this database",
            where=where,
            why=f"its tables are at step {step}, this version knows them up to {HEAD}",
            remedy="update Caudal, or name another database",
        )
    return step
