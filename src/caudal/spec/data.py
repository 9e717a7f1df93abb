"""What a run's `data` may name, and a first look at it: so that what is plainly wrong is said with the line that
names it, before anything starts. Its trainer reads all of it.

Looks at the disk, never at an object store.
"""

from __future__ import annotations

import difflib
import json
import re
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from caudal.domain.workload import TrainSpec
from caudal.spec.located import Located, Problems

BUILTIN = "builtin:"
BUILTIN_DATA = ("builtin:tinyworld",)
DATA_SCHEMES = ("s3://", "az://", "gs://", "file://")

_WILD = re.compile(r"[*?\[]")
_LOOK_BYTES = 1 << 16
_MARKS = {".parquet": (b"PAR1", "Parquet"), ".gz": (b"\x1f\x8b", "packed by gzip")}
_LINES = (".jsonl", ".ndjson", ".json")


def is_path(data: str) -> bool:
    """Whether it is a path or a pattern of this machine."""
    return bool(data) and "://" not in data and not data.startswith(BUILTIN)


def resolved(data: str, folder: Path) -> str:
    """The path or pattern from the root; a relative one is taken from `folder`."""
    return str((folder / Path(data).expanduser()).resolve())


def check_data_name(data: str, where: str, problems: Problems) -> None:
    """Whether it is of a kind that is known; nothing is looked at."""
    if not data:
        problems.add(
            where, "data: builtin:tinyworld, or the path, pattern or URL of texts or records is needed"
        )
    elif data.startswith(BUILTIN) and data not in BUILTIN_DATA:
        problems.add(where, f"data: {data!r} is not built in; {', '.join(BUILTIN_DATA)} is")
    elif "://" in data and not data.startswith(DATA_SCHEMES):
        scheme = data.partition("://")[0] + "://"
        near = difflib.get_close_matches(scheme, DATA_SCHEMES, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DATA_SCHEMES)}, or a path"
        problems.add(where, f"data: {scheme!r} is no address of data; {hint}")


def check_data(spec: TrainSpec, tree: Located, problems: Problems) -> None:
    """Whether what is named on this machine is there, and looks like what its name says."""
    if spec.data.startswith("file://"):
        path = Path(unquote(spec.data.removeprefix("file://").removeprefix("localhost")))
    elif is_path(spec.data):
        path = Path(spec.data).expanduser()
    else:
        return
    fault = _fault(path)
    if fault:
        problems.add(tree.at(["data"]), f"data: {fault}", data=True)


def _fault(path: Path) -> str:
    """What is wrong with it, or nothing."""
    if path.is_dir():
        return "" if _has_files(path) else f"{path} is an empty folder"
    if path.exists() and not path.is_file():
        return f"{path} is neither a file nor a folder"
    if not path.exists() and _WILD.search(str(path)):
        first = next(number for number, part in enumerate(path.parts) if _WILD.search(part))
        found = Path(*path.parts[:first]).glob("/".join(path.parts[first:]))
        return "" if any(True for _ in found) else f"no file matches {path}"
    try:
        with path.open("rb") as file:
            return _fault_in(path, file.read(_LOOK_BYTES))
    except OSError as error:
        return f"cannot read {path}: {error.strerror}{_near(path)}"


def _fault_in(path: Path, start: bytes) -> str:
    """What is wrong with the beginning of the file, for one of its name."""
    if not start.strip():
        return f"{path} is empty"
    suffix = path.suffix.lower()
    if suffix in _MARKS:
        mark, called = _MARKS[suffix]
        return "" if start.startswith(mark) else f"{path} is not {called}, as its name says"
    if suffix == ".arrow":
        return ""
    if b"\0" in start or not _is_utf8(start):
        return f"{path} is not text in UTF-8"
    if suffix in _LINES:
        return _fault_in_line(path, start)
    return ""


def _fault_in_line(path: Path, start: bytes) -> str:
    """What is wrong with the first record, where it is seen whole."""
    lines = start.decode("utf-8-sig", errors="ignore").split("\n")
    number, line = next((n, line) for n, line in enumerate(lines, 1) if line.strip())
    if number == len(lines) and len(start) == _LOOK_BYTES:
        return ""
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"{path}:{number} is not JSON: {error}; each line is to be one record"
    return (
        "" if isinstance(value, dict) else f"{path}:{number} is not an object; each line is to be one record"
    )


def _has_files(folder: Path) -> bool:
    """Whether there is any file below it that counts: hidden ones and those that begin with `_` do not."""
    below = (p for p in folder.rglob("[!._]*") if p.is_file())
    return any(True for _ in islice(below, 1))


def _near(path: Path) -> str:
    """A suggestion, where a file of nearly that name is there."""
    try:
        names = [other.name for other in islice(path.parent.iterdir(), 10_000)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def _is_utf8(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return len(start) == _LOOK_BYTES and error.start >= len(start) - 3  # cut within a character
    return True
