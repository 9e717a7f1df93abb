"""Two Ray clusters as two sites of a WAN: nodes die, nodes and sites are cut off and come back, nobody writes twice.

`a` has its head in one network namespace and a second node in another; `b` is a head alone; the driver speaks from a
fourth. Figures that the tests measure are printed (`pytest -s`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from caudal.domain.errors import Unreachable
from caudal.domain.fleet import Resources
from caudal.domain.gang import GangSpec, GangState, GangStatus, ProcessSpec
from caudal.drivers.ray import names
from caudal.drivers.ray.driver import RayDriver
from caudal.drivers.ray.records import told
from caudal.store.authority import ensure_certificates
from caudal.store.blobs import open_blobs
from caudal.train.audit import audit_run
from tests.e2e.test_run_survival import PREFIX, PROGRAM, SPEC
from tests.support import ray_site, wan
from tests.support.ray_site import RaySite, Tunnel

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        bool(ray_site.unusable() or wan.unusable()), reason=ray_site.unusable() or wan.unusable()
    ),
]

ROOT = Path(__file__).resolve().parents[2]
GPUS = Resources(cpus=4.0, memory_bytes=2 << 30, accelerators=2)
NEURON = Resources(cpus=4.0, memory_bytes=2 << 30, accelerators=2, neuron_cores=4)
ASKS = Resources(cpus=0.5, memory_bytes=64 << 20)

WRITER = """
import os, socket, sys, time
host, port, epoch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
while True:
    try:
        with socket.create_connection((host, port), 1.0) as there:
            there.settimeout(1.0)
            there.sendall(f"{epoch} {os.getpid()}\\n".encode())
            if there.recv(16) == b"fenced":
                sys.exit(5)
    except OSError:
        pass
    time.sleep(0.05)
