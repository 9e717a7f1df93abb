"""The actor that stands for a gang on its node: it starts the shim, and tells it that the head still answers.

It runs in a Ray worker inside the gang's placement group, so that Ray has given it the devices and has taken
their number off the node. When this process dies, for whatever reason, the shim ends the gang; when the head
does not answer, or has given the gang up, this process falls silent and the shim ends the gang. When the node's
raylet dies, this process lives a second or more on: it ends the gang at once, and can still say so.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import ray

from caudal.drivers import local_folder as files
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.processes import Identity, alive, marked, send
from caudal.drivers.ray import kv, names
from caudal.drivers.ray.shim import BOOT, uptime_s

LOOK_S = 0.05
RAYLET_LOOK_S = 0.02  # how often the raylet is looked for: this process may end itself any moment after it
READY_S = 20.0  # a shim stands in 0.1 s; a machine that swaps takes longer
DEVICES = ("CUDA_VISIBLE_DEVICES", "NEURON_RT_VISIBLE_CORES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
CODE = str(Path(__file__).resolve().parents[3])  # what holds the package that the driver sent


class Keeper:
    """One gang on one node. Its methods are called by the gang's supervisor."""

    def __init__(self, spec: Record) -> None:
        self._spec = spec
        self._site, self._gang_id = str(spec["site"]), str(spec["gang_id"])
        self._folder: Folder | None = None
        self._answered_at = uptime_s()
        self._raylet = os.getppid()
        self._mark = os.urandom(16).hex()
        self._lock = threading.Lock()
        self._stop: dict[str, float] | None = None

    def start(self) -> dict[str, Any]:
        """Start the gang's processes; what is known of them. `error` where they were not started."""
        asked_at = uptime_s()
        prefix = names.fence_prefix(self._site, self._spec["lease_id"], self._spec["node"])
        newest = int(kv.keys(prefix)[-1].rpartition("/")[2])
        self._answered_at = asked_at
        if newest > self._spec["epoch"]:
            return {"error": f"epoch {self._spec['epoch']} is fenced by {newest}", "exit_code": names.FENCED}
        with self._lock:
            if self._stop is not None:
                return {"error": "it was to end before it had started", "exit_code": names.STOPPED_BEFORE}
            self._launch()
        assert self._folder is not None
        shim = self._folder.read(files.SHIM) or {}
        end = self._folder.read(files.EXIT)
        if not shim and end is None:
            self._kill()
            return {"error": "the program that keeps a gang did not come up", "exit_code": names.CANNOT_START}
        logs = [names.log_file(self._gang_id, i) for i in range(len(self._spec["processes"]))]
        return {
            "pids": [pid for pid, _ in shim.get("processes", ())],
            "node": ray.get_runtime_context().get_node_id(),
            "logs": logs,
            "started_at": shim.get("started_at") or time.time(),
        }

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """How it ended; None where it lives after that long. `exit_code` None: nobody knows."""
        assert self._folder is not None
        until = time.monotonic() + timeout_s
        while self._lives():
            if time.monotonic() > until:
                return None
            time.sleep(LOOK_S)
        end = self._folder.read(files.EXIT)
        orphaned = self._orphaned()
        self._kill()
        shutil.rmtree(self._folder.path, ignore_errors=True)  # with the secrets; the logs lie elsewhere
        if orphaned:  # then the shim may still have said by which signal it ended the gang
            return {"exit_code": None, "at": time.time(), "error": "its node's raylet died"}
        if end is None:
            error = "its node had no answer from the head for too long, or its shim died"
            return {"exit_code": None, "at": time.time(), "error": error}
        return {"exit_code": end.get("exit_code"), "at": end.get("at"), "error": end.get("error", "")}

    def stop(self, grace_s: float) -> None:
        """Ask the processes to end, and make them after the grace. A later word may only shorten it."""
        with self._lock:
            if self._stop is not None:
                grace_s = min(grace_s, max(0.0, self._stop["kill_at"] - time.time()))
            self._stop = {"grace_s": grace_s, "kill_at": time.time() + grace_s}
            if self._folder is None or not self._lives():
                return
            self._folder.write(files.STOP, self._stop)
            send(self._shim_of(), signal.SIGTERM)

    def _launch(self) -> None:
        # Not the session's own folder: its path may be too open, and Ray sweeps it.
        self._folder = gang = Folder(Path(tempfile.mkdtemp(prefix="caudal-gang-")))
        gang.write(files.SPEC, self._record(gang.path))
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, CODE, str(gang.path), *self._string()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_surroundings(os.environ), files.MARK: self._mark},
            start_new_session=True,
            umask=0o077,
        )
        assert launcher.stdin is not None and launcher.stdout is not None
        threading.Thread(target=self._beat, args=(launcher.stdin,), daemon=True).start()
        select.select([launcher.stdout], [], [], READY_S)
        launcher.wait()  # it forked and left
        launcher.stdout.close()

    def _shim_of(self) -> Identity:
        assert self._folder is not None
        return Identity(*(self._folder.read(files.SHIM) or {}).get("shim", (0, "")))

    def _lives(self) -> bool:
        """Whether the shim has still something to say."""
        assert self._folder is not None
        return not self._folder.has(files.EXIT) and alive(self._shim_of())

    def _string(self) -> tuple[str, str]:
        return str(self._spec["cut_s"]), str(self._answered_at)

    def _record(self, folder: Path) -> Record:
        def fill(argument: str) -> str:
            return argument.replace("{python}", sys.executable).replace("{dir}", str(folder))

        devices = {name: os.environ[name] for name in DEVICES if name in os.environ}
        processes = [
            {
                "argv": [fill(argument) for argument in process["argv"]],
                # what Ray has assigned stands
                "env": {**{name: fill(value) for name, value in process["env"].items()}, **devices},
                "files": process["files"],
            }
            for process in self._spec["processes"]
        ]
        known = {
            key: self._spec[key] for key in ("gang_id", "site", "node", "epoch", "token", "log_cap_bytes")
        }
        logs_dir = ray._private.worker._global_node.get_logs_dir_path()  # what Ray's log server reads
        return {**known, "mark": self._mark, "logs_dir": logs_dir, "processes": processes}

    def _beat(self, string: IO[bytes]) -> None:
        """Ask the head whether the gang is still wanted there, and pass on when it was asked and answered. Once the
        raylet is gone Ray will call the node dead: then the string is let go."""
        while not self._orphaned():
            asked_at = uptime_s()
            try:  # in this order: what the supervisor reads once it has given up holds every beat that counts
                kv.put(names.beat_key(self._site, self._gang_id), f"{self._mark} {asked_at}")
                given_up = kv.get(names.lost_key(self._site, self._gang_id)) is not None
            except Exception:  # whatever Ray raises where its head is away: then there is nothing to pass on
                self._pause()
                continue
            try:
                if given_up:
                    string.close()
                    return
                string.write(f"{asked_at}\n".encode())
                string.flush()
            except OSError:
                return  # it is over
            self._pause()
        string.close()

    def _pause(self) -> None:
        """Until the next beat, or until the raylet is dead."""
        until = time.monotonic() + names.BEAT_S
        while time.monotonic() < until and not self._orphaned():
            time.sleep(RAYLET_LOOK_S)

    def _orphaned(self) -> bool:
        """Whether the raylet, whose child this process is, has died."""
        return os.getppid() != self._raylet

    def _kill(self) -> None:
        """Kill what is left of the gang, wherever it went."""
        for _ in range(100):
            left = marked(f"{files.MARK}={self._mark}")
            if not left:
                return
            for process in left:
                send(process, signal.SIGKILL)
            time.sleep(0.01)


def _surroundings(environment: os._Environ[str]) -> dict[str, str]:
    """What the node's environment is to the gang's processes: all but Ray's own, which holds its token."""
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    paths = [p for p in kept.pop("PYTHONPATH", "").split(os.pathsep) if p]
    paths = [
        p for p in paths if not Path(p).resolve().is_relative_to(CODE) and "/site-packages/ray/" not in p
    ]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)} if paths else kept
