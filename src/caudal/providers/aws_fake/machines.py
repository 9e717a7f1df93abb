"""Machines as processes of this machine: each instance has a keeper, which runs its user data.

What a machine finds in its environment: CAUDAL_INSTANCE_ID, CAUDAL_REGION, CAUDAL_ZONE, CAUDAL_MACHINE_TYPE,
CAUDAL_ADDRESS, CAUDAL_PYTHON (the interpreter of the fake). A machine's folder is `machines/ID` of the state directory,
with `console.log`. Keepers end when the fake does; those of a fake that is gone are looked for at the start all the same,
by pid and time of birth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from caudal.providers.aws_fake import keeper
from caudal.providers.aws_fake.world import Instance

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
ADDRESS = "127.0.0.1"
RECORD = "keeper.json"


class Machines:
    """The machines of one fake; not for threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "machines"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        _end_left_over(self._folder)

    def start(self, one: Instance, user_data: str) -> None:
        """Switch it on."""
        place = self._folder / one.id
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env |= {
            "CAUDAL_INSTANCE_ID": one.id,
            "CAUDAL_REGION": one.region,
            "CAUDAL_ZONE": one.zone,
            "CAUDAL_MACHINE_TYPE": one.machine_type,
            "CAUDAL_ADDRESS": ADDRESS,
            "CAUDAL_PYTHON": sys.executable,
        }
        (place / "env.json").write_text(json.dumps(env))
        if user_data:
            script = place / "user-data"
            script.write_text(user_data)
            script.chmod(0o700)
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(keeper.__file__)), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._keepers[one.id] = process
        born = psutil.Process(process.pid).create_time()
        (place / RECORD).write_text(json.dumps({"pid": process.pid, "born": born}))

    def end(self, machine_id: str, grace_s: float) -> None:
        """Shut it down, with that grace before its processes are killed; 0 is a power cut. Returns at once."""
        process = self._keepers.get(machine_id)
        if process is None or process.stdin is None or process.stdin.closed:
            return
        try:
            if grace_s > 0:
                process.stdin.write(f"end {grace_s}\n".encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # the keeper is gone: so is all that it kept

    def running(self, machine_id: str) -> bool:
        """Whether anything of it runs still."""
        process = self._keepers.get(machine_id)
        return process is not None and process.poll() is None

    def end_all(self) -> None:
        """Cut the power of all, and wait until nothing of them is left."""
        for machine_id in list(self._keepers):
            self.end(machine_id, 0.0)
        for process in self._keepers.values():
            process.wait(30.0)


def _end_left_over(folder: Path) -> None:
    """End what a fake before this one left, should its keepers have outlived it."""
    for record in folder.glob(f"*/{RECORD}"):
        try:
            found = json.loads(record.read_text())
            process = psutil.Process(int(found["pid"]))
            if process.create_time() == found["born"]:
                for one in [*process.children(recursive=True), process]:
                    one.kill()
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            pass  # no record that can be read, or nobody: nothing is left of it
        record.unlink(missing_ok=True)
