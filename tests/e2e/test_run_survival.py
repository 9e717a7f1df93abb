"""A run over two sites as real processes: whatever is killed, every sample is trained exactly once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from caudal.domain.workload import ModelShape, OuterSpec, StageSpec, TrainSpec
from caudal.store.authority import ensure_certificates
from caudal.store.blobs import ObjectBlobs, open_blobs
from caudal.train import epochs, ledger
from caudal.train.audit import AuditReport, audit_run

PROGRAM = Path(__file__).parent / "tiny_run.py"
PREFIX = "runs/tiny/g1"

SPEC = TrainSpec(
    name="tiny",
    data="none",
    stages=(
        StageSpec("first", tokens=8 * 4 * 120, sample_tokens=8, batch=4, learning_rate=0.05),
        StageSpec("second", tokens=8 * 4 * 61 - 3, sample_tokens=8, batch=4, learning_rate=0.02),
    ),
    model=ModelShape(layers=2, heads=2, kv_heads=1, width=16, ffn_width=24, context=16),
    outer=OuterSpec(inner_steps=5, grow=False, bits=8),
    sites=2,
    evaluate_every_rounds=4,
    checkpoint_every_rounds=7,
)


class Fleet:
    """Starts gangs and kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: ObjectBlobs = open_blobs((folder / "blobs").as_uri())
        self.certificates = folder / "certificates"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        role: str,
        slot: str,
        incarnation: int = 1,
        step_s: float = 0.01,
        env: Mapping[str, str] = MappingProxyType({}),
        **more: object,
    ) -> subprocess.Popen[bytes]:
        gang, site = f"{slot}-{incarnation}", slot.rpartition(".")[2]
        ensure_certificates(self.certificates, [site])
        config = {
            "run": "tiny",
            "generation": 1,
            "site": site,
            "certificates": str(self.certificates),
            "gang": gang,
            "blobs_url": (self.folder / "blobs").as_uri(),
            "cache_dir": str(self.folder / "cache"),
            "spec": msgspec.to_builtins(SPEC),
            "token": "secret",
            **({"host": "127.0.0.1"} if role == "coordinator" else {"threads": 1, "standby": False}),
            **more,
        }
        path = self.folder / f"{gang}.json"
        path.write_text(json.dumps(config))
        with (self.folder / f"{gang}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), role, str(path)],
                stdout=log,
                stderr=log,
                env={**os.environ, "TINY_STEP_S": str(step_s), **env},
            )
        self.processes.append(process)
        return process

    def round(self) -> int:
        """The last committed round."""
        entries = list((self.folder / "blobs" / PREFIX / "ledger").glob("round-*.json"))
        return len(entries)

    def names(self, path: str) -> list[str]:
        """The names of the objects below a path."""
        return [p.name for p in (self.folder / "blobs" / path).iterdir()]

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()}" for p in sorted(self.folder.glob("*.log")))

    def until(self, what: Callable[[], bool], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.01)

    def ends(self, process: subprocess.Popen[bytes], code: int = 0) -> None:
        self.until(lambda: process.poll() is not None, 90.0)
        assert process.returncode == code, self.logs()

    def audit(self) -> AuditReport:
        report = audit_run(self.blobs, "tiny")
        assert report.finished and not report.missing and report.ids == report.ids_total == 480 + 244
        return report


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_two_sites_train_a_run_to_its_end(fleet: Fleet) -> None:
    workers = [fleet.start("worker", f"tiny.worker.{i}") for i in range(2)]
    boss = fleet.start("coordinator", "tiny.coordinator")
    for process in (boss, *workers):
        fleet.ends(process)
    report = fleet.audit()
    assert report.epochs == 1 and len(report.sites) == 2
    result = json.loads(fleet.blobs.get(f"{PREFIX}/result.json"))
    assert result["heldout"]["correct"] == 1 and result["val_loss"] > 0 and result["version"] == 1
    rows = [
        json.loads(line)
        for p in fleet.blobs.list(f"{PREFIX}/metrics/")
        for line in fleet.blobs.get(p).splitlines()
    ]
    assert [r["seq"] for r in rows] == list(range(1, report.rounds + 2))
    assert any("val_loss" in r for r in rows[:-1])


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_twice(fleet: Fleet) -> None:
    boss = fleet.start("coordinator", "tiny.coordinator")
    north = fleet.start("worker", "tiny.worker.north", step_s=0.02)
    south = fleet.start("worker", "tiny.worker.south", step_s=0.02)
    fleet.until(lambda: fleet.round() >= 5)
    kill(south)
    at = fleet.round()
    fleet.until(lambda: fleet.round() >= at + 5, 10.0)  # the other goes on alone
    again = fleet.start("worker", "tiny.worker.south", 2, step_s=0.02)
    for process in (boss, north, again):
        fleet.ends(process)
    fleet.audit()
    entries = [ledger.read_entry(fleet.blobs, PREFIX, n + 1) for n in range(fleet.round())]
    sizes = [len(link.entry.sites) for link in entries if link]
    assert 1 in sizes and sizes[-5:] != [1] * 5
    assert sum(part.joined for link in entries if link for part in link.entry.sites) == 3


