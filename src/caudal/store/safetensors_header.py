"""Reads the header of a safetensors file, within limits: names, types and shapes, and whether the file is
whole. Loads no weights, and never unpickles anything.

The format: github.com/huggingface/safetensors, README: 8 bytes of length, JSON, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from caudal.domain.errors import ModelInvalid

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_DTYPE_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16},
    **{"F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64},
}

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name. Raises ModelInvalid where the file is not whole and sound."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(_PICKLE_STARTS):
                raise _wrong(path, "it is a pickle under another name; pickles run code and are never read")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > MAX_HEADER_BYTES or 8 + length > size_bytes:
                raise _wrong(path, "its header is cut short, or it is another format")
            raw = file.read(length)
    except OSError as error:
        raise ModelInvalid("cannot be read", where=str(path), why=error.strerror or str(error)) from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _wrong(path, "its header is not a table of tensors")
    header.pop("__metadata__", None)
    data_bytes = size_bytes - 8 - length
    return {name: _shape(path, name, entry, data_bytes) for name, entry in header.items()}


def _shape(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[int, ...]:
    """One tensor's shape, after its bytes were found to be as many as the shape needs."""
    try:
        bits, shape, (begin, end) = _DTYPE_BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and len(shape) <= 16
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, f"its entry for the tensor {name[:80]!r} is malformed") from error
    if not sound or not begin <= end:
        raise _wrong(path, f"its entry for the tensor {name[:80]!r} is malformed")
    if end > data_bytes:
        raise _wrong(
            path, f"it is cut short: the tensor {name[:80]!r} ends {end - data_bytes} bytes after it"
        )
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise _wrong(
            path, f"the tensor {name[:80]!r} has {end - begin} bytes, which do not fit its shape {shape}"
        )
    return tuple(shape)


def _wrong(path: Path, why: str) -> ModelInvalid:
    return ModelInvalid("not a usable safetensors file", where=str(path), why=why, remedy="fetch it again")
