"""`caudal models`: what is in the store, and what is kept out of it."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.support.models import weights, write_directory, write_gguf
from tests.support.served import Served


class Bomb:
    """Whoever unpickles it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Served:
    """A state directory with one model, and no control process."""
    made = Served(tmp_path / "home", capsys)
    source = write_gguf(tmp_path / "good.gguf")
    told = made.caudal("models", "pull", str(source), "--id", "good", "--json")
    assert told.code == 0, told.err
    assert (told.json["shape"], told.json["id"], told.json["version"]) == ("model/1", "good", 1)
    return made


def refused(place: Served, source: Path | str, code: str, *said: str, id: str = "bad") -> None:
    """The pull fails with that code and these words, and the store is what it was."""
    before = place.files()
    told = place.caudal("models", "pull", str(source), "--id", id)
    assert (told.code, told.out) == (2 if code == "usage" else 1, ""), told
    assert told.err.startswith(f"error[{code}]: ")
    for word in said:
        assert word in told.err
    assert place.files() == before
    assert [p for p in (place.home.cache / "models").rglob("*") if p.is_file()] == []


def test_models_are_listed_the_same_with_and_without_control(place: Served) -> None:
    away = place.caudal("models", "list", "--json").json
    assert (away["shape"], [m["id"] for m in away["items"]]) == ("models/1", ["good"])
    assert set(away["items"][0]) == {
        *("id", "version", "source", "published_at", "size_bytes", "context", "licence", "run"),
        "ready_replicas",
    }
    place.fill()
    place.start()
    assert place.caudal("models", "list", "--json").json == away
    people = place.caudal("models", "list").out
    place.stop()
    for word in ("good", "good.gguf", "REPLICAS"):
        assert word in people


def test_pulling_the_same_again_is_no_new_version(place: Served, tmp_path: Path) -> None:
    before = place.files()
    told = place.caudal("models", "pull", str(tmp_path / "good.gguf"), "--id", "good")
    assert told.code == 0
    assert "good version 1" in told.out
    assert place.files() == before


def test_a_directory_of_the_library_everybody_uses_is_taken(place: Served, tmp_path: Path) -> None:
    told = place.caudal("models", "pull", str(write_directory(tmp_path / "Tiny-Chat")), "--json")
    assert told.code == 0, told.err
    assert (told.json["id"], told.json["licence"], told.json["context"]) == ("tiny-chat", "Apache-2.0", 64)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt"])
def test_a_pickle_is_refused_and_never_opened(place: Served, tmp_path: Path, name: str) -> None:
    mark, folder = tmp_path / "mark", write_directory(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    refused(place, folder, "model_invalid", "pickle", "was not opened", name)
    refused(place, folder / name, "model_invalid", "was not opened")
    assert not mark.exists()


def test_a_pickle_that_calls_itself_safetensors_or_gguf_is_refused(place: Served, tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", write_directory(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    refused(place, folder, "model_invalid", "model.safetensors")
    (tmp_path / "m.gguf").write_bytes(pickle.dumps(Bomb(mark)))
    refused(place, tmp_path / "m.gguf", "model_invalid", "m.gguf")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_directory_names_what_is_missing(place: Served, tmp_path: Path, name: str) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / name).unlink()
    refused(place, folder, "model_invalid", "safetensors" if name == "model.safetensors" else name, "Do: ")


def test_a_shard_that_the_index_names_has_to_be_there(place: Served, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(place, folder, "model_invalid", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 16, "hidden_size 16"),
        ("vocab_size", 99, "vocab_size 99"),
        ("num_hidden_layers", 3, "config.json says 3"),
        ("hidden_size", "eight", "hidden_size"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    place: Served, tmp_path: Path, key: str, value: object, said: str
) -> None:
    folder = write_directory(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    refused(place, folder, "model_invalid", said)


def test_weights_that_are_cut_short_are_refused(place: Served, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(place, folder, "model_invalid", "model.safetensors")
    gguf = write_gguf(tmp_path / "cut.gguf")
    gguf.write_bytes(gguf.read_bytes()[:-20])
    refused(place, gguf, "model_invalid", "cut.gguf")


def test_a_layer_less_is_refused(place: Served, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    tensors = {name: t for name, t in weights().items() if ".1." not in name}
    save_file(tensors, folder / "model.safetensors")
    refused(place, folder, "model_invalid", "1 layers")


def test_what_is_not_there_cannot_be_pulled(place: Served, tmp_path: Path) -> None:
    refused(place, tmp_path / "nowhere.gguf", "pull_failed", "nowhere.gguf", "Do: ")
    refused(place, (tmp_path / "nowhere").as_uri(), "pull_failed", "nowhere")
    (tmp_path / "empty").mkdir()
    refused(place, tmp_path / "empty", "model_invalid", "Do: ")
    (tmp_path / "notes.txt").write_text("hello")
    refused(place, tmp_path / "notes.txt", "model_invalid", ".gguf")


@pytest.mark.parametrize("source", ["pypi:nothing", "hf:nothing", "ftp://host/x", "pypi:a==1; rm -rf /"])
def test_a_source_of_no_known_form_is_wrong_usage(place: Served, source: str) -> None:
    refused(place, source, "usage", source.partition(":")[0])


@pytest.mark.parametrize("id", ["../../escape", "UPPER", "a/b", "", ".hidden", "x" * 64])
def test_an_id_is_a_name_and_no_path(place: Served, tmp_path: Path, id: str) -> None:
    if id:
        refused(place, tmp_path / "good.gguf", "usage", "id", id=id)
    else:
        assert place.caudal("models", "pull", str(tmp_path / "good.gguf"), "--id", id).code in (0, 2)


def test_another_sha256_is_refused(place: Served, tmp_path: Path) -> None:
    before = place.files()
    source = str(tmp_path / "good.gguf")
    told = place.caudal("models", "pull", source, "--id", "x", "--sha256", "0" * 64)
    assert told.code == 1
    assert "error[pull_failed]" in told.err
    assert place.files() == before
    right = hashlib.sha256((tmp_path / "good.gguf").read_bytes()).hexdigest()
    assert place.caudal("models", "pull", source, "--id", "x", "--sha256", right).code == 0
