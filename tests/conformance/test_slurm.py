"""What Slurm does to gangs beyond the port's promises: GRES, preemption, requeue, dead nodes, a slurmctld that is away,
lost answers. On a real Slurm with eight nodes (tests/support/slurm.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caudal.domain.errors import NotOffered, Stale, Unreachable
from caudal.domain.fleet import Resources, SlurmSpec
from caudal.domain.gang import GangSpec, GangState, GangStatus, ProcessSpec, Role
from caudal.drivers.slurm.commands import TIMEOUT_VARIABLE
from caudal.drivers.slurm.driver import SlurmDriver
from caudal.drivers.slurm.hosts import Here
from tests.conformance.ports import SITE
from tests.support.slurm import CPUS, GPUS, NEURON_CORES, NODES, Slurm

pytestmark = pytest.mark.cluster

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
says = {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "neuron": os.environ.get("NEURON_RT_NUM_CORES"), "node": os.environ["SLURMD_NODENAME"]}
sys.stdout.write(" ".join(f"{key} {value}" for key, value in says.items()) + "\\n")
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    time.sleep(0.02)
sys.exit(int(sys.argv[2]))
"""
WHOLE_NODE = Resources(cpus=CPUS, memory_bytes=1 << 30)


class Site:
    """A driver on a shared folder of its own, and how to wait."""

    def __init__(self, folder: Path, slurm: Slurm, **options: Any) -> None:
        self.folder = folder
        self.slurm = slurm
        spec = SlurmSpec(folder=str(folder), partition="train", service_partition="serve", **options)
        self.driver = SlurmDriver(SITE, spec, Here())

    def start(
        self, gang_id: str, *, runs_s: float = 600.0, code: int = 0, token: str = "", **more: Any
    ) -> None:
        process = ProcessSpec(
            ("{python}", "{dir}/program.py", str(runs_s), str(code)), files={"program.py": PROGRAM}
        )
        spec = replace(GangSpec(gang_id, SITE, "anywhere", 1, (process,)), **more)
        self.driver.start(spec, token or f"token-{gang_id}")

    def status(self, gang_id: str) -> GangStatus | None:
        return next((s for s in self.driver.gangs() if s.gang_id == gang_id), None)

    def until(self, holds: Callable[[], Any], within_s: float = 30.0) -> Any:
        end = time.monotonic() + within_s
        while not (found := holds()):
            assert time.monotonic() < end, (self.driver.gangs(), self.slurm.ask("squeue", "--states=all"))
            time.sleep(0.05)
        return found

    def until_state(self, gang_id: str, state: GangState, within_s: float = 30.0) -> GangStatus:
        def there() -> GangStatus | None:
            found = self.status(gang_id)
            return found if found and found.state is state else None

        found: GangStatus = self.until(there, within_s)
        return found

    def running(self, *gang_ids: str) -> list[GangStatus]:
        return [self.until_state(gang_id, GangState.RUNNING) for gang_id in gang_ids]

    def said(self, gang_id: str) -> dict[str, str]:
        """What the program printed about itself when it last started."""
        text: str = self.until(lambda: (said := self.driver.logs(gang_id)).endswith("\n") and said)
        words = text.splitlines()[-1].split()
        return dict(zip(words[::2], words[1::2], strict=True))

    def jobs(self, gang_id: str) -> list[str]:
        """The states of all jobs of that gang, by id."""
        rows = self.slurm.ask(
            "squeue", "-h", "--states=all", f"--name={gang_id}", "-o", "%A %T %k"
        ).splitlines()
        mark = json.loads((self.folder / SITE / ".mark.json").read_text())["mark"]
        ours = [row.split() for row in rows if mark in row]
        return [row[1] for row in sorted(ours, key=lambda row: int(row[0]))]

    def close(self) -> None:
        for status in self.driver.gangs():
            if status.alive:
                self.driver.stop(status.gang_id, 0.0)
        self.until(lambda: not any(s.alive for s in self.driver.gangs()), 60)


