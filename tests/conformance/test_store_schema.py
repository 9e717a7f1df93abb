"""The tables are the same ones, and are guarded the same way, in every database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from caudal.domain.errors import StorageFailed
from caudal.store.database import Database
from caudal.store.migrate import VERSION_TABLE, migrate
from caudal.store.state import open_store
from caudal.store.tables import metadata


def test_the_steps_lead_to_the_tables(new_url: Callable[[], str]) -> None:
    database = Database(new_url())
    migrate(database)
    migrate(database)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_tables_that_were_half_made_are_not_kept(new_url: Callable[[], str]) -> None:
    database = Database(new_url())
    with pytest.raises(KeyboardInterrupt), database.writing() as connection:
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise KeyboardInterrupt
    migrate(database)  # as empty as before; it would refuse a database with tables
    database.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE TABLE photos (id INTEGER)", "belongs to something else"),
        (f"UPDATE {VERSION_TABLE} SET version_num = '9999'", "newer Caudal"),
    ],
)
def test_a_database_that_is_not_for_us_is_left_alone(shared_url: str, statement: str, said: str) -> None:
    if "UPDATE" in statement:
        open_store(shared_url).close()
    database = Database(shared_url)
    with database.writing() as connection:
        connection.execute(text(statement))
    with pytest.raises(StorageFailed, match=said):
        open_store(shared_url)
    database.close()
