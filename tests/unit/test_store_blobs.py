"""What is particular to single object stores: files on this machine, and a remote that does not answer."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from caudal.domain.errors import StorageFailed, Unreachable, UsageError
from caudal.store import blobs as module
from caudal.store.blobs import open_blobs, open_store_at
from tests.support.faulty_store import way_to


def test_files_lie_where_the_path_says(tmp_path: Path) -> None:
    blobs = open_blobs((tmp_path / "my blobs").as_uri())
    blobs.put("models/small/v000001/model.gguf", b"GGUF")
    path = blobs.local_path("models/small/v000001/model.gguf")
    assert path == tmp_path / "my blobs" / "models/small/v000001/model.gguf"
    assert path.read_bytes() == b"GGUF"
    assert open_blobs("memory://").local_path("a") is None


def test_two_openings_of_one_folder_see_the_same(tmp_path: Path) -> None:
    open_blobs(tmp_path.as_uri()).put("a", b"1")
    assert open_blobs(tmp_path.as_uri()).get("a") == b"1"


@pytest.mark.parametrize("if_absent", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, if_absent: bool
) -> None:
    blobs = open_blobs(tmp_path.as_uri())
    blobs.put("kept", b"old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="no space left"):
        blobs.put("new" if if_absent else "kept", b"new", if_absent=if_absent)
    assert blobs.list("") == ["kept"]
    assert blobs.get("kept") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_an_object_where_a_folder_should_be(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path.as_uri())
    blobs.put("a/b", b"1")
    with pytest.raises(StorageFailed):
        blobs.put("a/b/c", b"2")
    with pytest.raises(StorageFailed):
        blobs.put("a", b"2")
    assert blobs.list("") == ["a/b"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageFailed) as caught:
        open_blobs((tmp_path / "file" / "blobs").as_uri())
    assert str(tmp_path / "file" / "blobs") in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "blobs", "/tmp/x", "ftp://host/x", "https://x/y", "file://host/x", "s3://"]
)
def test_an_address_that_names_no_store(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_blobs(url)
    assert caught.value.remedy


def test_a_remote_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name, value in (("ALLOW_HTTP", "true"), ("REGION", "r"), ("ACCESS_KEY_ID", "k")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        monkeypatch.setattr(module, "MAX_RETRIES", 1)
        blobs = open_blobs("s3://bucket/prefix")
        for call in (
            lambda: blobs.put("a", b"1", if_absent=True),
            lambda: blobs.get("a"),
            lambda: blobs.list("a/"),
            lambda: blobs.delete("a"),
        ):
            with pytest.raises(Unreachable) as caught:
                call()
            assert "s3://bucket/prefix/a" in str(caught.value)
            assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (503, StorageFailed, "answers with an error"),
        (500, StorageFailed, "answers with an error"),
        (0, Unreachable, "does not answer"),
    ],
)
def test_a_store_that_answers_with_an_error_is_not_one_that_does_not_answer(
    status: int, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with way_to("http://127.0.0.1:9") as way:
        way.answers = status
        if not status:
            way.close()
        for key, value in (
            ("AWS_ENDPOINT_URL", way.url),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ):
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with pytest.raises(kind, match=said):
            open_store_at("s3://bucket", retry_s=1.0).get("x")
        if not status:
            way.open()
