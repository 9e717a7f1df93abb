"""What all importers share: what they answer, how they bound it, and how text comes out of bytes.

An importer is a function from pieces of a file to an `Imported`. A row that is wrong is a problem with its line, and
the rest goes on; a file that is of another kind altogether raises UsageError. Opens nothing.
"""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from caudal.catalog.rows import CatalogRow
from caudal.domain.errors import UsageError

MOST_ROWS = 1_000_000
"""Rows of one import: all of EC2's regions, terms and Linux types are about a third of it."""

MOST_PROBLEMS = 200
"""Problems that are kept with their text; more are only counted."""

MOST_FIELD_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was not taken, and why."""

    line: int
    text: str


@dataclass(slots=True)
class Imported:
    """What came out of one file. `skipped`: what was left out on purpose, by why (not a Linux machine, no price)."""

    rows: list[CatalogRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, row: CatalogRow) -> None:
        """Keep a row. Raises UsageError where there are too many."""
        if len(self.rows) >= MOST_ROWS:
            raise UsageError(
                f"more than {MOST_ROWS:,} rows", remedy="import fewer regions at once, or leave out --all"
            )
        self.rows.append(row)

    def wrong(self, line: int, text: str) -> None:
        """Note a row that cannot be taken."""
        self.problem_count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(line, text[:300]))

    def cheapest(self) -> None:
        """Of rows that differ only in what we do not keep (the zone), leave the cheapest."""
        found: dict[object, CatalogRow] = {}
        for row in self.rows:
            held = found.get(row.key)
            if held is None or _cost(row) < _cost(held):
                found[row.key] = row
        self.rows = list(found.values())


def text_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of a file in pieces: UTF-8, or UTF-16 where it begins with its mark. Bytes that are neither become
    U+FFFD: one odd name is no reason to refuse a list of prices."""
    decoder: codecs.IncrementalDecoder | None = None
    start = b""
    for chunk in chunks:
        if decoder is None:
            start += chunk
            if len(start) < 4:
                continue
            decoder, chunk = _decoder(start), start
        yield decoder.decode(chunk)
    decoder = decoder or _decoder(start)
    yield decoder.decode(b"" if len(start) >= 4 else start, True)


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a file, each with its end. One that never ends is cut: it cannot be a row of a catalogue."""
    rest = ""
    for piece in text_of(chunks):
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line + "\n"
        while len(rest) > 10 * MOST_FIELD_CHARS:
            yield rest[:MOST_FIELD_CHARS] + "\n"
            rest = ""
    if rest:
        yield rest


def csv_rows(
    chunks: Iterable[bytes], needed: Iterable[str], found: Imported, what: str
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line and columns of every row. Raises UsageError where a needed column is missing, with what there is."""
    reader = csv.reader(line.replace("\0", "") for line in lines_of(chunks))
    names: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            found.wrong(reader.line_num, f"not a row of CSV: {error}")
            continue
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        if names is None:
            names = [cell.strip() for cell in row]
            _check_columns(names, needed, what)
            continue
        if len(row) != len(names):
            found.wrong(reader.line_num, f"{len(row)} columns, and the first line names {len(names)}")
            continue
        yield reader.line_num, dict(zip(names, (cell.strip() for cell in row), strict=True))
    if names is None:
        raise UsageError("the file is empty", remedy=f"{what} begins with a line of column names")


def whole(text: str, what: str) -> int:
    """A count that may be written 8 or 8.0. Raises ValueError."""
    value = number(text, what)
    if value != int(value):
        raise ValueError(f"{what}: {text!r} is no whole number")
    return int(value)


def number(text: str, what: str) -> float:
    """A number of 0 or more, and below a million. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what}: {text[:40]!r} is no number") from None
    if not 0 <= value < 1e6:
        raise ValueError(f"{what}: {text[:40]!r} is out of range")
    return value


def _check_columns(names: list[str], needed: Iterable[str], what: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise UsageError(
            f"no column {', '.join(missing)}",
            why=f"the first line names {', '.join(names)[:300]}",
            remedy=f"{what} has these columns; is the file from another catalogue? See --from",
        )


def _decoder(start: bytes) -> codecs.IncrementalDecoder:
    wide = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")(errors="replace")


def _cost(row: CatalogRow) -> tuple[bool, object]:
    return row.price_usd_per_hour is None, row.price_usd_per_hour or 0
