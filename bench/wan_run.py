"""Caudal's side of the WAN benchmarks: a run as real processes, its ledger, and what was lost and found."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from caudal.domain.workload import ModelShape, OuterSpec, StageSpec, TrainSpec
from caudal.store.authority import ensure_certificates
from caudal.store.blobs import open_blobs
from caudal.train import epochs, ledger
from caudal.train.audit import AuditReport, audit_run
from caudal.train.data.prepare import prepare
from wan_place import Place, Program, end, until

SMALL = ModelShape()  # 1.1 million parameters with 1,024 entries
MIDDLE = ModelShape(layers=6, heads=8, kv_heads=4, width=256, ffn_width=768)  # 5.0 million
SITE = Path(__file__).with_name("wan_site.py")
TAKEOVER_S = 8.0
"""How long a dead coordinator's place stays empty before the bench, like the control process, starts another.
Where sites take over by themselves, they have by then."""


BUILTIN = "builtin:tinyworld"


def train_spec(
    tokens: int, *, shape: ModelShape, seed: int = 1, sites: int = 2, data: str = BUILTIN, **outer: Any
) -> TrainSpec:
    """A run over built-in text, or that of a file; `outer` are fields of OuterSpec."""
    stage = StageSpec("text", tokens=tokens, sample_tokens=128, batch=8, learning_rate=2e-3)
    return TrainSpec(
        name="bench",
        data=data if data == BUILTIN else str(Path(data).resolve()),
        stages=(stage,),
        model=shape,
        outer=OuterSpec(**outer),
        sites=sites,
        evaluate_every_rounds=1_000_000,
        checkpoint_every_rounds=20,
        seed=seed,
    )


def prepared(spec: TrainSpec, cache: Path) -> Path:
    """The folder of the spec's data, made once: what it holds does not depend on the model or the tempo."""
    stage = spec.stages[0]
    name = "" if spec.data == BUILTIN else f"-{Path(spec.data).stem}"
    folder = cache / f"data{name}-{spec.seed}-{min(stage.tokens, 3_000_000)}-{stage.sample_tokens}"
    prepare(spec, open_blobs(folder.as_uri()), "runs/bench/g1")
    return folder / "runs" / "bench" / "g1" / "data"


