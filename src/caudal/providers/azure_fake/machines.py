"""Machines as local processes: each is a child that runs the machine's custom data and ends with everything it
started, also when the fake dies. Knows nothing of ARM.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Protocol

STOP_S = 5.0
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")
"""What of our own environment a machine sees: enough to find programs, and no secrets."""


class Machines(Protocol):
    """What makes a table's machine run."""

    def start(self, name: str, script: bytes) -> None:
        """It boots. Once more is fine."""
        ...

    def stop(self, name: str) -> None:
        """It goes, with all that it started. One that is not there is fine."""
        ...

    def stop_all(self) -> None:
        """All go."""
        ...

    def pid(self, name: str) -> int:
        """Its process; 0 where there is none."""
        ...


class NoMachines:
    """Machines that are entries in a table only."""

    def start(self, name: str, script: bytes) -> None:
        """Nothing runs."""

    def stop(self, name: str) -> None:
        """Nothing ran."""

    def stop_all(self) -> None:
        """Nothing ran."""

    def pid(self, name: str) -> int:
        """None."""
        return 0


class Processes:
    """Implements Machines with one child each, in a folder of its own below `work_dir`, where its output is kept as
    `console.log`. The custom data sees CAUDAL_INSTANCE_ID and CAUDAL_INSTANCE_DIR."""

    def __init__(self, work_dir: Path) -> None:
        self._dir = work_dir
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, script: bytes) -> None:
        """Run the custom data where it is a script; another kind (cloud-config) gives an idle machine."""
        if name in self._running:
            return
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name), (
            "the name was checked when the machine was asked for"
        )
        folder = self._dir / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        program = folder / "custom-data"
        program.write_bytes(script if script.startswith(b"#!") else b"")
        program.chmod(0o700)
        environment = {key: os.environ[key] for key in KEPT if key in os.environ}
        environment |= {"CAUDAL_INSTANCE_ID": name, "CAUDAL_INSTANCE_DIR": str(folder)}
        shim = Path(__file__).with_name("instance.py")
        with (folder / "console.log").open("ab") as console:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-S", "-E", str(shim), str(program)],
                stdin=subprocess.PIPE,  # its other end is ours: it closes with us, however we end
                stdout=console,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Close its pipe, which ends it and what it started; kill its group where it does not end in time."""
        process = self._running.pop(name, None)
        if process is not None:
            _end([process])

    def stop_all(self) -> None:
        """All at once."""
        _end(list(self._running.values()))
        self._running.clear()

    def pid(self, name: str) -> int:
        """The child's pid; 0 where there is none."""
        process = self._running.get(name)
        return process.pid if process is not None and process.poll() is None else 0


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its own session: nobody else is in the group
            process.wait()