"""


@dataclass
class Book:
    """What is written to by one writer at a time: it takes nothing under an older epoch than it has seen."""

    listener: socket.socket
    taken: list[tuple[float, int, int]] = field(default_factory=list)  # when, epoch, pid
    refused: int = 0

    def serve(self) -> None:
        """Answer writers, one after the other."""
        while True:
            try:
                connection, _ = self.listener.accept()
                with connection:
                    connection.settimeout(1.0)
                    epoch, pid = map(int, connection.recv(64).split())
                    newest = max((e for _, e, _ in self.taken), default=0)
                    if epoch < newest:
                        self.refused += 1
                        connection.sendall(b"fenced")
                    else:
                        self.taken.append((time.monotonic(), epoch, pid))
                        connection.sendall(b"ok")
            except (TimeoutError, ConnectionError, ValueError):
                continue
            except OSError:
                return

    def writers(self, epoch: int) -> set[int]:
        """Who wrote under an epoch."""
        return {pid for _, e, pid in self.taken if e == epoch}

    def check(self) -> None:
        """Never two under one epoch, and never an older one after a newer one."""
        epochs = [epoch for _, epoch, _ in self.taken]
        assert epochs == sorted(epochs)
        assert all(len(self.writers(epoch)) == 1 for epoch in set(epochs))


class World:
    """The WAN, its two sites, and a driver for each."""

    def __init__(self, stack: ExitStack) -> None:
        self.since = time.time()
        self.wan = stack.enter_context(wan.Wan(["control", "a", "a2", "b"], delay_ms=5.0))
        self.a = stack.enter_context(RaySite("a", self.wan.address("a"), self.wan.enter("a")))
        self.b = stack.enter_context(RaySite("b", self.wan.address("b"), self.wan.enter("b")))
        self.a.start_head("a-0")
        self.b.start_head("b-0", NEURON)
        self.doors = {site.name: self._door(site) for site in (self.a, self.b)}
        for door in self.doors.values():
            stack.callback(door.close)
        self.drivers = {site.name: self.driver(site.name) for site in (self.a, self.b)}
        up = [site.wait_up(self.drivers[site.name]) for site in (self.a, self.b)]
        print(f"heads up after {max(up):.1f} s (two at once)")
        self.join()

    def _door(self, site: RaySite) -> Tunnel:
        def connect() -> socket.socket:
            there = self.wan.socket("control")
            there.settimeout(5.0)
            there.connect((site.address, site.jobs_port))
            there.settimeout(None)
            return there

        return Tunnel(connect)

    def driver(self, site: str) -> RayDriver:
        """A new driver, as the next control process would make it."""
        return (self.a if site == "a" else self.b).driver(self.doors[site].url)

    def join(self) -> None:
        """The second node of `a` joins (again)."""
        if before := self.a.nodes.pop("a-1", None):
            before.close()
        self.a.join("a-1", self.wan.address("a2"), self.wan.enter("a2"), GPUS)
        self.a.wait_up(self.drivers["a"], nodes=2)

    def start(self, gang: GangSpec) -> GangStatus:
        """Start it and wait until it runs or is over."""
        driver = self.drivers[gang.site]
        driver.start(gang, "token")
        return self.until(lambda: self.row(gang, GangState.RUNNING, GangState.EXITED, GangState.LOST))

    def row(self, gang: GangSpec, *states: GangState) -> GangStatus | None:
        """The gang's row, if its site answers and it is in one of the states (none: in any)."""
        with suppress(Unreachable):
            rows = self.drivers[gang.site].gangs()
            return next(
                (r for r in rows if r.gang_id == gang.gang_id and (not states or r.state in states)), None
            )
        return None

    def until(self, holds: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Wait until something holds, and return it."""
        deadline = time.monotonic() + limit_s
        while not (found := holds()):
            assert time.monotonic() < deadline, f"it does not come about\n{self.a.said()}\n{self.b.said()}"
            time.sleep(0.02)
        return found

    def end(self, *gangs: GangSpec) -> None:
        """Stop what is left, and forget it."""
        for gang in gangs:
            self.drivers[gang.site].stop(gang.gang_id, 0.5)
        for gang in gangs:
            self.until(lambda g=gang: (row := self.row(g)) is None or not row.alive)
            self.drivers[gang.site].forget(gang.gang_id)

    def book(self) -> Book:
        """A fresh one, at site `a`."""
        listener = self.wan.socket("a")
        listener.bind((self.wan.address("a"), 0))
        listener.listen()
        made = Book(listener)
        threading.Thread(target=made.serve, daemon=True).start()
        return made

    def writer(self, gang_id: str, lease: str, epoch: int, book: Book) -> GangSpec:
        """A gang that writes into it."""
        host, port = book.listener.getsockname()
        argv = ("{python}", "{dir}/writer.py", host, str(port), str(epoch))
        return spec(gang_id, lease, epoch, ProcessSpec(argv, files={"writer.py": WRITER}))


def spec(gang_id: str, lease: str, epoch: int, *processes: ProcessSpec, asks: Resources = ASKS) -> GangSpec:
    """A gang on the node of that lease."""
    return GangSpec(gang_id, lease[0], lease, epoch, processes, asks, lease)


def says(code: str) -> ProcessSpec:
    """A process that runs a line of Python."""
    return ProcessSpec(("{python}", "-c", code))


SLEEPER = says("import time; time.sleep(600)")
PARENT = says(
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "print(child.pid, flush=True); time.sleep(600)"
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


STARTER = """
import json, sys
from pathlib import Path
import msgspec
from caudal.domain.gang import GangSpec
from caudal.drivers.ray.driver import RayDriver
url, token_file, text = sys.argv[1:]
gang = msgspec.convert(json.loads(text), GangSpec)
driver = RayDriver(gang.site, url, token_file=Path(token_file))
driver.start(gang, "token")
while True:
    if any(row.pids for row in driver.gangs()):
        print("runs", flush=True)
"""


@pytest.fixture(scope="module")
def orphan(world: World) -> tuple[GangSpec, GangStatus, float]:
    """A gang whose control process was killed when it had just started it; and when that was."""
    gang = spec("orphan-0", "a-0", 1, SLEEPER)
    text = json.dumps(msgspec.to_builtins(gang))
    command = [sys.executable, "-c", STARTER, world.doors["a"].url, str(world.a.token_file), text]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ) as control:
        assert control.stdout is not None and control.stdout.readline() == b"runs\n"
        control.kill()
    row = world.until(lambda: world.row(gang, GangState.RUNNING))
    return gang, row, time.monotonic()


def test_a_gang_goes_to_the_node_of_its_lease_with_its_devices_and_no_secret_is_listed(
    world: World, orphan: object
) -> None:
    show = (
        "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('NEURON_RT_VISIBLE_CORES'), "
    )
    show += "sorted(k for k in os.environ if k.startswith('RAY_')), os.nice(0), oct(os.stat('key').st_mode), "
    show += "open('key').read() == 'tops' + 'ecret', flush=True); import time; time.sleep(600)"
    process = ProcessSpec(
        ("{python}", "-c", show), env={"CUDA_VISIBLE_DEVICES": "7"}, files={"key": "topsecret"}
    )
    gpu = spec("gpu-0", "a-1", 1, process, asks=Resources(1.0, 64 << 20, accelerators=1))
    core = spec("core-0", "b-0", 1, process, asks=Resources(1.0, 64 << 20, neuron_cores=2))
    pid = world.start(gpu).pids[0]
    assert pid in world.wan.pids("a2")
    world.start(core)
    said = [world.until(lambda g=gang: world.drivers[g.site].logs(g.gang_id).strip()) for gang in (gpu, core)]
    assert said[0] in ("0 None [] 0 0o100600 True", "1 None [] 0 0o100600 True")
    assert said[1].split(" ")[1] in ("0,1", "1,2", "2,3", "0,2", "0,3", "1,3") and said[1].endswith(
        "0o100600 True"
    )
    for name in ("a", "b"):
        jobs = world.drivers[name]._jobs
        listed = [
            jobs._call("GET", path).text
            for path in ("/api/jobs/", "/api/v0/actors?detail=1", "/api/v0/tasks")
        ]
        listed += [jobs.output(job["submission_id"]) for job in jobs.all()]
        assert not any("topsecret" in text for text in listed)
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert not any("topsecret" in line for line in lines)
    world.end(gpu, core)


def test_a_killed_raylet_is_noticed_and_its_gang_runs_elsewhere(world: World) -> None:
    gang = spec("lost-0", "a-1", 1, PARENT)
    pid = world.start(gang).pids[0]
    child = int(world.until(lambda: world.drivers["a"].logs("lost-0").strip()))
    killed_at = time.monotonic()
    world.a.nodes["a-1"].raylet().kill()
    gone_s = world.until(
        lambda: not any(map(psutil.pid_exists, (pid, child))) and time.monotonic() - killed_at
    )
    lost = world.until(lambda: world.row(gang, GangState.LOST))
    lost_s = time.monotonic() - killed_at
    assert lost.exit_code is None
    again = spec("lost-1", "b-0", 1, SLEEPER)
    assert world.start(again).state is GangState.RUNNING
    print(f"raylet killed: processes gone {gone_s:.2f} s, LOST {lost_s:.2f} s, ", end="")
    print(f"runs elsewhere {time.monotonic() - killed_at:.2f} s")
    assert lost_s > gone_s
    output = world.drivers["a"]._jobs.output(names.job_id("a", gang.gang_id))
    assert told(output) == "its node's raylet died", "its keeper lives on for long enough to say so"
    world.end(gang, again)
    world.join()


def test_a_node_cut_off_from_its_head_ends_its_gang_before_it_is_called_lost(world: World) -> None:
    book = world.book()
    old = world.writer("cut-0", "a-1", 1, book)
    pid = world.start(old).pids[0]
    world.until(lambda: len(book.taken) > 3)
    world.wan.cut("a2")
    cut_at = time.monotonic()
    gone_s = world.until(lambda: not psutil.pid_exists(pid) and time.monotonic() - cut_at)
    assert gone_s < names.CUT_S + 2.0
    world.until(lambda: world.row(old, GangState.LOST))
    print(f"node cut off: processes gone {gone_s:.2f} s, LOST {time.monotonic() - cut_at:.2f} s")
    new = world.writer("cut-1", "a-0", 2, book)
    assert world.start(new).state is GangState.RUNNING
    world.until(lambda: book.writers(2))
    world.wan.heal("a2")
    written = len(book.taken)
    world.until(lambda: len(book.taken) > written + 20)
    assert not psutil.pid_exists(pid) and book.refused == 0
    book.check()
    world.end(old, new)
    world.join()


def test_a_site_cut_off_from_control_works_on_and_writes_nothing_newer_when_it_is_back(world: World) -> None:
    book = world.book()
    old = world.writer("part-0", "b-0", 1, book)
    pid = world.start(old).pids[0]
    world.until(lambda: len(book.taken) > 3)
    world.wan.cut("b")
    cut_at = time.monotonic()
    with pytest.raises(Unreachable):
        while True:
            world.drivers["b"].gangs()
    noticed_s = time.monotonic() - cut_at
    new = world.writer("part-1", "a-0", 2, book)
    assert world.start(new).state is GangState.RUNNING
    world.until(lambda: book.writers(2))
    print(f"site cut off: noticed {noticed_s:.2f} s, runs elsewhere {time.monotonic() - cut_at:.2f} s")
    assert noticed_s < 2.5
    assert psutil.pid_exists(pid), "a site without control has no reason to end its work"
    world.wan.heal("b")
    ended = world.until(lambda: world.row(old, GangState.EXITED))
    assert ended.exit_code == 5 and book.refused == 1
    book.check()
    world.end(old, new)


def test_a_start_under_an_older_epoch_than_its_lease_has_seen_is_refused(world: World) -> None:
    newer, older = spec("fence-1", "b-0", 7, SLEEPER), spec("fence-0", "b-0", 6, SLEEPER)
    assert world.start(newer).state is GangState.RUNNING
    refused = world.start(older)
    assert (refused.state, refused.exit_code, refused.pids) == (GangState.EXITED, names.FENCED, ())
    assert "fenced by 7" in world.drivers["b"].logs("fence-0")
    assert world.row(newer, GangState.RUNNING)
    world.end(newer, older)


def test_a_run_trains_across_both_sites_through_an_outage_of_one(world: World, tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "certificates", ["a", "b", "coordinator"])

    def gang(role: str, lease: str, more: dict[str, object]) -> GangSpec:
        site = lease[0] if role == "worker" else "coordinator"
        config = {
            "run": "tiny",
            "generation": 1,
            "site": site,
            "certificates": str(tmp_path / "certificates"),
            "gang": f"tiny.{role}.{site}-1",
            "blobs_url": (tmp_path / "blobs").as_uri(),
            "cache_dir": str(tmp_path / f"cache-{lease}"),
            "spec": msgspec.to_builtins(SPEC),
            "token": "secret",
            **more,
        }
        env = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TINY_STEP_S": "0.05", "OMP_NUM_THREADS": "1"}
        process = ProcessSpec(
            ("{python}", str(PROGRAM), role, "{dir}/config.json"), env, {"config.json": json.dumps(config)}
        )
        return spec(f"tiny.{role}.{site}-1", lease, 7, process)

    workers = [gang("worker", lease, {"threads": 1, "standby": False}) for lease in ("a-1", "b-0")]
    boss = gang("coordinator", "a-0", {"host": world.wan.address("a")})
    # The run begins with its coordinator: a Ray that is slow to start a worker takes nothing off the run's rounds.
    for each in (*workers, boss):
        assert world.start(each).state is GangState.RUNNING
    ledger = tmp_path / "blobs" / PREFIX / "ledger"

    def rounds() -> int:
        return len(list(ledger.glob("round-*.json")))

    world.until(lambda: rounds() >= 5)
    world.wan.cut("b")
    at = rounds()
    try:
        world.until(lambda: rounds() >= at + 4)
    finally:
        world.wan.heal("b")  # the tests after this one need it
    for each in (boss, *workers):
        ended = world.until(lambda e=each: world.row(e, GangState.EXITED, GangState.LOST), 150.0)
        assert ended.exit_code == 0, world.drivers[each.site].logs(each.gang_id)
    report = audit_run(open_blobs((tmp_path / "blobs").as_uri()), "tiny")
    assert report.finished and not report.missing and report.ids == report.ids_total
    assert len(report.sites) == 2
    world.end(boss, *workers)


def test_a_supervisor_that_dies_takes_its_gang_along(world: World) -> None:
    gang = spec("headless-0", "b-0", 7, SLEEPER)
    pid = world.start(gang).pids[0]
    mark = f"start.py {gang.gang_id} "
    found = [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or ())]
    assert len(found) == 1 and found[0].pid in world.wan.pids("b")
    found[0].send_signal(signal.SIGKILL)
    world.until(lambda: not psutil.pid_exists(pid), 10.0)
    assert world.until(lambda: world.row(gang, GangState.LOST)).exit_code is None
    world.end(gang)


def test_the_next_control_process_adopts_what_ran_without_one(
    world: World, orphan: tuple[GangSpec, GangStatus, float]
) -> None:
    gang, before, killed_at = orphan
    found = next(row for row in world.driver("a").gangs() if row.gang_id == gang.gang_id)
    assert (found.state, found.pids, found.started_at) == (GangState.RUNNING, before.pids, before.started_at)
    print(f"its control process has been gone for {time.monotonic() - killed_at:.0f} s")
    world.end(gang)


def test_no_gang_leaves_its_files_behind(world: World) -> None:
    def left() -> list[Path]:
        return [
            p for p in Path(tempfile.gettempdir()).glob("caudal-gang-*") if p.stat().st_mtime > world.since
        ]

    world.until(lambda: not left(), 10.0)
