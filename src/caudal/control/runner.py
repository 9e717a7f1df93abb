"""Runs the loop in a thread: every half second, at once when poked, until it is told to stop or another
process leads."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from caudal.control.loop import ControlLoop
from caudal.domain.errors import CaudalError, Failed, LostLeadership, StateHeld
from caudal.domain.event import Event
from caudal.ports import Change

BUSY_PAUSE_S = 0.05
"""Between two passes while there is something to do: an effect needs a moment to be seen."""


class Runner:
    """`lost` is the error that ended it, where another process leads; `on_lost` is told of it once. A pass
    that fails otherwise, also by a bug, is written down once, and the next one is made."""

    def __init__(self, loop: ControlLoop, on_lost: Callable[[CaudalError], None] | None = None) -> None:
        self.lost: CaudalError | None = None
        self._loop = loop
        self._on_lost = on_lost
        self._poked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._last_failure = ""

    @property
    def running(self) -> bool:
        """Whether passes are being made."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Take the leadership, then run in a thread. Raises StateHeld, naming who leads."""
        self._loop.lead()
        self._thread.start()

    def poke(self) -> None:
        """Ask for a pass now; safe from any thread."""
        self._poked.set()

    def stop(self, *, resign: bool = True, timeout_s: float = 30.0) -> None:
        """End after the pass in hand, and give the leadership back unless told not to."""
        self._stopping.set()
        self._poked.set()
        if self._thread.is_alive():
            self._thread.join(timeout=timeout_s)
        if resign and self.lost is None:
            self._loop.resign()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._poked.clear()
            try:
                self._loop.run_once()
                self._last_failure = ""
            except (LostLeadership, StateHeld) as error:
                self.lost = error
                if self._on_lost is not None:
                    self._on_lost(error)
                return
            except CaudalError as error:
                self._note(error)
            except Exception as error:
                # A bug of ours. The thread must not die of it unseen, with nobody left who decides: it is
                # written down, and the next pass begins from what is stored.
                self._note(_as_failure(error))
            pause_s = BUSY_PAUSE_S if self._loop.busy else self._loop.settings.interval_s
            self._poked.wait(pause_s)

    def _note(self, error: CaudalError) -> None:
        """Write down that a pass failed; the same failure again and again is one event."""
        text = error.one_line()
        if text == self._last_failure:
            return
        self._last_failure = text
        now = self._loop.world.clock.now()
        event = Event(now, "control.pass_failed", "control", text, {"code": error.code})
        try:
            self._loop.world.store.commit(Change(events=[event]))
        except CaudalError:
            return  # the store itself is what fails: nothing can be written down now


def _as_failure(error: Exception) -> Failed:
    """An error that nobody foresaw, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what = f"unexpected {type(error).__name__}: {error}"
    return Failed(what, where=where, remedy="report this as a bug; what runs is not touched")
