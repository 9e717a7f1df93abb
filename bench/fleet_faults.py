"""What the fleet survives, measured: a lost site, partitions, a control process that is away.

    python bench/fleet_faults.py [--rows loss-local,loss-ray,partitions,control-away] [--repeats 50] [--quick]

The rows are also those of `make bench-fleet`. `loss-ray`, and the part of `partitions` with real processes, need root
(network namespaces) and Ray. The last line is one JSON object. See docs/howto/measure.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from tests.support.fleet import Fleet  # noqa: E402

from caudal.composition import SystemClock  # noqa: E402
from caudal.domain.fleet import SiteSpec  # noqa: E402
from caudal.drivers.local import LocalDriver  # noqa: E402
from caudal.drivers.local_folder import SHIM, Folder  # noqa: E402
from caudal.providers.local import LocalProvider  # noqa: E402
from fleet_rig import Loss, Options, Rig, spread  # noqa: E402
from harness import finish  # noqa: E402

SITES = ("north", "south")
Row = Callable[[Options], dict[str, Any]]


class LocalSite:
    """A site of this machine that can be lost, or only fall silent: its driver's folder is a link to the true one."""

    def __init__(self, name: str, home: Path) -> None:
        self.root = home / name
        self._true, self._none = home / f"{name}.true", home / f"{name}.none"
        self._true.mkdir()
        self._none.touch()
        self._point(self._true)
        self.driver = LocalDriver(name, self.root, SystemClock())
        self.truth = LocalDriver(name, self._true, SystemClock())
        """What lives there, whether its driver can see it or not."""

    def _point(self, target: Path) -> None:
        draft = self.root.with_name(f"{self.root.name}.draft")
        draft.symlink_to(target)
        draft.replace(
            self.root
        )  # at one moment: a folder that was gone in between would read as an empty site

    def hide(self) -> None:
        """From now on its driver finds a file where a folder should be, and says that it cannot read it."""
        self._point(self._none)

    def show(self) -> None:
        """Undo that."""
        self._point(self._true)

    def kill(self) -> None:
        """`kill -9` of all that runs there: the gangs' processes and their shims."""
        alive = [row for row in self.truth.gangs() if row.alive]
        shims = [(Folder(self._true / row.gang_id).read(SHIM) or {}).get("shim", [0])[0] for row in alive]
        for pid in (*shims, *(p for row in alive for p in row.pids)):
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)


def local_fleet(home: Path, **more: Any) -> tuple[Rig, dict[str, LocalSite]]:
    """Two sites on this machine, a gateway, a replica at each."""
    sites = {name: LocalSite(name, home) for name in SITES}
    provider = LocalProvider(home / "machines", [SiteSpec(x) for x in SITES], 4, 4 << 30, "2026-11-29")
    return Rig(home, {name: site.driver for name, site in sites.items()}, provider, **more), sites


