"""A gang's folder: the files through which a driver and a shim that outlives it understand each other.

    spec.json   what to start, with the token; by the driver, once, before anything starts
    lock        held by the gang's shim for as long as it lives; the kernel lets go of it
    shim.json   who the shim is and what it started; by the shim, before and after starting
    stop.json   that it should end, and how soon; by the driver
    exit.json   how it ended; written once: a gang with this file is over and never starts again
    0.log ...   what the processes printed (0.log.1 is the older half)
    shim.log    what went wrong in the shim itself

and the files of the gang's processes. Everything is written whole (another name, then renamed), readable by
its owner only. Imports the standard library only, and little of it: every shim starts with this module.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

SPEC = "spec.json"
LOCK = "lock"
SHIM = "shim.json"
STOP = "stop.json"
EXIT = "exit.json"
SHIM_LOG = "shim.log"
RESERVED = frozenset({SPEC, LOCK, SHIM, STOP, EXIT})

STARTING = "starting"
RUNNING = "running"

MARK = "CAUDAL_GANG_MARK"
"""Environment variable that all processes of a gang inherit: how its last survivors are found."""

Record = dict[str, Any]


class Folder:
    """One gang's folder. Nothing is kept in memory: two of these on one path agree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make it, for its owner only; one that is there is fine."""
        self.path.mkdir(mode=0o700, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).exists()

    def read(self, name: str) -> Record | None:
        """A JSON file's object; None where it is not there. One that a power cut emptied reads as {}."""
        try:
            value = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, name: str, record: Record) -> None:
        """Write a JSON file whole, in place of what was there. Raises OSError, with the old one kept."""
        self._draft(name, json.dumps(record)).replace(self.path / name)

    def write_once(self, name: str, record: Record) -> bool:
        """Write a JSON file whole, unless it is there; whether it was this call that wrote it."""
        draft = self._draft(name, json.dumps(record))
        try:
            os.link(draft, self.path / name)  # a rename would replace another's; a link does not
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def write_text(self, name: str, text: str) -> None:
        """Write one of the processes' own files whole."""
        self._draft(name, text).replace(self.path / name)

    def lock(self) -> int | None:
        """Take the gang's lock if nobody holds it; the descriptor to close, or None."""
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _draft(self, name: str, text: str) -> Path:
        draft = self.path / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft


def log_name(index: int) -> str:
    """The file that holds what process number `index` printed last."""
    return f"{index}.log"


def reserved(name: str) -> bool:
    """Whether a gang's process may not have a file of that name."""
    return name in RESERVED or name.endswith((".log", ".log.1"))
