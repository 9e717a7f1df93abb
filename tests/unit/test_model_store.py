"""Versions of models: written once, all or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from caudal.domain.errors import AlreadyExists, ModelInvalid, NotFound, PullFailed, StorageFailed, UsageError
from caudal.domain.model import ModelRecord
from caudal.ports import Blobs
from caudal.store import models as module
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from tests.support.models import write_directory, write_gguf


class Remote:
    """An object store that is not on this machine, and may fill up: `room` more objects fit."""

    def __init__(self, inner: Blobs) -> None:
        self.url = "s3://far"
        self.inner = inner
        self.room = 1_000
        self.fetched = 0

    def put(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self._take(path)
        self.inner.put(path, data, if_absent=if_absent)

    def put_file(self, path: str, file: Path, *, if_absent: bool = False) -> None:
        self._take(path)
        self.inner.put(path, file.read_bytes(), if_absent=if_absent)

    def get(self, path: str) -> bytes:
        return self.inner.get(path)

    def get_file(self, path: str, target: Path) -> None:
        self.fetched += 1
        target.write_bytes(self.inner.get(path))

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)

    def delete(self, path: str) -> None:
        self.inner.delete(path)

    def local_path(self, path: str) -> Path | None:
        return None

    def _take(self, path: str) -> None:
        self.room -= 1
        if self.room < 0:
            raise StorageFailed("the disk is full", where=path)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """A store on this machine."""
    return open_blobs((tmp_path / "blobs").as_uri())


@pytest.fixture
def store(blobs: Blobs, tmp_path: Path) -> ModelStore:
    """Models in it."""
    return ModelStore(blobs, tmp_path / "cache", now=lambda: 5.0)


def content(folder: Path, record: ModelRecord) -> dict[str, bytes]:
    """The record's files in a folder."""
    return {name: (folder / name).read_bytes() for name, _ in record.files}


