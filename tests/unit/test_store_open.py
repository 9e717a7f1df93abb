"""Opening a database: made, brought forward, or refused with a reason; and what its errors say."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text

from caudal.domain.errors import StorageFailed, UsageError
from caudal.ports import Change
from caudal.store.database import Database
from caudal.store.migrate import HEAD, config, migrate
from caudal.store.state import open_store
from tests.support import rows


def test_the_newest_step_is_the_one_that_is_expected() -> None:
    assert ScriptDirectory.from_config(config()).get_heads() == [HEAD]


def test_a_file_is_made_with_its_folder_and_kept_private(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'new' / 'home' / 'state.db'}").close()
    assert (tmp_path / "new" / "home").stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / "new" / "home" / "state.db") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_two_stores_in_memory_are_apart() -> None:
    first, second = open_store("sqlite://"), open_store("sqlite:///:memory:")
    first.commit(Change(workloads=[rows.run()]))
    assert second.read().version == 0


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.write_text("to do: milk, bread\n" * 100)
    with pytest.raises(StorageFailed, match="not a database") as caught:
        open_store(f"sqlite:///{file}")
    assert str(file) in str(caught.value)
    assert file.read_text().startswith("to do")


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageFailed):
        open_store(f"sqlite:///{tmp_path / 'file' / 'state.db'}")
    with pytest.raises(StorageFailed, match="cannot be opened"):
        open_store(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("url", ["", "state.db", "mysql://u:very-secret@h/d", "sqlite+aiosqlite://", "://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "sqlite:///" in caught.value.remedy
    assert "very-secret" not in str(caught.value)


def test_a_postgres_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed) as caught:
        open_store(f"postgres://caudal:very-secret@/x?host={tmp_path}")
    assert "very-secret" not in str(caught.value)
    assert str(tmp_path.name) in str(caught.value)


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(database)
    with database.reading() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StorageFailed, match="disk is full"), database.writing() as connection:
        connection.execute(text("UPDATE meta SET version = 5"))
        connection.execute(text("INSERT INTO fleet VALUES (1, :doc)"), {"doc": "x" * 100_000})
    with database.reading() as connection:
        assert connection.execute(text("SELECT version FROM meta")).scalar_one() == 0
        assert connection.execute(text("SELECT count(*) FROM fleet")).scalar_one() == 0
    database.close()


def test_a_database_that_may_not_be_written() -> None:
    database = Database("sqlite://")
    with database.reading() as connection:
        connection.execute(text("PRAGMA query_only = ON"))
    with pytest.raises(StorageFailed, match="may not be written"):
        migrate(database)


OPENER = (
    "import sys; from caudal.store.state import open_store; print(open_store(sys.argv[1]).read().version)"
)


def test_many_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in started] == ["0\n"] * 3