def loss_local(options: Options) -> dict[str, Any]:
    """A site of this machine is lost: all its processes die at once and its driver is silent. Noticed: the books say so,
    and its epochs are raised. And, a fifth as often: its processes die, its driver answers."""
    chance = random.Random(options.seed)
    count = options.times(50, 3)
    lost = [_local_loss(options, chance, dark=True) for _ in range(count)]
    killed = [_local_loss(options, chance, dark=False) for _ in range(max(1, count // 5))]
    return {
        "site_lost.noticed": spread([x.noticed_s for x in lost]),
        "site_lost.decided": spread([x.decided_s for x in lost]),
        "site_lost.elsewhere": spread([x.elsewhere_s for x in lost]),
        "processes_killed.noticed": spread([x.noticed_s for x in killed]),
        "processes_killed.running_again": spread([x.elsewhere_s for x in killed]),
    }


def _local_loss(options: Options, chance: random.Random, *, dark: bool) -> Loss:
    """One, in a fleet of its own, at a random moment of the loop's pass."""
    rig, sites = local_fleet(options.room("local"))
    try:
        rig.start()
        time.sleep(chance.uniform(0.2, 1.2))
        name = rig.site(chance)
        there = [g for g in rig.gangs() if g.site == name]
        at = time.time()
        if dark:
            sites[name].hide()
            sites[name].kill()
            found = rig.loss(there, at, lambda: rig.suspected(name))
            assert name not in found.sites
        else:
            sites[name].kill()
            ids = {g.id for g in there}
            found = rig.loss(there, at, lambda: not ids & {g.id for g in rig.gangs()})
        options.say(f"{name} {'lost' if dark else 'killed'}: {found}")
        return found
    finally:
        for site in sites.values():
            site.show()
        rig.close()


def control_away(options: Options) -> dict[str, Any]:
    """`caudal up` with a run over two sites and a gateway is killed with SIGKILL, stays away, and is started again: what
    of the healthy was started again, and whether the run went on meanwhile."""
    away_s = 30.0 if options.quick else options.away_s
    fleet = Fleet(options.room("away"), tokens=400_000_000, service=True)
    try:
        fleet.up()
        fleet.wait_for(lambda: fleet.round() >= 3, 180, "rounds")
        fleet.wait_for(lambda: len(_gangs(fleet)) == 4, 60, "a run's three gangs and a gateway")
        time.sleep(5.0)  # spares are up by then
        before, processes = _gangs(fleet), _births(fleet)
        fleet.kill_control()
        reached, at = _rounds(fleet), time.monotonic()
        time.sleep(away_s)
        gone_s, went_on = time.monotonic() - at, _rounds(fleet) - reached
        options.say(f"away for {gone_s:.0f} s: {went_on} rounds")
        dead = {pid for pid, born in processes.items() if _births(fleet).get(pid) != born}
        began = time.monotonic()
        fleet.up()
        fleet.wait_for(lambda: fleet.round() > reached, 60, "reports to the new control process")
        adopted_s = time.monotonic() - began
        time.sleep(10.0)  # what it would do to them it does at its first passes
        after, births = _gangs(fleet), _births(fleet)
        ended = {pid for pid, born in processes.items() if births.get(pid) != born}
        return {
            "away": {"value": round(gone_s, 1), "unit": "s"},
            "gangs": len(before),
            "gangs_restarted": len(set(before.items()) - set(after.items())),
            "processes": len(processes),
            "processes_ended_meanwhile": len(dead),
            "processes_ended_after": len(ended - dead),
            "restarts_counted_by_caudal": fleet.workload()["restarts"],
            "rounds_meanwhile": went_on,
            "adopted_after": {"value": round(adopted_s, 1), "unit": "s"},
            "load_1min": round(os.getloadavg()[0], 2),
        }
    finally:
        fleet.kill_everything()


def _gangs(fleet: Fleet) -> dict[str, str]:
    """The live gang of each slot."""
    return {g["slot"]: g["id"] for g in fleet.get("/gangs")["items"] if not g.get("ended_at")}


def _births(fleet: Fleet) -> dict[int, float]:
    """All processes of the fleet's gangs, with when they were born: a pid alone may be used again."""
    found = {}
    for process in fleet.children():
        with suppress(psutil.NoSuchProcess):
            found[process.pid] = process.create_time()
    return found


def _rounds(fleet: Fleet) -> int:
    return len(list((fleet.home / "blobs" / "runs" / "tiny").rglob("ledger/*.json")))


def rows() -> dict[str, Row]:
    """All rows by name."""
    from fleet_partitions import partitions
    from fleet_ray import loss_ray

    return {
        "loss-local": loss_local,
        "loss-ray": loss_ray,
        "partitions": partitions,
        "control-away": control_away,
    }


def main() -> None:
    """Run the chosen rows."""
    known = rows()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=os.environ.get("ROWS", ",".join(known)), help=", ".join(known))
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "0")))
    parser.add_argument("--away-s", type=float, default=600.0, help="how long the control process is away")
    parser.add_argument("--partitions", type=int, default=200, help="in virtual time, and of real gangs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="that every row works; not to be quoted")
    told = parser.parse_args()
    chosen = told.rows.split(",")
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    figures: dict[str, Any] = {"quick": told.quick}
    with tempfile.TemporaryDirectory(prefix="caudal-fleet-") as folder:
        partitions = 20 if told.quick else told.partitions
        options = Options(Path(folder), told.repeats, told.quick, told.away_s, partitions, seed=told.seed)
        for name in chosen:
            started = time.monotonic()
            options.say(f"row {name}")
            try:
                figures[name] = known[name](options)
            except (RuntimeError, OSError, AssertionError) as error:  # a row that fails is a result too
                traceback.print_exc()
                figures[name] = {"failed": str(error).splitlines()[0] if str(error) else repr(error)}
            options.say(f"row {name}: {time.monotonic() - started:.0f} s: {json.dumps(figures[name])}")
    finish("fleet-faults", figures)


if __name__ == "__main__":
    main()
