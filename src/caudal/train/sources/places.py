"""Where data lies: a file, a folder or a pattern on this machine, or the same below the URL of an object store.

Knows nothing of formats: it lists files with their names and sizes, and how each is opened.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import unquote

from caudal.domain.errors import DataError, StorageFailed
from caudal.store.blobs import open_store_at

REMOTE = ("s3", "az", "gs")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """A file: its path below what was named (just its name, where it was named itself), how errors call it, its
    size in bytes, and how it is opened."""

    name: str
    where: str
    size: int
    open: Callable[[], BinaryIO]


def look(data: str) -> tuple[Found, ...]:
    """All files at a path, a pattern (`*`, `?`, `[...]`, `**` for folders) or a URL, by name. Hidden ones, and what
    begins with `_`, are left out. Raises DataError where there are none, Unreachable, StorageFailed."""
    # Not urlsplit: to it a `?`, which is a pattern here, ends the path, and so does a `#`.
    scheme, there, rest = data.partition("://")
    bucket, _, path = rest.partition("/")
    if not there:
        return _local(data, data)
    if scheme in REMOTE:
        return _remote(data, scheme, bucket, path.strip("/"))
    if scheme == "file" and bucket in ("", "localhost"):
        return _local(unquote(f"/{path}"), data)
    raise DataError(
        "the data's address is of no known kind",
        where=data,
        why=f"the scheme is {scheme!r}" if scheme != "file" else f"{bucket!r} is no folder from the root",
        remedy="use a path, or one of s3://, az://, gs://, file:///",
    )


def _local(path: str, data: str) -> tuple[Found, ...]:
    root = Path(path).expanduser()
    if root.is_file():
        return (_file(root, root.name),)
    if root.is_dir():
        return _some(_below(root, ""), data, "the folder is empty", "put the data's files into it")
    if _WILD.search(path):
        found: list[Found] = []
        first = next(number for number, part in enumerate(root.parts) if _WILD.search(part))
        for at in sorted(Path(*root.parts[:first]).glob("/".join(root.parts[first:]))):
            if at.is_file() and not _left_out(at.name):
                found.append(_file(at, at.as_posix()))
            elif at.is_dir() and "**" not in path:
                found.extend(_below(at, f"{at.as_posix()}/"))
        return _some(found, data, "no file matches the pattern", "check the pattern")
    near = difflib.get_close_matches(root.name, _names(root.parent), n=1)
    raise DataError(
        "there is no such file",
        where=str(root),
        why="the run's `data` names it",
        remedy=f"did you mean {str(root.with_name(near[0]))!r}?"
        if near
        else "check the path, or use `builtin:tinyworld`",
    )


def _below(root: Path, name: str) -> list[Found]:
    """All files below a folder, called by `name` and their path in it."""
    found = []
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        if file.is_file() and not any(_left_out(part) for part in inside.parts):
            found.append(_file(file, name + inside.as_posix()))
    return found


def _file(file: Path, name: str) -> Found:
    return Found(name, str(file), file.stat().st_size, partial(_open, file))


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(
            "the file cannot be read",
            where=str(file),
            why=error.strerror or str(error),
            remedy="make it readable for the user that runs Caudal",
        ) from None


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _remote(data: str, scheme: str, bucket: str, path: str) -> tuple[Found, ...]:
    """The object, all below it as a folder, or all that match the pattern."""
    store = open_store_at(f"{scheme}://{bucket}")
    wild = _WILD.search(path)
    root = path if wild is None else path[: wild.start()].rpartition("/")[0]
    found = []
    for key, size in store.sizes(root).items():
        name = key.removeprefix(root).strip("/") or PurePosixPath(key).name
        if any(_left_out(part) for part in name.split("/")) or key.endswith("/"):
            continue
        if wild is None or _matches(key, path):
            opened = cast(Callable[[], BinaryIO], partial(store.open, key))
            found.append(Found(name, f"{store.url}/{key}", size, opened))
    what = (
        "there is no such object, and nothing below it" if wild is None else "no object matches the pattern"
    )
    return _some(found, data, what, "check the address")


def _matches(key: str, pattern: str) -> bool:
    """Whether an object's path matches, name by name: `*` ends at a `/`, as it does in paths; what lies below a
    folder that matches does too. `**` is any folders."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(key, pattern.replace("**/", "*"))
    names, patterns = key.split("/"), pattern.split("/")
    return len(names) >= len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _some(found: list[Found], data: str, what: str, remedy: str) -> tuple[Found, ...]:
    if not found:
        raise DataError(what, where=data, why="the run's `data` names it", remedy=remedy)
    return tuple(found)


def _left_out(name: str) -> bool:
    return name.startswith((".", "_"))


def read_small(found: Found, most: int = 1 << 24) -> bytes:
    """All bytes of a small file. Raises DataError where it is not small, StorageFailed."""
    if found.size > most:
        raise DataError(f"the file is larger than {most >> 20} MiB", where=found.where)
    try:
        with found.open() as file:
            return file.read(found.size)
    except OSError as error:
        raise StorageFailed("the file cannot be read", where=found.where, why=str(error)) from error