@dataclass
class Run:
    """One run. `fixed_step_s` > 0: inner steps sleep for so long instead of computing."""

    folder: Path
    place: Place
    spec: TrainSpec
    fixed_step_s: float = 0.0
    load_torch: bool = False
    programs: list[Program] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    supervised: bool = False
    away_since: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.objects = self.folder / "blobs"
        self.prefix = f"runs/{self.spec.name}/g1"
        self.blobs = open_blobs(self.objects.as_uri())
        data = prepared(self.spec, self.folder.parent)
        shutil.copytree(data, self.objects / self.prefix / "data")
        self.certificates = self.folder / "certificates"
        ensure_certificates(self.certificates, self.place.sites)
        self._entries: list[ledger.Entry] = []
        self._lock = threading.RLock()

    # ---- processes ----------------------------------------------------------------------------------------

    def config(self, site: str, slot: str) -> dict[str, Any]:
        """What a gang is told. THE place where configurations are made."""
        self.starts[slot] = self.starts.get(slot, 0) + 1
        return {
            "run": self.spec.name,
            "generation": 1,
            "site": site,
            "gang": f"{slot}-{self.starts[slot]}",
            "blobs_url": self.objects.as_uri(),
            "cache_dir": str(self.folder / "cache" / site),
            "spec": msgspec.to_builtins(self.spec),
            "token": "bench-token-of-a-run",
            "certificates": str(self.certificates),
        }

    def start(self, role: str, site: str) -> Program:
        """Start a coordinator or a worker at a site."""
        with self._lock:
            slot = f"bench.{role}.{site}"
            config = self.config(site, slot)
            address = self.place.address(site)
            if role == "coordinator":
                config["host"] = address
            else:
                config |= {"threads": 1, "host": address}
            path = self.folder / f"{config['gang']}.json"
            path.write_text(json.dumps(config))
            argv = [sys.executable, "-m", f"caudal.train.{role}", str(path)]
            env: dict[str, str] = {}
            if role == "worker" and self.fixed_step_s:
                argv = [sys.executable, str(SITE), str(path)]
                env = {"BENCH_STEP_S": str(self.fixed_step_s)}
                if self.load_torch:
                    env["BENCH_TORCH"] = "1"
            program = Program.start(self.place, site, config["gang"], argv, env)
            self.programs.append(program)
            return program

    def start_all(self) -> None:
        """The coordinator at the first site, a worker at each."""
        self.start("coordinator", self.place.sites[0])
        for site in self.place.sites:
            self.start("worker", site)

    def worker(self, site: str) -> Program:
        """The site's newest worker: its gang's first process, with which all of the gang ends."""
        return next(p for p in reversed(self.programs) if p.name.startswith(f"bench.worker.{site}-"))

    def coordinator(self) -> tuple[str, int] | None:
        """The site and pid of the newest epoch's coordinator, if it lives: wherever it was started."""
        newest = epochs.newest(self.blobs, self.prefix)
        program = next((p for p in self.programs if newest and p.name == newest.gang), None)
        if newest is None or program is None or not program.alive:
            return None
        pid = program.process.pid if ".coordinator." in newest.gang else standby_of(program.process.pid)
        return (newest.site, pid) if pid else None

    def kill_coordinator(self) -> float:
        """`kill -9`; returns when."""
        found = until(self.coordinator, 30.0, self.tails)
        at = time.time()
        end(found[1])
        return at

    def supervise(self, stop: threading.Event) -> None:
        """Start again what died, as the control process does. A thread's work."""
        self.away_since = 0.0
        while not stop.wait(0.25):
            if self.finished:
                continue
            for site in self.place.sites:
                if not self.worker(site).alive:
                    self.start("worker", site)
            if self.coordinator() is not None:
                self.away_since = 0.0
            elif not self.away_since:
                self.away_since = time.time()
            elif time.time() - self.away_since > TAKEOVER_S:
                self.start("coordinator", self.place.sites[0])
                self.away_since = time.time()

    def tails(self) -> str:
        """The last words of all, for error messages."""
        return "\n".join(program.tail() for program in self.programs)

    # ---- the record ---------------------------------------------------------------------------------------

    def entries(self) -> list[ledger.Entry]:
        """All committed rounds."""
        with self._lock:
            while True:
                path = self.objects / ledger.entry_path(self.prefix, len(self._entries) + 1)
                try:
                    self._entries.append(msgspec.json.decode(path.read_bytes(), type=ledger.Entry))
                except FileNotFoundError:
                    return list(self._entries)

    @property
    def round(self) -> int:
        """The last committed round."""
        return len(self.entries())

    @property
    def finished(self) -> bool:
        """Whether the run has published its result."""
        return (self.objects / self.prefix / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What it published."""
        answer: dict[str, Any] = json.loads((self.objects / self.prefix / "result.json").read_text())
        return answer

    def reach(self, round_number: int, limit_s: float = 300.0) -> None:
        """Wait for a round to be committed."""
        until(lambda: self.round >= round_number or self.finished, limit_s, self.tails, 0.02)

    def next_commit(self, since: float, limit_s: float = 120.0) -> ledger.Entry:
        """The first round committed after `since`."""

        def look() -> ledger.Entry | None:
            return next((e for e in self.entries() if e.at > since), None)

        found: ledger.Entry = until(look, limit_s, self.tails, 0.02)
        return found

    def contributes(self, site: str, since: float, limit_s: float = 180.0) -> float:
        """When the site began to compute what was committed first after `since`: at the latest, for the
        record says when it was committed and how long it computed."""

        def look() -> float:
            for entry in self.entries():
                for part in entry.sites:
                    if part.site == site and entry.at - part.seconds > since:
                        return entry.at - part.seconds
            return 0.0

        return float(until(look, limit_s, self.tails, 0.02))

    def audit(self) -> AuditReport:
        """The proof, from the objects. Raises LedgerBroken."""
        return audit_run(self.blobs, self.spec.name)

    def close(self) -> None:
        """End all of it."""
        for site in self.place.sites:
            self.place.kill_site(site)
        for program in self.programs:
            program.process.wait()
        shutil.rmtree(self.objects / self.prefix / "updates", ignore_errors=True)  # gigabytes, else


def standby_of(gang: int) -> int | None:
    """The pid of a gang's standby coordinator, by that of the gang's first process."""
    return next((p.pid for p, words in _children(gang) if "caudal.train.standby" in words), None)


def worker_of(gang: int) -> int:
    """The pid of the process that takes part: of those that are no standby the oldest, for the spare came later.
    Where there is none, the gang's first process."""
    others = [p for p, words in _children(gang) if words and "caudal.train.standby" not in words]
    return min(others, key=lambda p: (p.create_time(), p.pid)).pid if others else gang


def _children(gang: int) -> list[tuple[psutil.Process, list[str]]]:
    found = []
    with contextlib.suppress(psutil.Error):  # one of them has just ended
        for child in psutil.Process(gang).children():
            with contextlib.suppress(psutil.Error):
                found.append((child, child.cmdline()))
    return found


def gaps(entries: list[ledger.Entry], start: float, stop: float) -> list[float]:
    """Seconds between commits, of all pairs that touch the time between `start` and `stop`."""
    return [b.at - a.at for a, b in itertools.pairwise(entries) if b.at >= start and a.at <= stop]


def rate(entries: list[ledger.Entry], start: float, stop: float) -> float:
    """Tokens per second over the rounds committed between the two times."""
    inside = [e for e in entries if start <= e.at <= stop]
    if len(inside) < 3:
        raise TimeoutError(f"only {len(inside)} rounds in {stop - start:.0f} s: measure for longer")
    return sum(e.tokens for e in inside[1:]) / (inside[-1].at - inside[0].at)
