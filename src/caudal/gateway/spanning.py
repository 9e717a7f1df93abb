"""Stop sequences that begin in what one replica said and end in what the next one says. Knows text only."""

from __future__ import annotations


class SpanningStop:
    """Holds the first text of a continuation back while it may complete a stop sequence that was begun."""

    def __init__(self, stops: list[str], said: str) -> None:
        self._stops = stops
        longest = max((len(stop) for stop in stops), default=1)
        self._tail = said[-(longest - 1) :] if longest > 1 else ""
        self._held = ""

    def pass_on(self, text: str, *, last: bool) -> tuple[str, bool]:
        """What the client gets of it, and whether the answer ends here, by a stop. `last`: no more comes."""
        if not self._tail:
            return text, False
        self._held += text
        both = self._tail + self._held
        for stop in self._stops:
            at = both.find(stop)
            if 0 <= at < len(self._tail):
                return "", True
        if not last and self._may_be_one(both):
            return "", False
        text, self._held, self._tail = self._held, "", ""
        return text, False

    def _may_be_one(self, both: str) -> bool:
        return any(stop.startswith(both[at:]) for stop in self._stops for at in range(len(self._tail)))
