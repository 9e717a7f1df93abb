"""What a corpus is made of: parts (files or objects) that a reader turns into records, one after the other.

A record is a text or a dialogue. Nothing here is ever whole in memory. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, Protocol

Format = Literal["text", "jsonl", "parquet", "arrow"]


class Message(NamedTuple):
    """One turn of a dialogue: `role` is `system`, `user`, `assistant` or what else a chat template knows."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document, or a piece of one; `ends` says whether the document is over with it."""

    text: str
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation, as it was had."""

    messages: tuple[Message, ...]


Record = Text | Dialogue


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a corpus. `name` is its path below what the user named; `where` is how errors call it;
    `open` begins to read it anew each time, and raises the domain's errors."""

    name: str
    where: str
    size: int
    format: Format
    open: Callable[[], BinaryIO]


class Reader(Protocol):
    """One per format."""

    def __call__(self, part: Part) -> Iterator[Record]:
        """The part's records in their order, read as they are asked for. Raises DataError with the part and the
        place in it."""
        ...