def test_a_killed_coordinator_loses_no_committed_round(fleet: Fleet) -> None:
    workers = [fleet.start("worker", f"tiny.worker.{i}", step_s=0.02) for i in range(2)]
    boss = fleet.start("coordinator", "tiny.coordinator")
    fleet.until(lambda: fleet.round() >= 10)
    kill(boss)
    committed = fleet.round()
    last = ledger.read_entry(fleet.blobs, PREFIX, committed)
    boss = fleet.start("coordinator", "tiny.coordinator", 2)
    for process in (boss, *workers):
        fleet.ends(process)
    assert ledger.read_entry(fleet.blobs, PREFIX, committed) == last
    assert fleet.audit().epochs == 2


def test_everything_killed_goes_on_where_it_was(fleet: Fleet) -> None:
    names = ["tiny.worker.0", "tiny.worker.1"]
    everything = [fleet.start("worker", name, step_s=0.02) for name in names]
    everything.append(fleet.start("coordinator", "tiny.coordinator"))
    fleet.until(lambda: fleet.round() >= 9)
    for process in everything:
        kill(process)
    committed = fleet.round()
    again = [fleet.start("worker", name, 2) for name in names]
    again.append(fleet.start("coordinator", "tiny.coordinator", 2))
    for process in again:
        fleet.ends(process)
    fleet.audit()
    first = ledger.read_entry(fleet.blobs, PREFIX, committed + 1)
    assert first is not None and first.entry.epoch == 2


def test_an_older_coordinator_is_fenced_and_sigterm_keeps_a_checkpoint(fleet: Fleet) -> None:
    workers = [fleet.start("worker", f"tiny.worker.{i}", step_s=0.03) for i in range(2)]
    old = fleet.start("coordinator", "tiny.coordinator")
    fleet.until(lambda: fleet.round() >= 3)
    new = fleet.start("coordinator", "tiny.coordinator", 2)
    fleet.ends(old, 5)
    fleet.until(lambda: epochs.newest(fleet.blobs, PREFIX) is not None and fleet.round() >= 12)
    new.terminate()
    fleet.ends(new, 143)
    newest = fleet.blobs.list(f"{PREFIX}/manifests/")[-1]
    assert newest.endswith(f"{fleet.round():08d}.json")
    last = fleet.start("coordinator", "tiny.coordinator", 3)
    for process in (last, *workers):
        fleet.ends(process)
    fleet.audit()


def test_a_worker_without_the_token_or_with_another_plan_is_refused(fleet: Fleet) -> None:
    fleet.start("coordinator", "tiny.coordinator")
    stranger = fleet.start("worker", "tiny.worker.0", token="guess")
    fleet.ends(stranger, 1)
    other = msgspec.to_builtins(SPEC)
    other["seed"] = 7
    fleet.ends(fleet.start("worker", "tiny.worker.1", spec=other), 5)
    assert (
        "does not hold the run's token" in fleet.logs()
        and "the seed at 1 is 7, at the coordinator 1" in fleet.logs()
    )
    assert fleet.round() == 0


def test_garbage_at_the_door_disturbs_nobody(fleet: Fleet) -> None:
    boss = fleet.start("coordinator", "tiny.coordinator", certificates="")
    fleet.until(lambda: epochs.newest(fleet.blobs, PREFIX) is not None)
    found = epochs.newest(fleet.blobs, PREFIX)
    assert found is not None
    host, _, port = found.address.partition(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"CDL1" + b"\xff" * 64, b""):
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(garbage)
            if garbage:
                while stranger.recv(4096):  # the challenge, then the end
                    pass
    workers = [fleet.start("worker", f"tiny.worker.{i}", step_s=0.002, certificates="") for i in range(2)]
    for process in (boss, *workers):
        fleet.ends(process)
    assert "not a frame" in fleet.logs() and "too long" in fleet.logs()
    fleet.audit()
