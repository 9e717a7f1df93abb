from collections.abc import Callable
from typing import Any

class Outlet:
    """A transport that is written to without the loop where nothing waits: its methods `write`, `is_closing` and
    `waiting` (how many bytes wait there), and its socket `fd` (-1: none, everything goes through `write`)."""

    def __new__(
        cls,
        write: Callable[[bytes], object],
        is_closing: Callable[[], bool],
        waiting: Callable[[], int],
        fd: int,
        /,
    ) -> Outlet: ...
    def send(self, data: bytes, /) -> None:
        """Send at once what can be sent; the transport sends the rest. Nothing where it is closing."""

class Pump:
    """One stream on its way to one client. More than `most` bytes of events are given to `keep`."""

    pieces: int
    def __new__(
        cls,
        outlet: Outlet,
        keep: Callable[[bytes], object],
        most: int,
        /,
    ) -> Pump: ...
    def take(self) -> bytes:
        """The events that were passed on and not given to `keep`; they are not kept any more."""

class Valve:
    """Where a connection's bytes go: to the pump that stands in it if they are ordinary, else to `heard`, and the
    pump is taken out."""

    passed: int
    def __new__(cls, heard: Callable[[bytes], object], /) -> Valve: ...
    def feed(self, data: bytes, /) -> None: ...
    def open(self, pump: Pump, /) -> None: ...
    def close(self) -> None: ...

def usage_counts(body: bytes, /) -> tuple[int, int, int] | None:
    """The tokens of prompt, reply and cache that the last `"usage"` of a whole answer names; None where it is not an
    object of plain numbers, which says nothing of what it is."""

class Heads:
    """See known_heads.KnownHeads. `most`: the longest body that is accepted."""

    def __new__(cls, most: int, /) -> Heads: ...
    def find(self, data: bytes, /) -> tuple[Any, bytes] | None: ...
    def keep(self, data: bytes, value: object, /) -> None: ...
