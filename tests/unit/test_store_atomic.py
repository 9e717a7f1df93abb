"""Writing a local file wholly."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from caudal.store.atomic import write_atomic


def test_it_makes_the_folders_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_holds_also_for_a_file_that_was_open_to_others(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o666)
    write_atomic(path, b"new", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) & ~mode == 0


def test_if_absent_refuses_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one", if_absent=True)
    with pytest.raises(FileExistsError):
        write_atomic(path, b"two", if_absent=True)
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="input/output"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
