"""Safety: whatever bytes a model file holds, its reader answers or raises ModelInvalid, and stays small."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.errors import ModelInvalid
from caudal.store.gguf_header import GgufInfo, read_gguf
from caudal.store.safetensors_header import read_shapes
from tests.support.models import write_directory, write_gguf


@cache
def originals() -> tuple[bytes, bytes]:
    """A good GGUF file and a good safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        gguf = write_gguf(Path(folder) / "m.gguf").read_bytes()
        return gguf, (write_directory(Path(folder) / "d") / "model.safetensors").read_bytes()


CHANGES = st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4)


def changed(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """The data with some bytes written over."""
    result = bytearray(data)
    for offset, patch in changes:
        result[offset : offset + len(patch)] = patch
    return bytes(result)


@settings(max_examples=300, deadline=2000)
@given(CHANGES)
def test_a_damaged_gguf_is_read_or_refused(changes: list[tuple[int, bytes]]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(changed(originals()[0], changes))
        file.flush()
        try:
            assert isinstance(read_gguf(Path(file.name)), GgufInfo)
        except ModelInvalid as error:
            assert error.why


@settings(max_examples=300, deadline=2000)
@given(CHANGES)
def test_damaged_safetensors_are_read_or_refused(changes: list[tuple[int, bytes]]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(changed(originals()[1], changes))
        file.flush()
        try:
            assert isinstance(read_shapes(Path(file.name)), dict)
        except ModelInvalid as error:
            assert error.why
