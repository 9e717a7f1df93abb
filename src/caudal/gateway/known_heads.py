"""Heads of messages that were parsed before: the same bytes again mean the same, whatever the length of the body.

A client says the same lines with every request, and an engine with every answer, but for the digits of their
content-length. Parsing them anew is half of what reading a message costs. Knows nothing of requests and answers: what
a head means is its user's, who keeps only what a parser has accepted.
"""

from __future__ import annotations

from typing import Any, Protocol

from caudal.gateway import wire

MAX_HEADS = 1024
MAX_HEAD_BYTES = 2048
MAX_DIGITS = 9
_END = b"\r\n\r\n"
_NAME = b"\ncontent-length: "


class KnownHeads(Protocol):
    """Made by `known_heads`."""

    def find(self, data: bytes, /) -> tuple[Any, bytes] | None:
        """What is kept of the head of this message, and its body; None where the head is not known, or the data is not
        exactly one message of which the parser would say the same."""

    def keep(self, data: bytes, value: object, /) -> None:
        """A parser read these bytes, from between two messages, as one message whose body has the length that one
        content-length says (or none, and no body), without any other coding: its head means `value`."""


class PlainHeads:
    """KnownHeads in Python; `most` is the longest body that is accepted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heads: dict[bytes, Any] = {}

    def find(self, data: bytes, /) -> tuple[Any, bytes] | None:
        """See KnownHeads."""
        key, cut, length = _split(data)
        if cut == 0 or len(data) - cut != length or length > self._most:
            return None
        value = self._heads.get(key)
        return None if value is None else (value, data[cut:])

    def keep(self, data: bytes, value: object, /) -> None:
        """See KnownHeads."""
        key, cut, length = _split(data)
        if cut == 0 or len(data) - cut != length:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[key] = value


def _split(data: bytes) -> tuple[bytes, int, int]:
    """The head without the digits of its first content-length, where the body begins, and how long it is to be. The
    second is 0 where there is no such head, or its length is not written plainly."""
    cut = data.find(_END, 0, MAX_HEAD_BYTES) + len(_END)
    if cut < len(_END):
        return b"", 0, 0
    head = data[:cut]
    at = head.lower().find(_NAME)
    if at < 0:
        return head, cut, 0
    at += len(_NAME)
    end = head.index(b"\r", at)
    digits = head[at:end]
    if not digits.isdigit() or len(digits) > MAX_DIGITS or (digits[:1] == b"0" and len(digits) > 1):
        return b"", 0, 0
    return head[:at] + head[end:], cut, int(digits)


def known_heads(most: int) -> KnownHeads:
    """None are known yet. `most`: the longest body that is accepted."""
    return wire.Heads(most) if wire.BUILT else PlainHeads(most)
