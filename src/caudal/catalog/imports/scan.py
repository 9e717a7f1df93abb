"""Read a JSON text that is larger than memory, piece by piece: AWS's list of prices for EC2 is 8 GB in one object.

Walks objects and arrays member by member and hands small values, one product or one term, to the standard library's
scanner, which is C. That needs no other library, and holds one piece and one value at a time. Knows nothing of
prices. What is not JSON raises Broken, with the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

MOST_VALUE_CHARS = 16 << 20
"""A value that is taken whole is never larger; EC2's largest product with its terms is some 100,000 characters."""

MOST_DEPTH = 50
"""How deep what is skipped may be nested."""

_SPACE = re.compile(r"[ \t\r\n]*")


class Broken(ValueError):
    """The text is not JSON from `line` on."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")
        self.line = line
        self.text = text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


class JsonScan:
    """A place in a JSON text that comes in pieces. Numbers with a point are Decimal: they are prices."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._text = ""
        self._at = 0
        self._lines_before = 0
        decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)
        self._decode = decoder.raw_decode

    @property
    def line(self) -> int:
        """The line of this place, counted from 1."""
        return self._lines_before + self._text.count("\n", 0, self._at) + 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here. Whoever gets one reads its value before the next is asked for."""
        self._expect("{")
        if self._closed("}"):
            return
        while True:
            if self.peek() != '"':
                raise Broken(self.line, "a name in quotes is expected")
            key = self.value()
            self._expect(":")
            yield str(key)
            if self._closed("}"):
                return
            self._expect(",")

    def items(self) -> Iterator[None]:
        """One step for each item of the array that begins here; whoever steps reads the item."""
        self._expect("[")
        if self._closed("]"):
            return
        while True:
            yield None
            if self._closed("]"):
                return
            self._expect(",")

    def value(self) -> Any:
        """The value that begins here, whole."""
        cut = 4 if self.peek() in tuple("-0123456789") else 1  # `1.` or `1e-` are numbers, too, and go on
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise Broken(self.line, "it is nested too deep") from None
            except ValueError as error:
                self._need_more(error)
                continue
            if len(self._text) - end < cut and self._more():
                continue  # it may go on in the next piece
            self._at = end
            return value

    def skip(self, depth: int = 0) -> None:
        """Pass over the value that begins here, however large it is."""
        if depth > MOST_DEPTH:
            raise Broken(self.line, "it is nested too deep")
        first = self.peek()
        if first == "{":
            for _ in self.members():
                self.skip(depth + 1)
        elif first == "[":
            for _ in self.items():
                self.skip(depth + 1)
        else:
            self.value()

    def _need_more(self, error: ValueError) -> None:
        """The value here is cut off, or wrong: which of them is known once there is nothing more, or too much."""
        if len(self._text) - self._at > MOST_VALUE_CHARS:
            raise Broken(self.line, f"no value ends within {MOST_VALUE_CHARS >> 20} Mi characters") from None
        # Twice as much each time, so that a long value costs no more than twice its own reading.
        wanted = 2 * (len(self._text) - self._at)
        grown = False
        while len(self._text) - self._at < wanted + 1 and self._more():
            grown = True
        if not grown:
            raise Broken(self.line, str(error)[:200] or "the text ends here") from None

    def _expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            said = repr(found) if found else "the end of the file"
            raise Broken(self.line, f"{character!r} is expected, and {said} is found")
        self._at += 1

    def _closed(self, bracket: str) -> bool:
        if self.peek() == bracket:
            self._at += 1
            return True
        return False

    def _more(self) -> bool:
        """Append the next piece and drop what is behind; False at the end."""
        for piece in self._pieces:
            if piece:
                self._lines_before += self._text.count("\n", 0, self._at)
                self._text = self._text[self._at :] + piece
                self._at = 0
                return True
        return False
