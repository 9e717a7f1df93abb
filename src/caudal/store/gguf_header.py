"""Reads the header of a GGUF file, within limits: what the model is, and whether the file is whole.

Loads no weights and knows nothing of engines. The format: github.com/ggml-org/ggml, docs/gguf.md; the sizes
of the tensor types: the `gguf` package 0.19.0 (2026-11).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from caudal.domain.errors import ModelInvalid

MAGIC = b"GGUF"
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_ARRAY = 4_000_000  # the largest vocabularies in use have 262,144 entries and about as many merges
MAX_STRING_BYTES = 4 << 20
MAX_STRINGS_KEPT_BYTES = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

_TYPE_SIZES: dict[int, tuple[int, int]] = {  # type: (elements in a block, bytes of a block)
    **{0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 20: (32, 18)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82)},
    **{
        23: (256, 136),
        29: (256, 56),
        34: (256, 54),
        35: (256, 66),
        39: (32, 17),
        40: (64, 36),
        41: (128, 18),
    },
}

Value = int | float | bool | str


POOLINGS = frozenset({1, 2, 3})
"""`pooling_type` of models for embeddings: mean, first, last. 0 is none, 4 is for ranking."""

FILE_TYPE_FLOAT32 = 0
"""`general.file_type` of a file whose weights are all float32."""


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What the header says. `context` is the longest that the model was trained for (0: not said);
    `vocabulary` counts the tokenizer's entries; `licence` as its maker wrote it, or empty; `float32`
    whether all weights are in full precision; `tokenizer` and `pre_tokenizer` are llama.cpp's names; `embeds`
    whether it says how the vectors of a text's tokens become one; `generates` whether a token sees those before
    it only."""

    architecture: str
    name: str
    context: int
    layers: int
    vocabulary: int
    tensors: int
    has_chat_template: bool
    licence: str
    float32: bool = False
    tokenizer: str = ""
    pre_tokenizer: str = ""
    embeds: bool = False
    generates: bool = True


def read_gguf(path: Path) -> GgufInfo:
    """Raises ModelInvalid where it is not a whole, usable GGUF file."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _Header(file, path, size_bytes).info()
    except OSError as error:
        raise ModelInvalid("cannot be read", where=str(path), why=error.strerror or str(error)) from error


class _Header:
    """One pass over the header; every length is checked against the file before it is believed."""

    def __init__(self, file: BinaryIO, path: Path, size_bytes: int) -> None:
        self._file = file
        self._path = path
        self._size_bytes = size_bytes
        self._values: dict[str, Value] = {}
        self._lengths: dict[str, int] = {}

    def info(self) -> GgufInfo:
        """Read it all. Raises ModelInvalid."""
        if self._file.read(4) != MAGIC:
            raise self._wrong("it does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise self._wrong(f"version {version} of the format; 2 and 3 are read")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise self._wrong(f"{tensors} tensors and {keys} keys are more than any model has")
        for _ in range(keys):
            self._key()
        self._check_tensors(tensors)
        return self._summary(tensors)

    def _summary(self, tensors: int) -> GgufInfo:
        architecture = self._text("general.architecture")
        if not architecture:
            raise self._wrong("its architecture is not said")
        if self._whole("split.count") > 1:
            raise self._wrong(
                "it is one part of several", remedy="merge the parts with llama.cpp's gguf-split"
            )
        if tensors == 0:
            raise self._wrong("it holds no tensors, only a vocabulary")
        vocabulary = self._lengths.get("tokenizer.ggml.tokens", 0)
        if vocabulary == 0:
            raise self._wrong("it holds no tokenizer")
        return GgufInfo(
            architecture=architecture,
            name=self._text("general.name"),
            context=self._whole(f"{architecture}.context_length"),
            layers=self._whole(f"{architecture}.block_count"),
            vocabulary=vocabulary,
            tensors=tensors,
            has_chat_template=bool(self._text("tokenizer.chat_template")),
            licence=self._text("general.license"),
            float32=self._values.get("general.file_type") == FILE_TYPE_FLOAT32,
            tokenizer=self._text("tokenizer.ggml.model"),
            pre_tokenizer=self._text("tokenizer.ggml.pre"),
            embeds=self._whole(f"{architecture}.pooling_type") in POOLINGS,
            generates=self._values.get(f"{architecture}.attention.causal") is not False,
        )

    def _key(self) -> None:
        key, kind = self._string(keep=True), self._number("I")
        if kind == _STRING:
            self._values[key] = self._string(keep=True)
        elif kind == _ARRAY:
            element, length = self._number("I"), self._number("Q")
            if length > MAX_ARRAY:
                raise self._wrong(f"{key[:80]!r} has {length} entries")
            self._lengths[key] = length
            self._skip_array(element, length)
        elif kind in _FORMATS:
            self._values[key] = self._number(_FORMATS[kind])
        else:
            raise self._wrong(f"{key[:80]!r} is of the unknown type {kind}")

    def _skip_array(self, element: int, length: int) -> None:
        if element == _STRING:
            for _ in range(length):
                self._string(keep=False)
        elif element in _FORMATS:
            self._skip(length * struct.calcsize(_FORMATS[element]))
        else:
            raise self._wrong(f"an array of the unknown type {element}")

    def _check_tensors(self, tensors: int) -> None:
        end_bytes = 0
        for _ in range(tensors):
            name, dimensions = self._string(keep=True), self._number("I")
            if dimensions > 8:
                raise self._wrong(f"the tensor {name[:80]!r} has {dimensions} dimensions")
            shape = [self._number("Q") for _ in range(dimensions)]
            kind, offset = self._number("I"), self._number("Q")
            # A type that came after this was written counts as one byte: the check then only sees less.
            block, block_bytes = _TYPE_SIZES.get(kind, (max(1, math.prod(shape)), 1))
            end_bytes = max(end_bytes, offset + math.prod(shape) // block * block_bytes)
        alignment = self._whole("general.alignment") or 32
        start_bytes = math.ceil(self._file.tell() / alignment) * alignment
        if start_bytes + end_bytes > self._size_bytes:
            missing = start_bytes + end_bytes - self._size_bytes
            raise self._wrong(f"it is cut short: {missing} bytes are missing", remedy="fetch it again")

    def _string(self, *, keep: bool) -> str:
        length = self._number("Q")
        if length > (MAX_STRINGS_KEPT_BYTES if keep else MAX_STRING_BYTES):
            raise self._wrong(f"a text of {length} bytes in its header")
        if keep:
            return self._read(length).decode(errors="replace")
        self._read(length)  # shorter than a seek: most are a few bytes within the buffer
        return ""

    def _number(self, code: str) -> int:
        """Floats and flags too: the caller knows which."""
        value: int = struct.unpack("<" + code, self._read(struct.calcsize("<" + code)))[0]
        return value

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self._wrong("its header is cut short", remedy="fetch it again")
        return data

    def _skip(self, length: int) -> None:
        if self._file.tell() + length > self._size_bytes:
            raise self._wrong("its header is cut short", remedy="fetch it again")
        self._file.seek(length, 1)

    def _whole(self, key: str) -> int:
        value = self._values.get(key, 0)
        return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0

    def _text(self, key: str) -> str:
        value = self._values.get(key, "")
        return value if isinstance(value, str) else ""

    def _wrong(self, why: str, remedy: str = "name another file") -> ModelInvalid:
        return ModelInvalid("not a usable GGUF file", where=str(self._path), why=why, remedy=remedy)
