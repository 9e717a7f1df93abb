"""What all sources share: what they return, checksums, room on the disk, and the world's errors in words."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from caudal.domain.errors import PullFailed, StorageFailed, UsageError

SPARE_BYTES = 64 << 20
"""Left free on the disk: a state database that cannot grow is worse than a model that is not there."""

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")
_SECRET = re.compile(r"(://)[^/\s@]+@")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came in: `gguf` names the file that was asked for, where the folder may hold others; `licence`
    is what the source itself says (empty: look into the files)."""

    gguf: str = ""
    licence: str = ""


def sha256_of(file: Path) -> str:
    """The file's sha256 in hexadecimal, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(file: Path, expected: str, source: str) -> None:
    """Raises PullFailed where `expected` is given and the file has another sha256."""
    if not expected:
        return
    found = sha256_of(file)
    if found != expected.lower():
        raise PullFailed(
            "what was downloaded is not what was asked for",
            where=source,
            why=f"its sha256 is {found}, and {expected} was expected",
            remedy="check the sha256; if it is right, somebody changed the file: do not use it",
        )


def refuse_sha256(expected: str, source: str) -> None:
    """Raises UsageError where a sha256 is given for a source of many files."""
    if expected:
        raise UsageError(
            "a sha256 can be checked for one file, and this source is several",
            where=source,
            remedy="leave it out, or name one GGUF file",
        )


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises StorageFailed before anything is written where the disk cannot hold that many bytes more."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise StorageFailed(
            "the disk has no room for this model",
            where=str(folder),
            why=f"{needed_bytes >> 20} MiB are needed and {free_bytes >> 20} MiB are free",
            remedy="free some space, or set CAUDAL_HOME to a larger disk",
        )


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn the operating system's errors into StorageFailed (no room) or PullFailed (all others)."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise storage_failed(source, error) from error
        raise PullFailed(
            "the model could not be fetched",
            where=source,
            why=without_secrets(str(error)),
            remedy="check the source and the network",
        ) from error


def no_room(source: str, why: str) -> StorageFailed:
    """The error for a disk that filled up on the way."""
    return StorageFailed(
        "the disk is full",
        where=source,
        why=why,
        remedy="free some space, or set CAUDAL_HOME to a larger disk; what was stored before is still valid",
    )


def storage_failed(where: str, error: OSError) -> StorageFailed:
    """What the disk would not do: no room, or anything else."""
    if error.errno in _NO_ROOM:
        return no_room(where, error.strerror or "")
    return StorageFailed("the folder cannot be used", where=where, why=without_secrets(str(error)))


def safe_name(name: str) -> str:
    """The file name with what an object store may refuse replaced by `_`."""
    return _UNSAFE.sub("_", name)


def without_secrets(text: str) -> str:
    """The text on one line of at most 400 characters, without a user and password in addresses."""
    return " ".join(_SECRET.sub(r"\1", text).split())[:400]
