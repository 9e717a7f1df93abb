"""Blockwise int8, int4 and four levels (2 bits) for deltas and updates: one float32 scale per 256 numbers, then a
byte, half or a quarter of one for each number.

In integers the scale is a block's largest number, over the largest integer. With four levels that would leave most numbers
none: there the scale is the block's root mean square, and the levels are those that lose least of normally distributed
numbers (Max 1960); what lies beyond the outer ones is said in later rounds.

Works through a vector in pieces that stay in a core's cache: several times faster than whole-vector passes,
with the same bits. Decoding is one multiplication in float32, so that every machine gets the same numbers. The
error that encoding makes is handed back to whoever encodes (error feedback). Knows nothing of what the
numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caudal.train.interface import Flat

BLOCK = 256
"""Numbers that share one scale: 1.6 % overhead in int8."""

PIECE = 256 * BLOCK
"""Numbers per pass: 256 KiB of float32, so that a few such arrays fit the second-level cache."""

EPSILON = np.float32(1e-30)
"""Added to the scale *after* it is a float32: added before, a tiny scale rounds to zero and divides by it."""

INNER, EDGE, OUTER = np.float32(0.4528), np.float32(0.9816), np.float32(1.5104)
"""With two bits, the levels on either side of zero and where they part, in root mean squares of the block: 0 to 3 say
-OUTER, -INNER, INNER, OUTER, four to a byte, the lowest bits first."""

LARGEST = {8: 127, 4: 7, 2: float(OUTER)}
"""By bits, the largest number that is said, in scales: int4 says -7 ... 7, moved up by 8, two to a byte, low half first."""

_FOURS = np.array([-OUTER, -INNER, INNER, OUTER], np.float32)[
    (np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3
]
"""What each byte says with two bits a number."""

Payload = bytes | bytearray | memoryview
Raw = NDArray[np.uint8]


def blocks(count: int) -> int:
    """How many scales `count` numbers need."""
    return -(-count // BLOCK)


def encoded_bytes(count: int, bits: int = 8) -> int:
    """The length of `count` encoded numbers."""
    return 4 * blocks(count) + -(-count * bits // 8)


def pieces(count: int) -> Iterator[tuple[slice, slice]]:
    """The pieces of a vector: (numbers, their scales)."""
    for start in range(0, count, PIECE):
        stop = min(count, start + PIECE)
        yield slice(start, stop), slice(start // BLOCK, blocks(stop))


@dataclass(frozen=True, slots=True)
class Coded:
    """An encoded vector, seen without a copy: its scales, and the bytes of its numbers."""

    count: int
    bits: int
    scales: Flat
    raw: Raw

    def scaled(self, factor: np.float32) -> Coded:
        """The same numbers times `factor`: what multiplies a vector goes into its scales."""
        return Coded(self.count, self.bits, self.scales * factor, self.raw)

    def piece(self, numbers: slice, rows: slice, out: Flat) -> Flat:
        """Decode one piece into `out` (scratch of PIECE numbers); returns the part of it that it filled."""
        n = numbers.stop - numbers.start
        full = out[: blocks(n) * BLOCK]
        if self.bits == 8:
            full[:n] = self.raw[numbers].view(np.int8)
        elif self.bits == 2:
            fours = self.raw[numbers.start // 4 : -(-numbers.stop // 4)]
            np.take(_FOURS, fours, axis=0, out=full[: 4 * len(fours)].reshape(-1, 4), mode="clip")
        else:
            pairs = self.raw[numbers.start // 2 : (numbers.stop + 1) // 2]
            full[0 : n + n % 2 : 2] = pairs & 15
            full[1 : n + n % 2 : 2] = pairs >> 4
            full[:n] -= 8
        full[n:] = 0
        grid = full.reshape(-1, BLOCK)
        grid *= self.scales[rows][:, None]
        return full[:n]


def coded(payload: Payload, count: int, bits: int = 8) -> Coded:
    """An encoded vector as it came. Raises ValueError where the length is wrong."""
    if bits not in LARGEST or len(payload) != encoded_bytes(count, bits):
        raise ValueError(f"{len(payload)} bytes are not {count} numbers of {bits} bits")
    scales = np.frombuffer(payload, np.float32, blocks(count))
    return Coded(count, bits, scales, np.frombuffer(payload, np.uint8, -1, 4 * blocks(count)))


class Encoder:
    """Encodes vectors of any length; holds the scratch space."""

    def __init__(self) -> None:
        self._tmp = np.zeros(PIECE, np.float32)
        self._byte = np.zeros(PIECE, np.uint8)
        self._more = np.zeros(PIECE, np.bool_)
        self._starts = np.arange(0, PIECE, BLOCK)
        self._work = np.empty(PIECE, np.float32)

    def start(self, count: int, bits: int = 8) -> tuple[bytearray, Coded]:
        """A new message of this length: its buffer, and the views into it that `piece` fills."""
        buffer = bytearray(encoded_bytes(count, bits))
        return buffer, coded(buffer, count, bits)

    def piece(self, x: Flat, into: Coded, numbers: slice, rows: slice) -> Flat:
        """Encode one piece into the views; returns what it decodes to (scratch, valid until the next call).
        Numbers that are not finite make their block's scale not finite."""
        if into.bits == 2:
            return self._piece_of_levels(x, into, numbers, rows)
        n = len(x)
        tmp = self._tmp[: blocks(n) * BLOCK]
        tmp[n:] = 0
        np.abs(x, out=tmp[:n])
        grid = tmp.reshape(-1, BLOCK)
        scales = into.scales[rows]
        # three times as fast as max(axis=1), which treats each row as a call of its own
        np.maximum.reduceat(tmp, self._starts[: len(grid)], out=scales)
        scales *= np.float32(1 / LARGEST[into.bits])
        scales += EPSILON
        inverse = np.reciprocal(scales)
        tmp[:n] = x
        grid *= inverse[:, None]
        np.rint(tmp, out=tmp)
        if into.bits == 8:
            np.copyto(into.raw[numbers].view(np.int8), tmp[:n], casting="unsafe")
        else:
            self._pairs(tmp, n, into.raw[numbers.start // 2 : (numbers.stop + 1) // 2])
        grid *= scales[:, None]
        return tmp[:n]

    def _piece_of_levels(self, x: Flat, into: Coded, numbers: slice, rows: slice) -> Flat:
        """As `piece`, with four levels a number."""
        n = len(x)
        tmp, codes = self._tmp[: blocks(n) * BLOCK], self._byte[: -(-n // 4) * 4]
        tmp[n:] = 0
        np.square(x, out=tmp[:n])
        grid = tmp.reshape(-1, BLOCK)
        scales = into.scales[rows]
        np.add.reduceat(tmp, self._starts[: len(grid)], out=scales)
        scales[:-1] *= np.float32(1 / BLOCK)
        scales[-1] /= np.float32(n - (len(grid) - 1) * BLOCK)
        np.sqrt(scales, out=scales)
        scales += EPSILON
        tmp[:n] = x
        grid *= np.reciprocal(scales)[:, None]
        bits = codes[:n].view(np.bool_)
        more = self._more[:n]
        np.greater(tmp[:n], 0, out=bits)
        for edge in (-EDGE, EDGE):
            np.greater(tmp[:n], edge, out=more)
            codes[:n] += more.view(np.uint8)
        codes[n:] = 0
        out = into.raw[numbers.start // 4 : -(-numbers.stop // 4)]
        np.copyto(out, codes[0::4])
        for place in (1, 2, 3):
            codes[place::4] <<= np.uint8(2 * place)
            out |= codes[place::4]
        np.take(_FOURS, out, axis=0, out=tmp[: len(codes)].reshape(-1, 4), mode="clip")
        grid *= scales[:, None]
        return tmp[:n]

    def _pairs(self, rounded: Flat, n: int, out: Raw) -> None:
        """Two numbers to a byte; where their count is odd, a zero follows."""
        some = self._byte[: n + n % 2]
        np.add(rounded[:n], np.float32(8), out=some[:n], casting="unsafe")
        if n % 2:
            some[n] = 8
        np.left_shift(some[1::2], 4, out=out)
        out |= some[0::2]

    def encode(self, x: Flat, residual: Flat, residual_out: Flat, bits: int = 8) -> bytearray:
        """Encode x + residual; what could not be said goes to `residual_out` (not the same array)."""
        buffer, into = self.start(len(x), bits)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for numbers, rows in pieces(len(x)):
                part = np.add(x[numbers], residual[numbers], out=self._work[: numbers.stop - numbers.start])
                said = self.piece(part, into, numbers, rows)
                np.subtract(part, said, out=residual_out[numbers])
        return buffer


def decode(payload: Payload, count: int, bits: int = 8) -> Flat:
    """The numbers of an encoded vector. Raises ValueError where the length is wrong."""
    source, out, work = coded(payload, count, bits), np.empty(count, np.float32), np.empty(PIECE, np.float32)
    for numbers, rows in pieces(count):
        out[numbers] = source.piece(numbers, rows, work)
    return out


def magnitude(payload: Payload, count: int, bits: int = 8) -> float:
    """The sum of the squares of the blocks' largest numbers; not finite where any number was not. Reads the
    scales only."""
    with np.errstate(over="ignore", invalid="ignore"):
        scales = coded(payload, count, bits).scales
        return float(LARGEST[bits] ** 2 * np.sum(np.square(scales, dtype=np.float64)))
