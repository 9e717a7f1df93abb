"""Models of the Hugging Face hub, from a hub on loopback that speaks its protocol."""

from __future__ import annotations

import builtins
import hashlib
import socket
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from caudal.domain.errors import ModelInvalid, PullFailed, UsageError
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from tests.support.hub import hub
from tests.support.models import write_directory, write_gguf

REPOSITORY = "someone/tiny"
SOURCE = f"hf:{REPOSITORY}"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty model store."""
    return ModelStore(open_blobs((tmp_path / "blobs").as_uri()), tmp_path / "cache")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the hub's library use this address, and no token of ours."""
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)

    def use(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


def test_a_directory_is_pulled_without_pickles_and_code(store: ModelStore, tmp_path: Path, at: Any) -> None:
    files = {f.name: f.read_bytes() for f in write_directory(tmp_path / "m").iterdir()}
    with hub(REPOSITORY, {**files, "pytorch_model.bin": b"\x80\x04", "run.py": b"evil"}) as (
        address,
        fetched,
    ):
        at(address)
        record = store.pull("tiny", SOURCE)
    assert sorted(fetched) == sorted(files)
    assert sorted(name for name, _ in record.files) == sorted(files)
    assert (record.source, record.licence, record.gguf) == (SOURCE, "Apache-2.0", "")


def test_one_gguf_of_several_is_pulled_and_checked(store: ModelStore, tmp_path: Path, at: Any) -> None:
    content = write_gguf(tmp_path / "m.gguf").read_bytes()
    with hub(REPOSITORY, {"q4.gguf": content, "q8.gguf": b"large", "README.md": b"# x"}) as (
        address,
        fetched,
    ):
        at(address)
        with pytest.raises(PullFailed, match="several GGUF files"):
            store.pull("tiny", SOURCE)
        with pytest.raises(PullFailed, match="not what was asked for"):
            store.pull("tiny", f"{SOURCE}:q4.gguf", "0" * 64)
        record = store.pull("tiny", f"{SOURCE}:q4.gguf", hashlib.sha256(content).hexdigest())
    assert record.gguf == "q4.gguf"
    assert "q8.gguf" not in fetched


def test_a_repository_of_pickles_is_refused_unfetched(store: ModelStore, at: Any) -> None:
    with hub(REPOSITORY, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04"}) as (address, fetched):
        at(address)
        with pytest.raises(ModelInvalid, match="only a pickle"):
            store.pull("tiny", SOURCE)
    assert fetched == []


def test_a_repository_that_is_not_there(store: ModelStore, at: Any) -> None:
    with hub(REPOSITORY, {}) as (address, _):
        at(address)
        with pytest.raises(PullFailed) as caught:
            store.pull("tiny", "hf:someone/else")
    assert "HF_TOKEN" in caught.value.remedy


def test_no_network_is_said(store: ModelStore, tmp_path: Path, at: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        at(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(PullFailed, match="check the network"):
            store.pull("tiny", SOURCE)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_the_library_the_extra_is_named(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *rest, **options)

    for name in [n for n in sys.modules if n.startswith("huggingface_hub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PullFailed, match=r"caudal\[serve\]"):
        store.pull("tiny", SOURCE)


@pytest.mark.parametrize("source", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b:x.bin", "hf:a/b:../x.gguf"])
def test_sources_of_no_known_form(store: ModelStore, source: str) -> None:
    with pytest.raises(UsageError):
        store.pull("tiny", source)
