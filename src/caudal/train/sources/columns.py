"""Columns of Apache Arrow: Parquet files, and the files in which Hugging Face's `datasets` keeps its tables.

Read some rows at a time, and of the columns only those that are known.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any, BinaryIO

from caudal.domain.errors import DataError
from caudal.train.sources.base import Part, Record
from caudal.train.sources.fields import FIELDS, KNOWN, record_of
from caudal.train.sources.streams import opened

ROWS_AT_ONCE = 256

_FILE_MARK = b"ARROW1"


def read_parquet(part: Part) -> Iterator[Record]:
    """The records of a Parquet file, row group by row group. Raises DataError with the file and the row."""
    arrow = _pyarrow(part)
    import pyarrow.parquet as parquet  # noqa: PLC0415 (optional, see _pyarrow)

    with opened(part) as stream:
        try:
            file = parquet.ParquetFile(stream, pre_buffer=False)
            columns = _known(file.schema_arrow.names, part)
            batches = (
                batch
                for group in range(file.num_row_groups)
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns)
            )
            yield from _records(batches, part)
        except (arrow.ArrowException, OSError) as error:
            raise _broken("Parquet", part, error) from None


def read_arrow(part: Part) -> Iterator[Record]:
    """The records of an Arrow IPC stream, as `save_to_disk` writes them, or of an IPC file."""
    arrow = _pyarrow(part)
    with opened(part) as stream:
        try:
            yield from _records(_batches(arrow, stream, part), part)
        except (arrow.ArrowException, OSError) as error:
            raise _broken("Arrow", part, error) from None


def _batches(arrow: ModuleType, stream: BinaryIO, part: Part) -> Iterator[Any]:
    """The table's batches, of the known columns."""
    import pyarrow.ipc as ipc  # noqa: PLC0415 (optional, see _pyarrow)

    is_file = stream.read(len(_FILE_MARK)) == _FILE_MARK
    stream.seek(0)
    if isinstance(getattr(stream, "raw", None), io.FileIO):
        # A file of this machine is mapped: a batch can be as large as who wrote it liked.
        stream = arrow.memory_map(stream.name)
    if is_file:
        reader = ipc.open_file(stream)
        columns = _known(reader.schema.names, part)
        whole = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        reader = ipc.open_stream(stream)
        columns = _known(reader.schema.names, part)
        whole = iter(reader)
    for batch in whole:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.select(columns).slice(start, ROWS_AT_ONCE)


def _known(names: list[str], part: Part) -> list[str]:
    """The columns to be read. Raises DataError where there is none."""
    known = [name for name in names if name in FIELDS]
    if not known:
        raise DataError(
            "the table has none of the columns that are known",
            where=part.where,
            why="it has " + ", ".join(f"`{name[:40]}`" for name in names[:20]),
            remedy="known are: " + KNOWN,
        )
    return known


def _records(batches: Iterator[Any], part: Part) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield record_of(row, f"{part.where}: row {number}")


def _broken(kind: str, part: Part, error: Exception) -> DataError:
    return DataError(
        f"the file is not whole, or not {kind}",
        where=part.where,
        why=str(error).strip().split("\n", 1)[0][:300],
        remedy="write it again, or take it out",
    )


def _pyarrow(part: Part) -> ModuleType:
    """pyarrow, where it is installed."""
    try:
        import pyarrow  # noqa: PLC0415 (optional: the extra `huggingface` brings it)
    except ImportError:
        raise DataError(
            "Parquet and Arrow cannot be read without pyarrow",
            where=part.where,
            remedy="install the extra: pip install 'caudal[huggingface]'",
        ) from None
    module: ModuleType = pyarrow
    return module
