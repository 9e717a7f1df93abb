"""A run's own data, whatever its format and wherever it lies: parts of one format, read as one stream of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal

from caudal.domain.errors import DataError
from caudal.train.sources.base import Dialogue, Format, Part, Reader, Record, Text
from caudal.train.sources.columns import read_arrow, read_parquet
from caudal.train.sources.jsonl import read_jsonl
from caudal.train.sources.places import Found, look
from caudal.train.sources.saved import arrange
from caudal.train.sources.text import read_text

READERS: dict[Format, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "arrow": read_arrow,
}

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

_ABOUT = ("readme", "licen", "dataset_info")
"""How files begin that stand beside data and speak of it."""

Kind = Literal["text", "dialogues"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The parts, all of one format, in an order that their names decide by chance: where a run needs less than all,
    it does not read just those that come first in the alphabet."""

    data: str
    parts: tuple[Part, ...]

    @property
    def single_text(self) -> Part | None:
        """The only part, where it is a text: one long document, whose end can be kept for validation."""
        return self.parts[0] if len(self.parts) == 1 and self.parts[0].format == "text" else None

    def records(self) -> Iterator[Record]:
        """All records, read as they are asked for, from the beginning each time. All are texts or all dialogues.
        Raises DataError for what cannot be read, with the file and the place in it, and where there are none."""
        first: Record | None = None
        for part in self.parts:
            for number, record in enumerate(READERS[part.format](part), 1):
                first = first or record
                if type(record) is not type(first):
                    raise DataError(
                        "the data mixes texts and dialogues",
                        where=f"{part.where}: record {number}",
                        why=f"this is a {_called(record)}, and the first record is a {_called(first)}",
                        remedy="keep them in separate files, and train on them one run after the other",
                    )
                yield record
        if first is None:
            where = self.parts[0].where if len(self.parts) == 1 else self.data
            raise DataError("the file is empty" if len(self.parts) == 1 else "all files are empty", where=where,
                            why="there is not one record in it", remedy="put text into it")  # fmt: skip

    def kind(self) -> Kind:
        """What the records are, by the first of them. Raises as `records` does."""
        return "dialogues" if isinstance(next(self.records()), Dialogue) else "text"


def open_corpus(data: str) -> Corpus:
    """The corpus at a path, a pattern or a URL. Nothing is read yet but what lists files.

    Raises DataError where nothing is there or formats are mixed; Unreachable, StorageFailed.
    """
    found = arrange(look(data))
    if len(found) > 1:
        found = _without_about(found)
    parts = tuple(Part(one.name, one.where, one.size, format_of(one.name), one.open) for one in found)
    first: dict[Format, str] = {}
    for part in parts:
        first.setdefault(part.format, part.where)
    if len(first) > 1:
        raise DataError(
            "the data mixes formats",
            where=data,
            why="; ".join(f"{where} is {name}" for name, where in first.items()),
            remedy="name files of one format, for example with a pattern: `folder/*.jsonl`",
        )
    return Corpus(data, tuple(sorted(parts, key=lambda part: sha256(part.name.encode()).digest())))


def format_of(name: str) -> Format:
    """The format that a file's name says; what it does not say is text."""
    return _FORMATS.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix, "text")


def _without_about(found: tuple[Found, ...]) -> tuple[Found, ...]:
    """All but READMEs, licences and descriptions, unless there is nothing else."""
    return tuple(f for f in found if not PurePosixPath(f.name).name.lower().startswith(_ABOUT)) or found


def _called(record: Record) -> str:
    return "text" if isinstance(record, Text) else "dialogue"
