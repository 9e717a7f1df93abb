"""What is kept of the local driver's forgotten gangs: the ends of their logs, and that they ran.

A folder per gang, named by its id and a digest of its token: a start that is repeated late finds it there
and does not run the gang a second time, while another gang may have the id. Secrets do not stay. Knows
nothing about processes.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from caudal.drivers.local_log import older, tail

KEPT_GANGS = 200
KEPT_LOG_BYTES = 1 << 20  # per process


class Archive:
    """The folder `root` with the last 200 forgotten gangs. Made when the first one comes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, gang_id: str, token: str) -> bool:
        """Whether that start ran, and was forgotten."""
        return self._place(gang_id, token).exists()

    def take(self, folder: Path, gang_id: str, token: str) -> None:
        """Move a gang's folder here, which takes it off the list at once; then remove its secrets, those of
        one that a crash left half done, and the oldest. Raises OSError."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        place = self._place(gang_id, token)
        if place.exists():
            shutil.rmtree(place)
        folder.rename(place)
        kept = sorted(self._root.iterdir(), key=_changed_at)
        for path in kept[:-KEPT_GANGS]:
            shutil.rmtree(path)
        for path in kept[-KEPT_GANGS:]:
            _strip(path)

    def find(self, gang_id: str) -> Path | None:
        """Where the logs of the newest forgotten gang of that id lie."""
        found = sorted(self._root.glob(f"{gang_id}~*"), key=_changed_at)
        return found[-1] if found else None

    def _place(self, gang_id: str, token: str) -> Path:
        return self._root / f"{gang_id}~{hashlib.sha256(token.encode()).hexdigest()[:16]}"


def logs_in(folder: Path) -> list[Path]:
    """The logs of a gang's processes, in the processes' order."""
    return sorted((path for path in folder.glob("*.log") if path.stem.isdigit()), key=lambda p: int(p.stem))


def _changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _strip(folder: Path) -> None:
    """Leave nothing but the ends of the logs. A second time it finds nothing to do."""
    logs = logs_in(folder)
    for path in logs:
        if older(path).exists() or path.stat().st_size > KEPT_LOG_BYTES:
            path.write_bytes(tail(path, KEPT_LOG_BYTES))
    for path in set(folder.iterdir()) - set(logs):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
