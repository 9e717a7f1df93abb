"""A part as a stream of bytes, unpacked where its name ends in `.gz`. Knows nothing of formats."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from caudal.domain.errors import DataError, StorageFailed
from caudal.train.sources.base import Part


@contextmanager
def opened(part: Part) -> Iterator[BinaryIO]:
    """The part's bytes. Raises DataError where they are not packed as the name says, and StorageFailed where
    they cannot be read, also from within the `with`."""
    with part.open() as file:
        try:
            if part.name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                "the file cannot be unpacked",
                where=part.where,
                why=str(error),
                remedy="pack it again with gzip, or name it without .gz",
            ) from None
        except OSError as error:
            raise StorageFailed(
                "the data cannot be read", where=part.where, why=error.strerror or str(error)
            ) from error
