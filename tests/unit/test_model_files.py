"""Which folders are models, and what is said of those that are not."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from caudal.domain.errors import ModelInvalid
from caudal.store.gguf_header import read_gguf
from caudal.store.model_files import inspect_folder
from caudal.store.safetensors_header import read_shapes
from tests.support.models import LAYERS, VOCAB, WIDTH, weights, write_directory, write_gguf


class Trap:
    """Unpickling this is a failed test."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


def test_a_gguf_says_what_it_is(tmp_path: Path) -> None:
    info = read_gguf(write_gguf(tmp_path / "m.gguf", context=128))
    assert (info.architecture, info.name, info.context, info.layers) == ("llama", "tiny", 128, LAYERS)
    assert (info.vocabulary, info.tensors, info.has_chat_template, info.licence) == (VOCAB, 2, True, "mit")
    assert not read_gguf(write_gguf(tmp_path / "n.gguf", chat=False)).has_chat_template


def test_a_gguf_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    # The writer pads the last tensor to the alignment: those bytes are nobody's.
    end = len(whole) - (-(WIDTH * 4) % 32)
    for length in [*range(0, end, 7), end - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelInvalid):
            read_gguf(cut)


def test_a_gguf_with_hostile_lengths_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    many = (1 << 63).to_bytes(8, "little")
    one = (1).to_bytes(8, "little")
    key = one + b"k"
    for body in (
        many + one,
        one + many,
        one + one + many,
        one + one + key + struct.pack("<I", 8) + many,
        one + one + key + struct.pack("<II", 9, 8) + many,
        one + one + key + struct.pack("<II", 9, 9) + one,
        one + one + key + struct.pack("<I", 77),
    ):
        path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body)
        with pytest.raises(ModelInvalid):
            read_gguf(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + b"0" * 100, b"GGUF\x09\0\0\0" + b"\0" * 100])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelInvalid):
        inspect_folder(tmp_path)


def test_safetensors_shapes_are_read(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    shapes = read_shapes(folder / "model.safetensors")
    assert shapes == {name: tensor.shape for name, tensor in weights().items()}


def test_safetensors_that_are_cut_are_refused(tmp_path: Path) -> None:
    file = write_directory(tmp_path / "m") / "model.safetensors"
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 11), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ModelInvalid):
            read_shapes(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 9000]},
        {"dtype": [], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": {"a": 0, "b": 8}},
        [],
        None,
    ],
)
def test_safetensors_with_malformed_entries_are_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(ModelInvalid):
        read_shapes(path)


def test_a_complete_directory_is_a_model(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("hidden")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    found = inspect_folder(folder)
    assert found.files == ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    assert (found.gguf, found.context, found.licence) == ("", 64, "Apache-2.0")


def test_a_directory_with_its_gguf_is_both(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    write_gguf(folder / "m.gguf", context=32)
    found = inspect_folder(folder)
    assert (found.gguf, found.context, found.licence) == ("m.gguf", 32, "Apache-2.0")
    assert {"m.gguf", "config.json"} <= set(found.files)


def test_one_of_several_ggufs_has_to_be_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(ModelInvalid, match=r"several GGUF files.*\n.*a\.gguf, b\.gguf"):
        inspect_folder(tmp_path)
    assert inspect_folder(tmp_path, gguf="b.gguf").files == ("b.gguf",)
    with pytest.raises(ModelInvalid, match="no file"):
        inspect_folder(tmp_path, gguf="c.gguf")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickled_weights_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / f"model{suffix}").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelInvalid, match="pickle"):
        inspect_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelInvalid, match="pickle"):
        inspect_folder(folder)


@pytest.mark.parametrize("start", [b"\x80\x04\x95", b"PK\x03\x04"])
def test_a_pickle_under_another_name_is_refused(tmp_path: Path, start: bytes) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(start + b"\0" * 100)
    with pytest.raises(ModelInvalid, match="pickle under another name"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_a_part_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(ModelInvalid):
        inspect_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "null", '"x"'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_directory_with_broken_json_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / name).write_text(content)
    with pytest.raises(ModelInvalid):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_size": VOCAB + 1}, r"embed_tokens.weight is \[12, 8\].*vocab_size 13"),
        ({"hidden_size": 16}, "hidden_size 16"),
        ({"num_hidden_layers": 3}, "2 layers, and config.json says 3"),
        ({"num_hidden_layers": 1}, "2 layers, and config.json says 1"),
        ({"vocab_size": "12"}, "no usable vocab_size"),
        ({"hidden_size": None}, "no usable hidden_size"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    folder = write_directory(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelInvalid, match=expected):
        inspect_folder(folder)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": VOCAB}}}))
    with pytest.raises(ModelInvalid, match="not below vocab_size"):
        inspect_folder(folder)


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match=r"'model-2\.safetensors' is missing"):
        inspect_folder(folder)


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{number}.safetensors" for number, name in enumerate(weights())}
    for name, file in files.items():
        save_file({name: weights()[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert set(files.values()) <= set(inspect_folder(folder).files)


def test_an_encoder_for_pictures_beside_it_is_not_counted(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    seeing = {"vision.layers.7.weight": np.zeros((2, 2), dtype=np.float32)}
    save_file(weights() | seeing, folder / "model.safetensors")
    assert inspect_folder(folder).context == 64


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m")
    (tmp_path / "secret").write_text("x")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelInvalid, match="leads out"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["", "notes.txt"])
def test_a_folder_without_a_model_says_what_a_model_is(tmp_path: Path, name: str) -> None:
    if name:
        (tmp_path / name).write_text("x")
    with pytest.raises(ModelInvalid, match=r"a model is one \.gguf file, or config\.json"):
        inspect_folder(tmp_path)
