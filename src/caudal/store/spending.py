"""What was spent at other people's addresses, by month: one SQLite file that all gateways of a machine share.

A request's most is reserved before it is sent and replaced by its true cost when that is known, so that a process
that is killed at any point has never spent what is not written here: what it had reserved stays spent. Reserving
looks at the budget and writes in one transaction, over all processes. A loss of power may take the last moments.

Amounts are whole picodollars (1e-12 US dollars), which is what one token costs at a price of one microdollar a
million. Knows nothing of tokens, prices or clocks.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caudal.domain.errors import StorageFailed

BUSY_S = 0.5
MONTHS_KEPT = 24

_TABLES = """
CREATE TABLE IF NOT EXISTS book (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    address TEXT NOT NULL, month TEXT NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (address, month));
CREATE TABLE IF NOT EXISTS reserved (
    number INTEGER PRIMARY KEY AUTOINCREMENT, address TEXT NOT NULL, month TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS reserved_by_address ON reserved (month, address);
"""


class SpendingBook:
    """The file. One instance per process; its methods take well under a millisecond, and wait at most half a
    second for another process. All of them raise StorageFailed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._writing():
                for statement in _TABLES.strip().split(";\n"):
                    self._db.execute(statement)
                if self._db.execute("SELECT count(*) FROM book").fetchone()[0] == 0:
                    self._db.execute("INSERT INTO book VALUES (?)", (uuid.uuid4().hex,))
            self.id: str = self._db.execute("SELECT id FROM book").fetchone()[0]

    def reserve(
        self, address: str, month: str, most: int, budget: int | None, elsewhere: int = 0
    ) -> int | None:
        """Set `most` aside; returns the number to settle it under, or None where the budget has no room. What
        other books hold is `elsewhere`; `budget` None is no budget."""
        with self._explained(), self._writing():
            if budget is not None and self._sum(address, month) + elsewhere + most > budget:
                return None
            row = "INSERT INTO reserved (address, month, amount) VALUES (?, ?, ?)"
            return self._db.execute(row, (address, month, most)).lastrowid

    def settle(self, number: int, cost: int) -> None:
        """What was reserved under that number has cost so much; settled twice counts once."""
        with self._explained(), self._writing():
            row = self._db.execute(
                "DELETE FROM reserved WHERE number = ? RETURNING address, month", (number,)
            )
            found = row.fetchone()
            if found is not None and cost:
                self._db.execute(
                    "INSERT INTO spent VALUES (?, ?, ?) "
                    "ON CONFLICT (address, month) DO UPDATE SET amount = amount + excluded.amount",
                    (*found, cost),
                )

    def spent(self, address: str, month: str) -> int:
        """What is spent or reserved there in that month."""
        with self._explained():
            return self._sum(address, month)

    def month(self, month: str) -> dict[str, int]:
        """The same for every address that has anything in that month."""
        both = "SELECT address, amount FROM spent WHERE month = ? UNION ALL "
        both += "SELECT address, amount FROM reserved WHERE month = ?"
        with self._explained():
            rows = self._db.execute(
                f"SELECT address, sum(amount) FROM ({both}) GROUP BY address", (month, month)
            )
            return dict(rows.fetchall())

    def prune(self) -> None:
        """Forget all but the last two years."""
        with self._explained(), self._writing():
            months = self._db.execute("SELECT DISTINCT month FROM spent ORDER BY month DESC").fetchall()
            for (old,) in months[MONTHS_KEPT:]:
                self._db.execute("DELETE FROM spent WHERE month <= ?", (old,))
                self._db.execute("DELETE FROM reserved WHERE month <= ?", (old,))

    def close(self) -> None:
        """Leave the file."""
        self._db.close()

    def _sum(self, address: str, month: str) -> int:
        total = 0
        for table in ("spent", "reserved"):
            query = f"SELECT coalesce(sum(amount), 0) FROM {table} WHERE month = ? AND address = ?"
            total += self._db.execute(query, (month, address)).fetchone()[0]
        return total

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise StorageFailed(
                "what was spent cannot be read or written",
                where=str(self._path),
                why=str(error),
                remedy="make room on the disk. A file that is damaged can be moved away: then the month begins at 0",
            ) from error
