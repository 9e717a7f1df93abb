"""Control processes by the dozen: one process that has imported everything and forks another one whenever it is asked.

`python -m tests.support.nursery HOME PORT`: a line on stdin, a pid on stdout. Each is a real process that opens the
store, leads, and runs the production loop until somebody kills it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caudal import composition
from caudal.composition.process import lead
from caudal.control.loop import ControlLoop
from caudal.control.settings import Settings
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import SiteSpec
from caudal.domain.gang import GangSpec, ProcessSpec
from caudal.domain.model import ModelRecord
from caudal.drivers.local import LocalDriver
from caudal.policy.rules import Rules
from caudal.ports import World
from caudal.providers.local import LocalProvider
from caudal.store.state import open_store
from tests.support.inventory import SITE, InventoryProvider

SITES = (SiteSpec("north"), SiteSpec(SITE, provider="rented"))

RULES = Rules(
    quarantine_s=1.0,
    unlisted_s=6.0,
    no_capacity_retry_s=0.5,
    idle_release_s=0.2,
    intent_retry_base_s=0.05,
    intent_retry_max_s=0.5,
    intent_repeat_s=2.0,
    stop_grace_s=1.0,
    restart_base_s=0.05,
)
"""The fleet's own, in the time that a test has."""


class Shelf:
    """Two models that are there."""

    def list(self) -> Sequence[ModelRecord]:
        """Both."""
        return [ModelRecord(name, 1, "test", 0.0, (), 1) for name in ("large", "small")]

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Nothing has to be."""
        return ModelRecord(model_id, 1, source, 0.0, (), 1)


class Sleepers(LocalDriver):
    """The local driver; what its gangs do is sleep."""

    def start(self, spec: GangSpec, token: str) -> None:
        """As the local driver."""
        super().start(replace(spec, processes=(ProcessSpec(("sleep", "600")),)), token)


def world(home: Path, port: int) -> World:
    """The ports of a control process."""
    clock = composition.SystemClock()
    return World(
        clock=clock,
        store=open_store(f"sqlite:///{home / 'state.db'}"),
        models=Shelf(),
        providers={
            "local": LocalProvider(home / "machines", SITES, 2, 8 << 30, "2026-01-01"),
            "rented": InventoryProvider(port),
        },
        drivers={site.name: Sleepers(site.name, home / "gangs" / site.name, clock) for site in SITES},
        sites=SITES,
    )


def control(made: World) -> ControlLoop:
    """A loop that leads, also where the one before it was killed."""
    holder = composition.this_process("test")
    lead(made.store, holder, made.clock, 5.0)  # type: ignore[arg-type]
    return ControlLoop(made, holder, Settings(rules=RULES))


def live(home: Path, port: int) -> None:
    """Run the loop until killed."""
    loop = control(world(home, port))
    while True:
        try:
            loop.run_once()
        except CaudalError as error:
            print(error.one_line(), file=sys.stderr, flush=True)
        time.sleep(0.01 if loop.busy else 0.05)


def main() -> None:
    """Fork whenever a line comes; end with the input."""
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for _line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                live(home, port)
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
