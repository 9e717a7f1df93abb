"""Plain text in UTF-8, of any length: read in chunks, and cut into pieces that end with a line where they can."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caudal.domain.errors import DataError
from caudal.train.sources.base import Part, Text
from caudal.train.sources.streams import opened

CHUNK_BYTES = 1 << 20

PIECE_CHARACTERS = 1 << 16
"""A piece is at least so long, and ends with the line; the last one of a text is what is left."""

LONGEST_PIECE = 1 << 22
"""Text without lines is cut here: no piece is longer."""

_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some text, and the place in bytes where it begins: a place to begin reading from again."""

    text: str
    byte: int


def chunks(part: Part, start: int = 0) -> Iterator[Chunk]:
    """The part's text from the byte `start` on, which a Chunk has named (0: all of it). A byte order mark at the
    very beginning is no text. Raises DataError where a byte is zero or they are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opened(part) as file:
        if start:
            file.seek(start)
        at = start
        while True:
            raw = file.read(CHUNK_BYTES)
            begin = at - len(decoder.getstate()[0])
            zero = raw.find(b"\0")
            if zero >= 0:
                raise DataError(
                    "the file is binary, not text",
                    where=part.where,
                    why=f"byte {at + zero} is zero",
                    remedy="convert it to plain UTF-8 text first",
                )
            if at == 0 and raw.startswith(_MARK):
                raw, at, begin = raw[len(_MARK) :], len(_MARK), len(_MARK)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise DataError(
                    "the file is not UTF-8 text",
                    where=part.where,
                    why=f"byte {begin + error.start} is {error.object[error.start]:#04x}",
                    remedy="convert it, for example with `iconv -t UTF-8`",
                ) from None
            if not raw:
                return
            at += len(raw)
            if text:
                yield Chunk(text, begin)


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """One text that comes in chunks of any size, cut into pieces: the same for any chunks."""
    held = ""
    for text in texts:
        held += text
        start = 0
        while (end := _end(held, start)) >= 0:
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _end(held: str, start: int) -> int:
    """Where the piece that begins at `start` ends; -1 where that is not known yet."""
    line = held.find("\n", start + PIECE_CHARACTERS, start + LONGEST_PIECE)
    if line >= 0:
        return line + 1
    return start + LONGEST_PIECE if len(held) - start >= LONGEST_PIECE else -1


def read_text(part: Part) -> Iterator[Text]:
    """The document in pieces; none where there is nothing but white space."""
    said = False
    held: list[str] = []
    for piece in pieces(chunk.text for chunk in chunks(part)):
        said = said or bool(piece.strip())
        if not said:
            continue
        if held:
            yield Text(held.pop(), ends=False)
        held.append(piece)
    if held:
        yield Text(held.pop())
