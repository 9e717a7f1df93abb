"""The models that can be served, as versions in an object store: written once, never changed.

`models/<id>/v000001/<file>` are the files; `models/<id>/v000001.json` is the ModelRecord, created last and
only if absent: a version is there when its record is. `models/<id>/v000001.claim` is created first and names
the content: of two that publish different content at once, each gets a version of its own, and one that
died half-way and comes again with the same content goes on with the same version.

Knows nothing of engines, of services, or of where the files came from.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from caudal.domain.errors import AlreadyExists, CaudalError, NotFound, StorageFailed, UsageError
from caudal.domain.model import ModelRecord
from caudal.ports import Blobs
from caudal.store.codec import decode, encode
from caudal.store.model_files import inspect_folder
from caudal.store.pull import fetch
from caudal.store.pull.base import sha256_of, storage_failed

ROOT = "models/"
MAX_VERSION = 999_999
STALE_S = 24 * 3600.0
"""A pull takes at most an hour or so: what is a day old is left over."""

_STAGING = ".staging"  # `_pull-ab12.staging`: no id of a model starts with `_`

_RECORD = re.compile(r"models/([a-z0-9][a-z0-9._-]{0,62})/v(\d{6})\.json")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

Files = tuple[tuple[str, str], ...]


class ModelStore:
    """ports.Models over an object store, and what those need who publish and who serve.

    `cache_dir` holds copies of objects that had to be fetched, and what is being pulled; it is made when
    needed and may be deleted whenever nothing is being pulled or served.
    """

    def __init__(self, blobs: Blobs, cache_dir: Path, now: Callable[[], float] = time.time) -> None:
        self._blobs = blobs
        self._cache_dir = cache_dir
        self._now = now
        self._read: dict[str, ModelRecord] = {}  # by path: a record never changes

    def list(self) -> list[ModelRecord]:
        """The newest version of each model, by id. Raises StorageFailed, Unreachable."""
        newest = self._newest(ROOT)
        return [self._record(_path(model_id, newest[model_id])) for model_id in sorted(newest)]

    def get(self, model_id: str, version: int | None = None) -> ModelRecord:
        """One version, the newest where none is named. Raises NotFound."""
        _check_id(model_id)
        if version is None:
            version = self._newest(f"{ROOT}{model_id}/").get(model_id, 0)
        try:
            return self._record(_path(model_id, version))
        except NotFound as error:
            raise NotFound(
                f"no model {model_id!r}" + (f" in version {version}" if version else ""),
                remedy="`caudal models list` shows what is there",
            ) from error

    def publish(
        self,
        model_id: str,
        folder: Path,
        *,
        source: str,
        run: str = "",
        context: int = 0,
        licence: str = "",
        gguf: str = "",
    ) -> ModelRecord:
        """Keep the folder's model as the next version; the same content as the newest is that version.

        The folder is validated first. Its files may become the store's own (linked): nobody may write into
        them afterwards. `context` and `licence` are taken from the files where they are not given. Raises
        ModelInvalid, StorageFailed; the versions before stay as they are.
        """
        _check_id(model_id)
        found = inspect_folder(folder, gguf)
        files = tuple((name, sha256_of(folder / name)) for name in found.files)
        newest = self._newest(f"{ROOT}{model_id}/").get(model_id, 0)
        if newest:
            record = self._record(_path(model_id, newest))
            if record.files == files:
                return record
        version = self._claim(model_id, newest + 1, files)
        record = ModelRecord(
            id=model_id,
            version=version,
            source=source,
            published_at=self._now(),
            files=files,
            size_bytes=sum((folder / name).stat().st_size for name, _ in files),
            gguf=found.gguf,
            context=context or found.context,
            licence=licence or found.licence,
            run=run,
        )
        return self._write(record, folder)

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Bring one in (see pull/ for the sources). Raises PullFailed, ModelInvalid, StorageFailed,
        UsageError; then nothing is left behind."""
        _check_id(model_id)
        with self._staging("pull-") as folder:
            fetched = fetch(source, folder, sha256)
            return self.publish(model_id, folder, source=source, gguf=fetched.gguf, licence=fetched.licence)

    def materialise(self, record: ModelRecord) -> Path:
        """A local folder that holds all files of the version: the object store's own where it lies on this
        machine, else copies, fetched once and checked by their sha256. Not to be written into. Raises
        StorageFailed, NotFound."""
        base = _folder(record.id, record.version)
        local = [(name, self._blobs.local_path(base + name)) for name, _ in record.files]
        if local and all(path is not None for _, path in local):
            name, path = local[0]
            assert path is not None
            return path.parents[name.count("/")]
        target = self._cache_dir / record.id / f"v{record.version:06d}"
        if all((target / name).is_file() for name, _ in record.files):
            return target
        self._fetch(record, base, target)
        return target

    def _fetch(self, record: ModelRecord, base: str, target: Path) -> None:
        """All files into a folder beside, checked, then renamed: `target` is never half-filled."""
        with self._staging("fetch-") as folder:
            for name, sha256 in record.files:
                file = folder / "files" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                self._blobs.get_file(base + name, file)
                if sha256_of(file) != sha256:
                    raise StorageFailed(
                        "a model's file is not what was published",
                        where=f"{self._blobs.url.rstrip('/')}/{base}{name}",
                        why="its sha256 differs from the record's",
                        remedy=f"pull or publish {record.id} again",
                    )
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)  # of a cache that somebody cleared by half
            try:
                (folder / "files").rename(target)
            except OSError:
                # Another process was quicker, with the same bytes; anything else is an error.
                if not all((target / name).is_file() for name, _ in record.files):
                    raise

    def _claim(self, model_id: str, version: int, files: Files) -> int:
        """The first free version from `version` on, or the one that the same content was begun as."""
        digest = hashlib.sha256(repr(files).encode()).hexdigest().encode()
        while version <= MAX_VERSION:
            path = _claim_path(model_id, version)
            try:
                self._blobs.put(path, digest, if_absent=True)
                return version
            except AlreadyExists:
                if self._blobs.get(path) == digest:
                    return version
            version += 1
        raise StorageFailed(f"the model {model_id!r} has {MAX_VERSION} versions", remedy="use another id")

    def _write(self, record: ModelRecord, folder: Path) -> ModelRecord:
        """Files first, the record last. What was uploaded of a failed version is removed."""
        base, path = _folder(record.id, record.version), _path(record.id, record.version)
        try:
            for name, _ in record.files:
                self._blobs.put_file(base + name, folder / name)
            self._blobs.put(path, encode(record).encode(), if_absent=True)
        except AlreadyExists:
            return self._record(path)  # another process published the same content just now
        except CaudalError:
            self._remove(record)
            raise
        self._read[path] = record
        return record

    def _remove(self, record: ModelRecord) -> None:
        """Take back a version whose record was not written. Best effort: it is invisible in any case."""
        base = _folder(record.id, record.version)
        for path in (*(base + name for name, _ in record.files), _claim_path(record.id, record.version)):
            try:
                self._blobs.delete(path)
            except CaudalError:
                return  # the store is in trouble; the claim lets the next try go on from here

    def _newest(self, prefix: str) -> dict[str, int]:
        newest: dict[str, int] = {}
        for path in self._blobs.list(prefix):
            match = _RECORD.fullmatch(path)
            if match is not None:
                newest[match[1]] = max(newest.get(match[1], 0), int(match[2]))
        return newest

    def _record(self, path: str) -> ModelRecord:
        if path not in self._read:
            self._read[path] = decode(ModelRecord, self._blobs.get(path))
        return self._read[path]

    @contextmanager
    def _staging(self, prefix: str) -> Iterator[Path]:
        """An empty folder that is gone afterwards, whatever happened; so are those of a process that died."""
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            _sweep(self._cache_dir)
            with tempfile.TemporaryDirectory(
                prefix=f"_{prefix}", suffix=_STAGING, dir=self._cache_dir
            ) as folder:
                yield Path(folder)
        except OSError as error:
            raise storage_failed(str(self._cache_dir), error) from error


def _sweep(cache_dir: Path) -> None:
    """Remove what pulls that were killed left behind, once nothing can be working on it any more."""
    for folder in cache_dir.glob(f"_*{_STAGING}"):
        try:
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # its own process, or another sweep, was quicker


def _check_id(model_id: str) -> None:
    if not _ID.fullmatch(model_id):
        raise UsageError(
            f"{model_id[:80]!r} is not the id of a model",
            why="an id has 1 to 63 characters of a-z, 0-9, '.', '_' and '-', the first a letter or a digit",
            remedy="choose one with --id",
        )


def _folder(model_id: str, version: int) -> str:
    return f"{ROOT}{model_id}/v{version:06d}/"


def _path(model_id: str, version: int) -> str:
    return f"{ROOT}{model_id}/v{version:06d}.json"


def _claim_path(model_id: str, version: int) -> str:
    return f"{ROOT}{model_id}/v{version:06d}.claim"
