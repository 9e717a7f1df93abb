"""A disk of its own for a folder, small enough to fill; and filling it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int, options: str = "") -> Iterator[Path]:
    """Mount a disk in memory at the folder; takes root. Skips the test, with a word, where it may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a full disk needs a disk of its own, and mounting one needs root")
    words = [mount, "-t", "tmpfs", "-o", f"size={size_bytes}{options}", "caudal-test", str(folder)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a full disk needs a disk of its own: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a process of the fleet may be in it for a moment still.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte on the folder's disk; returns the file to delete to have them back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 4
    return filler
