"""A real Slurm for tests: munged, slurmctld and eight slurmd on this machine, below one folder, on ports of its own.

Debian's slurmd takes `-N NAME`, so that one machine can be many nodes. Each has 8 CPUs, 4 GPUs and 8 Neuron cores;
the GPUs' device files are character devices that answer like /dev/null (plain files where those may not be made), so
Slurm hands out their numbers, but nothing computes on them. Times are short: this is a Slurm that is tuned to notice.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NODES = tuple(f"node{number}" for number in range(1, 9))
CPUS, MEMORY_MIB, GPUS, NEURON_CORES = 8, 4000, 4, 8
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SLURMD_TIMEOUT_S = 3

CONFIG = """
ClusterName=caudaltest
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=1000
ReturnToService=2
SlurmdTimeout={slurmd_timeout_s}
SlurmctldTimeout=5
MessageTimeout=2
TCPTimeout=1
KillWait=12
MinJobAge=15
GresTypes=gpu,neuroncore
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
{nodes}
PartitionName=train Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=serve Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """The servers, by name: `munged`, `slurmctld`, `node1` ... `node8`."""

    root: Path
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """Its slurm.conf: what SLURM_CONF has to name."""
        return self.root / "slurm.conf"

    def start(self, name: str, *more: str) -> None:
        """Start one server, with `more` on its command line."""
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self.servers[name] = subprocess.Popen(
                [*self._command(name), *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one server, by force; what it had started goes on."""
        server = self.servers.pop(name)
        server.send_signal(number)
        server.wait(timeout=20)

    def pause(self, name: str, on: bool) -> None:
        """Stop one server where it stands, or let it go on."""
        self.servers[name].send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def ask(self, *argv: str) -> str:
        """What one of Slurm's commands prints."""
        environment = {**os.environ, "SLURM_CONF": str(self.config)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def wait_saved(self, within_s: float = 20.0) -> None:
        """Until slurmctld has written down what it has been told so far. It does so every few seconds; killed before,
        it forgets jobs that run and gives their ids away again, and their nodes are drained ("Duplicate jobid")."""
        since, until = time.time(), time.monotonic() + within_s
        while (self.root / "state" / "job_state").stat().st_mtime < since:
            self.ask("scontrol", "reconfigure")  # also saves
            assert time.monotonic() < until, "slurmctld saves nothing"
            time.sleep(0.2)

    def wait_idle(self, within_s: float = 60.0) -> None:
        """Until all nodes are free."""
        until = time.monotonic() + within_s
        while (seen := self.ask("sinfo", "-h", "-N", "-p", "train", "-o", "%t").split()) != ["idle"] * 8:
            assert time.monotonic() < until, (seen, self.ask("sinfo", "-R"), self.ask("squeue"))
            time.sleep(0.1)

    def memory_bytes(self, kind: str = "Pss:") -> int:
        """The memory of all servers: what they share counted once (Pss), or for each (Rss)."""
        total = 0
        for server in self.servers.values():
            rollup = Path(f"/proc/{server.pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(kind))
        return total << 10

    def close(self) -> None:
        """End everything: jobs, servers, and what they left."""
        for name in list(self.servers):
            with contextlib.suppress(ProcessLookupError):
                self.pause(name, False)
        if "slurmctld" in self.servers:
            self.ask("scancel", f"--user={getpass.getuser()}")
            self.ask("scancel", f"--user={getpass.getuser()}", "--signal=KILL", "--full")
        for server in self.servers.values():
            server.send_signal(signal.SIGTERM)
        for name in list(self.servers):
            self.kill(name, signal.SIGTERM)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Step daemons and jobs that outlived their slurmd: what has our slurm.conf in its environment."""
        wanted = f"SLURM_CONF={self.config}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _command(self, name: str) -> list[str]:
        if name == "munged":
            run = self.root / "run"
            files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid"}
            files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
            return ["munged", "--foreground", *(f"--{key}={run / file}" for key, file in files.items())]
        if name == "slurmctld":
            return ["slurmctld", "-D", "-f", str(self.config)]
        return ["slurmd", "-D", "-N", name, "-f", str(self.config)]


def missing() -> list[str]:
    """Which of the servers and commands are not installed."""
    paths = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in NEEDED if shutil.which(name, path=paths) is None]


@contextmanager
def running_slurm() -> Iterator[Slurm]:
    """A Slurm with eight free nodes, for as long as the block lasts; SLURM_CONF names it meanwhile."""
    root = Path(tempfile.mkdtemp(prefix="caudal-slurm-"))
    servers = Slurm(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(servers.config))
        patch.setenv("PATH", os.environ["PATH"] + ":/usr/sbin:/sbin")
        try:
            _write(root)
            servers.start("munged")
            _wait_for(root / "run" / "munge.sock", servers)
            for name in ("slurmctld", *NODES):
                servers.start(name)
            servers.wait_idle()
            yield servers
        finally:
            servers.close()
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """One for the whole session. Skips where it is not installed."""
    if missing():
        pytest.skip(f"{', '.join(missing())} are not installed here: apt-get install slurm-wlm munge")
    with running_slurm() as servers:
        yield servers


def _write(root: Path) -> None:
    root.chmod(0o755)  # munge refuses a socket below a folder that others cannot enter
    for name in ("state", "spool", "run", "log", "dev"):
        (root / name).mkdir()
    key = root / "run" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    for number in range(GPUS):
        device = root / "dev" / f"nvidia{number}"
        try:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            device.touch()
    (root / "gres.conf").write_text(
        f"Name=gpu File={root}/dev/nvidia[0-{GPUS - 1}]\nName=neuroncore Count={NEURON_CORES}\n"
    )
    port, *ports = _free_ports(1 + len(NODES))
    has = (
        f"CPUs={CPUS} CoresPerSocket={CPUS} RealMemory={MEMORY_MIB} Gres=gpu:{GPUS},neuroncore:{NEURON_CORES}"
    )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={at} {has} State=UNKNOWN"
        for name, at in zip(NODES, ports, strict=True)
    )
    text = CONFIG.format(
        root=root, run=root / "run", port=port, user=getpass.getuser(), nodes=nodes,
        slurmd_timeout_s=SLURMD_TIMEOUT_S,
    )  # fmt: skip
    (root / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in found:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in found]


def _wait_for(path: Path, servers: Slurm) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, (servers.root / "log" / "munged.out").read_text()
        time.sleep(0.02)