def test_a_published_directory_is_listed_and_materialised(store: ModelStore, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    write_gguf(folder / "m.gguf", context=32)
    record = store.publish("tiny", folder, source="run:tiny", run="tiny")
    assert (record.id, record.version, record.published_at) == ("tiny", 1, 5.0)
    assert (record.gguf, record.context, record.licence, record.run) == ("m.gguf", 32, "Apache-2.0", "tiny")
    assert record.size_bytes == sum(f.stat().st_size for f in folder.iterdir())
    assert store.list() == [record] == [store.get("tiny")]
    assert content(store.materialise(record), record) == content(folder, record)


def test_versions_rise_and_old_ones_stay(store: ModelStore, blobs: Blobs, tmp_path: Path) -> None:
    first = store.publish("tiny", write_directory(tmp_path / "a", seed=1), source="a")
    second = store.publish("tiny", write_directory(tmp_path / "b", seed=2), source="b")
    other = store.publish("other", write_directory(tmp_path / "c", seed=1), source="c")
    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert store.get("tiny", 1) == first
    fresh = ModelStore(blobs, tmp_path / "cache2")
    assert fresh.list() == [other, second]
    assert content(fresh.materialise(first), first) == content(tmp_path / "a", first)


def test_the_same_content_is_the_same_version(store: ModelStore, tmp_path: Path) -> None:
    first = store.publish("tiny", write_directory(tmp_path / "a"), source="a")
    assert store.publish("tiny", write_directory(tmp_path / "b"), source="b") == first
    third = store.publish("tiny", write_directory(tmp_path / "c", seed=1), source="c")
    back = store.publish("tiny", write_directory(tmp_path / "d"), source="d")
    assert (third.version, back.version) == (2, 3)


def test_an_invalid_folder_publishes_nothing(store: ModelStore, blobs: Blobs, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid):
        store.publish("tiny", folder, source="x")
    assert blobs.list("") == []


@pytest.mark.parametrize("model_id", ["", "A", "../x", "a/b", ".a", "a" * 64, "a\n"])
def test_ids_are_names(store: ModelStore, tmp_path: Path, model_id: str) -> None:
    for call in (
        lambda: store.publish(model_id, tmp_path, source="x"),
        lambda: store.pull(model_id, "x.gguf"),
        lambda: store.get(model_id),
    ):
        with pytest.raises(UsageError):
            call()


def test_what_is_not_there_is_not_found(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model 'none'"):
        store.get("none")
    store.publish("tiny", write_directory(tmp_path / "a"), source="a")
    with pytest.raises(NotFound, match="no model 'tiny' in version 7"):
        store.get("tiny", 7)


@pytest.mark.parametrize("room", range(5))
def test_a_store_that_fills_up_keeps_what_it_had(blobs: Blobs, tmp_path: Path, room: int) -> None:
    remote = Remote(blobs)
    store = ModelStore(remote, tmp_path / "cache")
    first = store.publish("tiny", write_directory(tmp_path / "a", seed=1), source="a")
    before = blobs.list("")
    remote.room = room
    with pytest.raises(StorageFailed):
        store.publish("tiny", write_directory(tmp_path / "b", seed=2), source="b")
    assert blobs.list("") == before
    assert store.list() == [first]
    remote.room = 100
    assert store.publish("tiny", tmp_path / "b", source="b").version == 2


def test_a_publisher_that_died_half_way_goes_on_with_the_same_version(blobs: Blobs, tmp_path: Path) -> None:
    class Killed(BaseException):
        """The process ends here."""

    class Dying(Remote):
        def put_file(self, path: str, file: Path, *, if_absent: bool = False) -> None:
            if path.endswith("model.safetensors"):
                raise Killed
            super().put_file(path, file, if_absent=if_absent)

    folder = write_directory(tmp_path / "a")
    with pytest.raises(Killed):
        ModelStore(Dying(blobs), tmp_path / "cache").publish("tiny", folder, source="a")
    store = ModelStore(blobs, tmp_path / "cache")
    assert store.list() == []
    record = store.publish("tiny", folder, source="a")
    assert record.version == 1
    assert content(store.materialise(record), record) == content(folder, record)


def test_what_a_dead_publisher_began_is_never_mixed_with_other_content(blobs: Blobs, tmp_path: Path) -> None:
    blobs.put("models/tiny/v000001.claim", b"somebody else's")
    blobs.put("models/tiny/v000001/config.json", b"{}")
    store = ModelStore(blobs, tmp_path / "cache")
    assert store.publish("tiny", write_directory(tmp_path / "a"), source="a").version == 2
    assert blobs.get("models/tiny/v000001/config.json") == b"{}"


def test_two_that_publish_at_once_get_a_version_each(blobs: Blobs, tmp_path: Path) -> None:
    folders = [write_directory(tmp_path / f"m{n}", seed=n) for n in range(4)]
    records: list[ModelRecord] = []

    def publish(folder: Path) -> None:
        records.append(ModelStore(blobs, tmp_path / "cache").publish("tiny", folder, source=folder.name))

    threads = [threading.Thread(target=publish, args=(f,)) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ModelStore(blobs, tmp_path / "cache")
    assert len({r.version for r in records}) == 4
    for record in records:
        assert store.get("tiny", record.version) == record
        assert content(store.materialise(record), record) == content(tmp_path / record.source, record)


def test_two_that_publish_the_same_at_once_agree(blobs: Blobs, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    earlier = ModelStore(blobs, tmp_path / "cache").publish("tiny", folder, source="a")

    class Late(Remote):
        """Sees the state before the other one published."""

        def list(self, prefix: str) -> list[str]:
            return []

    assert ModelStore(Late(blobs), tmp_path / "cache").publish("tiny", folder, source="b") == earlier


def test_a_far_model_is_fetched_once_and_checked(blobs: Blobs, tmp_path: Path) -> None:
    remote = Remote(blobs)
    store = ModelStore(remote, tmp_path / "cache")
    folder = write_directory(tmp_path / "m")
    record = store.publish("tiny", folder, source="a")
    local = store.materialise(record)
    assert content(local, record) == content(folder, record)
    assert (store.materialise(record), remote.fetched) == (local, len(record.files))
    (local / "config.json").unlink()
    assert content(store.materialise(record), record) == content(folder, record)
    shutil.rmtree(local)
    blobs.put("models/tiny/v000001/config.json", b"{}")
    with pytest.raises(StorageFailed, match="not what was published"):
        store.materialise(record)
    assert not local.exists()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["tiny"]


def test_pulling_a_path_publishes_it(store: ModelStore, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", context=77)
    record = store.pull("tiny", str(file))
    assert (record.source, record.gguf, record.context, record.licence) == (str(file), "m.gguf", 77, "MIT")
    assert store.pull("tiny", str(file)) == record
    file.unlink()
    assert (store.materialise(record) / "m.gguf").read_bytes()[:4] == b"GGUF"
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "cut"])
def test_a_pull_that_fails_leaves_nothing(store: ModelStore, blobs: Blobs, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.gguf"
    if kind == "cut":
        write_gguf(file)
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((PullFailed, ModelInvalid)):
        store.pull("tiny", str(file))
    assert (blobs.list(""), list((tmp_path / "cache").iterdir())) == ([], [])


def test_a_disk_that_fills_up_during_a_pull_is_said(
    store: ModelStore, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageFailed, match="the disk is full"):
        store.pull("tiny", str(file))
    assert (blobs.list(""), list((tmp_path / "cache").iterdir())) == ([], [])


def test_what_a_killed_pull_left_is_swept_after_a_day(store: ModelStore, tmp_path: Path) -> None:
    old, young = tmp_path / "cache" / "_pull-a.staging", tmp_path / "cache" / "_pull-b.staging"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    store.pull("tiny", str(write_gguf(tmp_path / "m.gguf")))
    assert (old.exists(), young.exists()) == (False, True)
    assert module.STALE_S > 3600


def test_a_damaged_record_is_said(store: ModelStore, blobs: Blobs) -> None:
    blobs.put("models/tiny/v000001.json", b"{}")
    with pytest.raises(StorageFailed):
        store.list()


def test_a_record_is_never_written_over(store: ModelStore, blobs: Blobs, tmp_path: Path) -> None:
    store.publish("tiny", write_directory(tmp_path / "a"), source="a")
    with pytest.raises(AlreadyExists):
        blobs.put("models/tiny/v000001.json", b"{}", if_absent=True)
