"""Blockwise int8 for deltas and updates: one float32 scale per 256 numbers, then one byte a number.

Works through the vector in pieces that stay in a core's cache: several times faster than whole-vector
passes, with the same bits. Decoding is one multiplication in float32, so that every machine gets the same
numbers. The error that encoding makes is handed back to whoever encodes (error feedback).
Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from caudal.train.interface import Flat

BLOCK = 256
"""Numbers that share one scale: 1.6 % overhead."""

PIECE = 256 * BLOCK
"""Numbers per pass: 256 KiB of float32, so that a few such arrays fit the second-level cache."""

EPSILON = np.float32(1e-30)
"""Added to the scale *after* it is a float32: added before, a tiny scale rounds to zero and divides by it."""

Bytes8 = NDArray[np.int8]


def blocks(count: int) -> int:
    """How many scales `count` numbers need."""
    return -(-count // BLOCK)


def encoded_bytes(count: int) -> int:
    """The length of `count` encoded numbers."""
    return 4 * blocks(count) + count


def pieces(count: int) -> Iterator[tuple[slice, slice]]:
    """The pieces of a vector: (numbers, their scales)."""
    for start in range(0, count, PIECE):
        stop = min(count, start + PIECE)
        yield slice(start, stop), slice(start // BLOCK, blocks(stop))


class Encoder:
    """Encodes vectors of one length; holds the scratch space."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._tmp = np.zeros(PIECE, np.float32)
        self._starts = np.arange(0, PIECE, BLOCK)

    def start(self) -> tuple[bytearray, Flat, Bytes8]:
        """A new message of this length: its buffer, and the scales and bytes as views into it."""
        buffer = bytearray(encoded_bytes(self.count))
        return buffer, *views(buffer, self.count)

    def piece(self, x: Flat, scales: Flat, q: Bytes8) -> Flat:
        """Encode one piece of `x` into the views `scales` and `q`; returns what it decodes to (scratch, valid
        until the next call). Numbers that are not finite make their block's scale not finite."""
        n = len(x)
        full = blocks(n) * BLOCK
        tmp = self._tmp[:full]
        tmp[n:] = 0
        np.abs(x, out=tmp[:n])
        rows = tmp.reshape(-1, BLOCK)
        # three times as fast as max(axis=1), which treats each row as a call of its own
        np.maximum.reduceat(tmp, self._starts[: len(rows)], out=scales)
        scales *= np.float32(1 / 127)
        scales += EPSILON
        inverse = np.reciprocal(scales)
        tmp[:n] = x
        rows *= inverse[:, None]
        np.rint(tmp, out=tmp)
        np.copyto(q, tmp[:n], casting="unsafe")
        rows *= scales[:, None]
        return tmp[:n]

    def encode(self, x: Flat, residual: Flat, residual_out: Flat) -> bytearray:
        """Encode x + residual; what could not be said goes to `residual_out` (not the same array)."""
        buffer, scales, q = self.start()
        work = np.empty(PIECE, np.float32)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for numbers, rows in pieces(self.count):
                part = np.add(x[numbers], residual[numbers], out=work[: numbers.stop - numbers.start])
                said = self.piece(part, scales[rows], q[numbers])
                np.subtract(part, said, out=residual_out[numbers])
        return buffer


def views(payload: bytes | bytearray | memoryview, count: int) -> tuple[Flat, Bytes8]:
    """Scales and bytes of an encoded vector, without a copy. Raises ValueError where the length is wrong."""
    if len(payload) != encoded_bytes(count):
        raise ValueError(f"{len(payload)} bytes are not {count} encoded numbers")
    scales = np.frombuffer(payload, np.float32, blocks(count))
    return scales, np.frombuffer(payload, np.int8, count, 4 * blocks(count))


def decode_piece(scales: Flat, q: Bytes8, out: Flat) -> Flat:
    """Decode one piece into `out` (scratch of PIECE numbers); returns the part of it that it filled."""
    n = len(q)
    full = out[: blocks(n) * BLOCK]
    full[:n] = q
    full[n:] = 0
    rows = full.reshape(-1, BLOCK)
    rows *= scales[:, None]
    return full[:n]


def decode(payload: bytes | bytearray | memoryview, count: int) -> Flat:
    """The numbers of an encoded vector."""
    scales, q = views(payload, count)
    out = np.empty(blocks(count) * BLOCK, np.float32)
    return decode_piece(scales, q, out)


def magnitude(payload: bytes | bytearray | memoryview, count: int) -> float:
    """The root mean square of the blocks' largest numbers; not finite where any number was not. Reads the
    scales only."""
    scales, _ = views(payload, count)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(127 * np.sqrt(np.mean(np.square(scales, dtype=np.float64))))
