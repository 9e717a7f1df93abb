"""Server-sent events in whole pieces, and the model's name in answers.

A stream is forwarded event by event: half an event must never be sent, because whatever follows a failure
(an error event now, the rescued rest of the answer later) has to start on a clean line. Within that, bytes
are passed on as they are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

MAX_EVENT_BYTES = 1024 * 1024
DONE = b"data: [DONE]"


class NotEvents(Exception):
    """The engine sent what is not a stream of events."""


class EventSplitter:
    """Bytes in as they come, whole events out."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self.done = False  # the stream said [DONE]

    @property
    def pending(self) -> bool:
        """Whether part of an event waits for its end."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now (maybe none). Raises NotEvents for an endless line, or for what does
        not begin as a stream of events."""
        if self._rest:
            data = self._rest + data
        cut = _end_of_last_event(data)
        whole, self._rest = (data, b"") if cut == len(data) else (data[:cut], data[cut:])
        if len(self._rest) > MAX_EVENT_BYTES:
            raise NotEvents("an event without an end")
        if whole and not self._begun:
            self._begun = True
            if not whole.lstrip(b"\r\n").startswith((b"data:", b"event:", b":", b"id:", b"retry:")):
                raise NotEvents("what it sent is not a stream of events")
        if DONE in whole[-64:]:
            self.done = True
        return whole


def _end_of_last_event(data: bytes) -> int:
    """The length up to and with the last empty line, in either style of line end; 0 where there is none."""
    if data.endswith(b"\n\n"):
        return len(data)
    plain, windows = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, windows + 4 if windows >= 0 else 0)


@lru_cache(maxsize=1024)
def right_names(model: str) -> tuple[bytes, bytes]:
    """The right name as it stands in answers, without and with a space."""
    name = msgspec.json.encode(model)
    return b'"model":' + name, b'"model": ' + name


def renamed(model: str, body: bytes) -> bytes:
    """A whole answer with the model's public id, which it has not. Raises NotEvents where it is not a JSON object."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotEvents("what it sent is not JSON") from None
    if not isinstance(answer, dict):
        raise NotEvents("what it sent is not a JSON object")
    answer["model"] = model
    return msgspec.json.encode(answer)


class ModelName:
    """Puts the public model id into the events of streams, where the engine calls the model something else.

    Looks at the first event only; where that has the right name, all bytes pass untouched.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._right = right_names(model)
        self._decided = False
        self._rewrite = False

    @property
    def untouched(self) -> bool:
        """Whether events pass as they are, from here on."""
        return self._decided and not self._rewrite

    def events(self, events: bytes) -> bytes:
        """Whole events."""
        if not self._decided and b"data:" in events:
            self._decided = True
            first = events.partition(b"data:")[2].partition(b"\n")[0]
            self._rewrite = b'"model"' in first and not any(right in first for right in self._right)
        if not self._rewrite:
            return events
        return b"\n".join(self._line(line) for line in events.split(b"\n"))

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b'"model"' not in line:
            return line
        try:
            event: Any = msgspec.json.decode(line[5:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return line  # not ours to judge: the client's parser will
        if not isinstance(event, dict) or "model" not in event:
            return line
        event["model"] = self._model
        return b"data: " + msgspec.json.encode(event)
