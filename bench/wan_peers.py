"""The peers of the WAN benchmarks, started and measured: plain DDP over gloo, and torchft's three ways."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from caudal.domain.workload import TrainSpec
from wan_place import DEVICE, ROOT, Loopback, Place, Program, cpu_s, end, until
from wan_run import prepared

PEER = Path(__file__).with_name("wan_peer.py")
PACKAGES = ROOT / ".venv" / "bench-peers"
TORCHFT = "torchft==0.2.0"
KINDS = ("ddp", "torchft-ddp", "localsgd", "diloco")
LIGHTHOUSE_PORT = 29_510


def install() -> None:
    """torchft into a folder of its own: the bench's peer, not our dependency."""
    if not (PACKAGES / "torchft").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PACKAGES)]
        subprocess.run([*command, TORCHFT], check=True)


@dataclass
class Peers:
    """One process at each site that train together. `more` are further options of wan_peer."""

    kind: str
    place: Place
    spec: TrainSpec
    cache: Path
    more: dict[str, Any] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    lighthouse: Program | None = None

    def start_all(self) -> None:
        """Start everything that this kind needs."""
        if self.kind != "ddp":
            install()
            self.start_lighthouse()
        for site in self.place.sites:
            self.start(site)

    def start_lighthouse(self) -> None:
        """torchft's coordinator, at the first site."""
        self.lighthouse = self._program("lighthouse", self.place.sites[0], "lighthouse", LIGHTHOUSE_PORT)
        until(lambda: self.lighthouse and self.lighthouse.said('"ready"'), 60.0, self.lighthouse.tail)

    def start(self, site: str) -> Program:
        """Start one site's process."""
        self.programs[site] = self._program(f"{self.kind}.{site}", site, self.kind, 29_511)
        return self.programs[site]

    def _program(self, name: str, site: str, kind: str, port: int) -> Program:
        first = self.place.address(self.place.sites[0])
        told = {
            "kind": kind,
            "rank": self.place.sites.index(site),
            "world": len(self.place.sites),
            "address": self.place.address(site),
            "master": first,
            "port": port,
            "device": "lo" if isinstance(self.place, Loopback) else DEVICE,
            "data": str(prepared(self.spec, self.cache)),
            "spec": msgspec.to_builtins(self.spec),
            "lighthouse": f"http://{first}:{LIGHTHOUSE_PORT}",
            **self.more,
        }
        env = {"PYTHONPATH": f"{ROOT / 'src'}:{PACKAGES}", "RUST_LOG": "warn", "NO_PROXY": "*"}
        return Program.start(self.place, site, name, [sys.executable, str(PEER), json.dumps(told)], env)

    def rows(self, site: str, since: float = 0.0) -> list[dict[str, Any]]:
        """What the site's process said."""
        rows = []
        for _, line in list(self.programs[site].lines):
            if line.startswith("{"):
                row = json.loads(line)
                if row["at"] >= since:
                    rows.append(row)
        return rows

    def steps(self, site: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Its steps."""
        return [row for row in self.rows(site, since) if "step" in row]

    def tails(self) -> str:
        """The last words of all."""
        programs = [*self.programs.values(), *([self.lighthouse] if self.lighthouse else [])]
        return "\n".join(program.tail() for program in programs)

    def measure(self, settle_s: float, measure_s: float) -> dict[str, float]:
        """Tokens per second of all sites together, after a while; CPU and wire with it."""
        first = self.place.sites[0]
        until(lambda: len(self.steps(first)) >= 3, 120.0, self.tails)
        time.sleep(settle_s)
        sites = self.place.sites
        pids = [pid for site in sites for pid in self.place.pids(site)]
        start, sent, used, road = time.time(), self.place.bytes(), cpu_s(pids), self.place.cpu_s()
        time.sleep(measure_s)
        stop, tokens = time.time(), 0.0
        for site in sites:
            # From the start of a group of steps to the start of another: steps pile up before an exchange.
            inside = [row for row in self.steps(site, start) if row["at"] <= stop]
            if len(inside) < 3:
                raise TimeoutError(f"{self.kind}: {len(inside)} steps in {measure_s} s\n{self.tails()}")
            every = int(self.more.get("sync_every", 20)) if self.kind in ("localsgd", "diloco") else 1
            whole = (len(inside) - 1) // every * every
            if whole == 0:
                raise TimeoutError(f"{self.kind}: no whole group of {every} steps in {measure_s} s")
            tokens += sum(r["tokens"] for r in inside[1 : 1 + whole]) / (
                inside[whole]["at"] - inside[0]["at"]
            )
        wall_s, now = stop - start, self.place.bytes()
        return {
            "tokens_per_s": tokens,
            "cpu_share": (cpu_s(pids) - used) / wall_s,
            "router_cpu_share": (self.place.cpu_s() - road) / wall_s,
            "bytes_per_token": sum(now[s]["sent"] - sent[s]["sent"] for s in sites) / (tokens * wall_s),
        }

    def finish(self, limit_s: float) -> dict[str, Any]:
        """Wait for the end of the run; what the first site said at last."""
        first = self.programs[self.place.sites[0]]
        until(lambda: not first.alive, limit_s, self.tails, 0.2)
        time.sleep(0.2)
        rows = self.rows(self.place.sites[0])
        if not rows or "val_loss" not in rows[-1]:
            raise RuntimeError(f"{self.kind} did not finish\n{self.tails()}")
        return rows[-1]

    def close(self) -> None:
        """End all of it."""
        for site in self.place.sites:
            self.place.kill_site(site)
        for program in [*self.programs.values(), *([self.lighthouse] if self.lighthouse else [])]:
            end(program.process.pid)
            program.process.wait()


def longest_pause(rows: list[dict[str, Any]], since: float, stop: float) -> float:
    """The longest time without a step from `since` to `stop`: to the end, where none came."""
    times = [since, *(row["at"] for row in rows if since < row["at"] < stop), stop]
    return max(b - a for a, b in itertools.pairwise(times))
