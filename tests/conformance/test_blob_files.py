"""What every ports.Blobs does with files that may be larger than memory."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from caudal.domain.errors import AlreadyExists, NotFound, StorageFailed, UsageError
from caudal.store import blob_files
from caudal.store.blobs import ObjectBlobs, open_blobs

LARGE = os.urandom(20 << 20)  # several parts


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectBlobs:
    """An empty object store."""
    return open_blobs((tmp_path / "blobs").as_uri() if request.param == "file" else "memory://")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 20 MiB."""
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_file_goes_in_and_comes_out(
    blobs: ObjectBlobs, file: Path, tmp_path: Path, if_absent: bool
) -> None:
    blobs.put_file("models/a/large.bin", file, if_absent=if_absent)
    target = tmp_path / "new" / "folder" / "out.bin"
    blobs.get_file("models/a/large.bin", target)
    assert target.read_bytes() == LARGE == blobs.get("models/a/large.bin")
    assert blobs.list("") == ["models/a/large.bin"]
    assert [p.name for p in target.parent.iterdir()] == ["out.bin"]


def test_an_empty_file_is_a_file(blobs: ObjectBlobs, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    blobs.put_file("empty", tmp_path / "empty")
    blobs.get_file("empty", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"" == blobs.get("empty")


def test_a_file_replaces_unless_it_must_not(blobs: ObjectBlobs, file: Path, tmp_path: Path) -> None:
    blobs.put("a", b"first")
    with pytest.raises(AlreadyExists):
        blobs.put_file("a", file, if_absent=True)
    assert blobs.get("a") == b"first"
    blobs.put_file("a", file)
    blobs.put_file("a", file)
    assert blobs.get("a") == LARGE
    assert blobs.list("") == ["a"]


def test_the_given_file_may_be_removed_afterwards(blobs: ObjectBlobs, file: Path) -> None:
    blobs.put_file("a", file)
    file.unlink()
    assert blobs.get("a") == LARGE


def test_what_came_out_is_the_callers(blobs: ObjectBlobs, file: Path, tmp_path: Path) -> None:
    blobs.put_file("a", file)
    blobs.get_file("a", tmp_path / "out")
    (tmp_path / "out").write_bytes(b"written over, in place")
    assert blobs.get("a") == LARGE


def test_a_target_that_is_there_is_replaced_only_by_all_of_it(blobs: ObjectBlobs, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"before")
    with pytest.raises(NotFound):
        blobs.get_file("none", target)
    assert target.read_bytes() == b"before"
    blobs.put("a", b"after")
    blobs.get_file("a", target)
    assert target.read_bytes() == b"after"


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "a//b"])
def test_paths_stay_inside(blobs: ObjectBlobs, file: Path, path: str) -> None:
    with pytest.raises(UsageError):
        blobs.put_file(path, file)
    with pytest.raises(UsageError):
        blobs.get_file(path, file)


def test_another_disk_and_a_full_one(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no link can be made the bytes are copied; where they do not fit nothing is left of them."""
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    real = os.link

    def refuse(source: Path, target: Path) -> None:
        if Path(source) == file:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(blob_files.os, "link", refuse)
    blobs.put_file("copied", file, if_absent=True)
    file.write_bytes(b"changed")
    assert blobs.get("copied") == LARGE

    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageFailed, match="no space"):
        blobs.put_file("copied", file)
    with pytest.raises(StorageFailed, match="no space"):
        blobs.get_file("copied", tmp_path / "out" / "x")
    assert blobs.get("copied") == LARGE
    assert [p.name for p in (tmp_path / "blobs").iterdir()] == ["copied"]
    assert list((tmp_path / "out").iterdir()) == []