@pytest.fixture
def new_site(slurm: Slurm, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a site with the options of a SlurmSpec; ends what runs there afterwards."""
    made: list[Site] = []

    def make(**options: Any) -> Site:
        made.append(Site(tmp_path / f"shared{len(made)}", slurm, **options))
        return made[-1]

    yield make
    for site in made:
        site.close()
    slurm.wait_idle()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_gangs_share_out_gpus_and_neuron_cores(new_site: Callable[..., Site]) -> None:
    site = new_site()
    half = Resources(cpus=1, memory_bytes=1 << 28, accelerators=GPUS // 2)
    site.start("a-0", node="node2", resources=half)
    site.start("b-0", node="node2", resources=half)
    site.running("a-0", "b-0")
    first, second = site.said("a-0"), site.said("b-0")
    assert {first["node"], second["node"]} == {"node2"}
    assert {first["gpus"], second["gpus"]} == {"0,1", "2,3"}
    site.start("c-0", node="node2", resources=half)
    all_cores = Resources(cpus=1, memory_bytes=1 << 28, neuron_cores=NEURON_CORES)
    for number in range(8):
        site.start(f"n-{number}", resources=all_cores)
    site.running(*(f"n-{number}" for number in range(8)))
    assert {site.said(f"n-{number}")["node"] for number in range(8)} == set(NODES)
    assert {site.said(f"n-{number}")["neuron"] for number in range(8)} == {str(NEURON_CORES)}
    waiting = site.until(lambda: (s := site.status("c-0")) and s.why and s)
    assert waiting.state is GangState.STARTING
    assert waiting.why in ("Resources", "Priority")
    with pytest.raises(NotOffered, match="refuses the job"):
        site.start("d-0", resources=Resources(cpus=1, accelerators=GPUS + 1))


def test_a_service_preempts_training_and_that_is_no_success(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.start("run.worker.0-1", node="node1", resources=WHOLE_NODE, role=Role.WORKER)
    site.running("run.worker.0-1")
    site.said("run.worker.0-1")  # from now on it leaves with 0 when it is told to
    site.start("chat.replica.m.0-1", node="node1", resources=WHOLE_NODE, role=Role.REPLICA)
    site.running("chat.replica.m.0-1")
    ended = site.until_state("run.worker.0-1", GangState.EXITED)
    assert ended.exit_code == -15, "its processes left with 0, but they were made to"
    site.until(lambda: (s := site.status("run.worker.0-1")) and s.why == "PREEMPTED")
    assert site.jobs("run.worker.0-1") == ["PREEMPTED"]


def test_a_requeued_gang_is_seen_again_as_itself(new_site: Callable[..., Site]) -> None:
    site = new_site(requeue=True)
    site.start("run.worker.0-1", node="node1", resources=WHOLE_NODE, role=Role.WORKER)
    (before,) = site.running("run.worker.0-1")
    site.start("chat.replica.m.0-1", node="node1", resources=WHOLE_NODE, role=Role.REPLICA)
    site.running("chat.replica.m.0-1")
    waiting = site.until_state("run.worker.0-1", GangState.STARTING)
    assert waiting.why and waiting.exit_code is None
    assert not alive(before.pids[0])
    site.driver.stop("chat.replica.m.0-1", 5.0)
    again = site.until_state("run.worker.0-1", GangState.RUNNING, 40)
    assert again.pids != before.pids
    site.until(lambda: site.driver.logs("run.worker.0-1").count("pid") == 2)
    assert [s.gang_id for s in site.driver.gangs()] == ["chat.replica.m.0-1", "run.worker.0-1"]
    site.driver.stop("run.worker.0-1", 5.0)
    assert site.until_state("run.worker.0-1", GangState.EXITED).exit_code == 0, "this time we asked it"


def test_a_requeued_gang_of_an_older_epoch_starts_nothing(new_site: Callable[..., Site]) -> None:
    site = new_site(requeue=True)
    site.start("run.worker.0-1", node="node1", resources=WHOLE_NODE, lease_id="lease-7", epoch=3)
    site.running("run.worker.0-1")
    site.start("chat.replica.m.0-1", node="node1", resources=WHOLE_NODE, role=Role.REPLICA)
    site.until_state("run.worker.0-1", GangState.STARTING)
    site.start("run.worker.0-2", node="node2", resources=WHOLE_NODE, lease_id="lease-7", epoch=4)
    site.driver.stop("chat.replica.m.0-1", 5.0)
    fenced = site.until_state("run.worker.0-1", GangState.EXITED, 40)
    assert (fenced.exit_code, fenced.why) == (-15, "its lease has a newer epoch")
    assert len(re.findall("pid", site.driver.logs("run.worker.0-1"))) == 1, "it ran once, before"
    with pytest.raises(Stale, match="epoch 3"):
        site.start("run.worker.0-3", lease_id="lease-7", epoch=3)


def test_a_dead_slurmd_leaves_no_process_behind_that_counts_as_lost(new_site: Callable[..., Site]) -> None:
    """A slurmd that dies leaves its jobs running: LOST must not be said before they are gone."""
    site = new_site()
    site.start("a-0", node="node4")
    site.start("b-0", node="node5")
    (a, b) = site.running("a-0", "b-0")
    site.slurm.kill("node4")
    try:
        lost = site.until_state("a-0", GangState.LOST)
        assert not alive(a.pids[0])
        assert lost.exit_code is None and lost.why == "NODE_FAIL"
        assert site.status("b-0") == b
        site.start("c-0", node="node4")
        waiting = site.until(lambda: (s := site.status("c-0")) and s.why and s)
        assert waiting.state is GangState.STARTING and "ReqNodeNotAvail" in waiting.why
    finally:
        site.slurm.start("node4")
    site.running("c-0")


def test_gangs_outlive_a_slurmctld_that_is_away(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "2")
    site = new_site()
    site.start("a-0")
    site.start("b-0", runs_s=12.0, code=7)
    a, b = site.running("a-0", "b-0")
    site.slurm.wait_saved()
    site.slurm.kill("slurmctld")
    try:
        began = time.monotonic()
        for call in (
            site.driver.gangs,
            lambda: site.start("c-0"),
            lambda: site.driver.stop("a-0", 0.0),
        ):
            with pytest.raises(Unreachable):
                call()
        assert time.monotonic() - began < 10
        assert "pid" in site.driver.logs("a-0"), "the folder is there without slurmctld"
        site.until(lambda: not alive(b.pids[0]))
        assert alive(a.pids[0])
    finally:
        site.slurm.start("slurmctld")
    site.until(lambda: "UP" in site.slurm.ask("scontrol", "ping"))
    assert site.until_state("b-0", GangState.EXITED).exit_code == 7
    assert site.status("a-0") == a
    site.start("c-0")
    site.running("c-0")
    assert site.jobs("c-0") == ["RUNNING"]


def test_a_slurmctld_that_hangs_is_bounded(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    site.start("a-0")
    (before,) = site.running("a-0")
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1")
    site.slurm.pause("slurmctld", True)
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            site.driver.gangs()
        assert time.monotonic() - began < 3
    finally:
        site.slurm.pause("slurmctld", False)
    monkeypatch.delenv(TIMEOUT_VARIABLE)
    assert site.until(lambda: site.status("a-0")) == before


def test_what_slurmctld_forgets_is_still_known(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.start("a-0", runs_s=0.1, code=9)
    ended = site.until_state("a-0", GangState.EXITED)
    site.slurm.wait_idle()
    site.slurm.kill("slurmctld", signal.SIGTERM)
    site.slurm.start("slurmctld", "-c")  # with a state of nothing
    site.until(lambda: "UP" in site.slurm.ask("scontrol", "ping"))
    assert site.jobs("a-0") == []
    assert site.status("a-0") == ended
    site.start("a-0", runs_s=0.1, code=9)
    assert site.jobs("a-0") == []
    site.slurm.wait_idle()


def _wrap_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm, script: str) -> None:
    """Put a program before sbatch on the PATH; `REAL` is the real one."""
    real = next(Path(p) / "sbatch" for p in os.environ["PATH"].split(":") if (Path(p) / "sbatch").exists())
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/sh\n{script.replace('REAL', str(real))}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_lost_answer_of_sbatch_makes_one_job(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = new_site()
    with monkeypatch.context() as patch:
        _wrap_sbatch(tmp_path / "bin", patch, site.slurm, 'REAL "$@" >/dev/null; exec sleep 60')
        patch.setenv(TIMEOUT_VARIABLE, "1.5")
        with pytest.raises(Unreachable, match="sbatch had no answer"):
            site.start("a-0")
    site.start("a-0")
    site.running("a-0")
    site.start("a-0")
    assert site.jobs("a-0") == ["RUNNING"]


def test_a_submission_that_arrives_late_runs_nothing_twice(
    new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client gave up, we submitted again, and then slurmctld takes up the first one after all."""
    site = new_site()
    late = (
        f'cat > {tmp_path}/script; (sleep 3; REAL "$@" < {tmp_path}/script) >/dev/null 2>&1 & exec sleep 60'
    )
    with monkeypatch.context() as patch:
        _wrap_sbatch(tmp_path / "bin", patch, site.slurm, late)
        patch.setenv(TIMEOUT_VARIABLE, "1.5")
        with pytest.raises(Unreachable, match="sbatch had no answer"):
            site.start("a-0")
    site.start("a-0")
    (before,) = site.running("a-0")
    site.until(lambda: len(site.jobs("a-0")) == 2)
    site.until(lambda: sum(state == "RUNNING" for state in site.jobs("a-0")) == 1)
    assert site.status("a-0") == before
    assert site.driver.logs("a-0").count("pid") == 1
    assert [s.gang_id for s in site.driver.gangs()] == ["a-0"]


def test_a_second_job_that_waits_is_cancelled(new_site: Callable[..., Site], tmp_path: Path) -> None:
    site = new_site()
    site.start("a-0", node="node1", resources=WHOLE_NODE)
    site.running("a-0")
    comment = site.slurm.ask("squeue", "-h", "--name=a-0", "--states=RUNNING", "-o", "%k").strip()
    script = tmp_path / "job"
    script.write_text("#!/bin/sh\nsleep 600\n")
    site.slurm.ask(
        "sbatch", "--job-name=a-0", f"--comment={comment}", "--nodelist=node1", f"-c{CPUS}", str(script)
    )
    site.until(lambda: site.jobs("a-0") == ["RUNNING", "PENDING"])
    assert site.status("a-0")
    site.until(lambda: site.jobs("a-0") == ["RUNNING", "CANCELLED"])


def test_what_others_cancel_did_not_end_well(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.start("a-0")
    site.running("a-0")
    site.said("a-0")
    site.slurm.ask("scancel", "--name=a-0")
    assert site.until_state("a-0", GangState.EXITED).exit_code == -15
    site.until(lambda: (s := site.status("a-0")) and s.why == "CANCELLED")


def test_one_that_waits_is_cancelled_and_never_starts(new_site: Callable[..., Site]) -> None:
    site = new_site()
    site.start("a-0", node="node1", resources=WHOLE_NODE)
    site.running("a-0")
    site.start("b-0", node="node1", resources=WHOLE_NODE)
    site.until(lambda: (s := site.status("b-0")) and s.why)
    site.driver.stop("b-0", 600.0)
    assert site.until_state("b-0", GangState.EXITED).exit_code == -15
    assert site.driver.logs("b-0") == ""
    site.driver.forget("b-0")
    assert [s.gang_id for s in site.driver.gangs()] == ["a-0"]


def test_no_secret_leaves_the_folder(new_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = new_site()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-of-the-environment")
    program = (
        'import os, time; print("has", os.environ["PASS"] + os.environ["AWS_SECRET_ACCESS_KEY"], flush=True)'
    )
    process = ProcessSpec(
        ("{python}", "-c", program + "; time.sleep(600)"),
        env={"PASS": "hunter2-of-the-process"},
        files={"config.json": "hunter2-of-the-file"},
    )
    site.driver.start(GangSpec("a-0", SITE, "node3", 1, (process,)), "hunter2-of-the-token")
    site.running("a-0")
    site.until(lambda: "hunter2-of-the-processhunter2-of-the-environment" in site.driver.logs("a-0"))
    job = site.slurm.ask("squeue", "-h", "--name=a-0", "--states=RUNNING", "-o", "%A").strip()
    shown = site.slurm.ask("scontrol", "-d", "show", "job", job)
    shown += site.slurm.ask("scontrol", "write", "batch_script", job, "-") + site.slurm.ask(
        "squeue", "-o", "%all"
    )
    assert "keeper" in shown and "hunter2" not in shown
    kept = [
        path for top in ("state", "spool") for path in (site.slurm.root / top).rglob("*") if path.is_file()
    ]
    assert kept and [path for path in kept if b"hunter2" in path.read_bytes()] == []
    folder = site.folder / SITE / "a-0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir() if b"hunter2" in path.read_bytes()} >= {
        "config.json",
        "spec.json",
    }
    assert stat.S_IMODE((folder / "config.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "spec.json").stat().st_mode) == 0o600


def test_another_fleets_jobs_are_left_alone(new_site: Callable[..., Site]) -> None:
    ours, theirs = new_site(), new_site()
    theirs.start("a-0")
    (before,) = theirs.running("a-0")
    assert ours.driver.gangs() == []
    ours.driver.stop("a-0", 0.0)
    ours.start("a-0")
    (mine,) = ours.running("a-0")
    assert mine.pids != before.pids
    assert theirs.status("a-0") == before


def test_doctor_sees_versions_and_settings(new_site: Callable[..., Site]) -> None:
    found = new_site().driver.check()
    assert re.fullmatch(r"\d\d\.\d\d\.\d+", found["version"])
    assert found["nodes"].keys() == set(NODES)
    assert found["nodes"]["node1"].startswith(f"gpu:{GPUS}")
    assert found["settings"]["PreemptType"] == "preempt/partition_prio"
