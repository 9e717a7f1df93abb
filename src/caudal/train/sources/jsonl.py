"""JSON Lines: one record a line, packed by gzip or not."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from caudal.domain.errors import DataError
from caudal.train.sources.base import Part, Record
from caudal.train.sources.fields import record_of
from caudal.train.sources.streams import opened

LONGEST_LINE_BYTES = 64 << 20
"""A line is whole in memory; a longer one is no record but a file of another kind."""

_MARK = b"\xef\xbb\xbf"


def read_jsonl(part: Part) -> Iterator[Record]:
    """The record of each line; empty lines are none. Raises DataError with the file and the line."""
    with opened(part) as file:
        number = 0
        while line := file.readline(LONGEST_LINE_BYTES):
            number += 1
            where = f"{part.where}:{number}"
            if len(line) == LONGEST_LINE_BYTES:
                raise DataError(
                    f"a line is longer than {LONGEST_LINE_BYTES >> 20} MiB",
                    where=where,
                    why="each line is one record",
                    remedy="write one record a line: `jq -c '.[]' list.json > data.jsonl` does so",
                )
            if number == 1:
                line = line.removeprefix(_MARK)
            if line.strip():
                yield record_of(_decoded(line, where), where)


def _decoded(line: bytes, where: str) -> object:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            "the line is not JSON",
            where=where,
            why=str(error),
            remedy="correct the line or take it out; a file that holds one list becomes lines by "
            "`jq -c '.[]' list.json > data.jsonl`",
        ) from None
