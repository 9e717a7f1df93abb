"""The shim on a string: its gang lives while somebody says that the head answers, and not a moment longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from caudal.drivers import local_folder as files
from caudal.drivers.processes import Identity, alive, send
from caudal.drivers.ray import names
from caudal.drivers.ray.shim import BOOT, uptime_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray sites run Linux")

SOURCE = Path(files.__file__).resolve().parents[2]
CUT_S = 0.6


class Held:
    """A shim, and the end of its string."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "gang"
        self.logs = folder / "logs"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, program: str, answered_at: float | None = None, **secrets: str) -> None:
        """Start it with one Python program."""
        self.folder.mkdir(mode=0o700)
        self.logs.mkdir()
        argv = [sys.executable, "-c", program]
        spec: dict[str, Any] = {
            **{
                "gang_id": "a-0",
                "site": "north",
                "node": "n",
                "epoch": 1,
                "token": "t",
                "mark": os.urandom(8).hex(),
            },
            "log_cap_bytes": 1 << 16,
            "logs_dir": str(self.logs),
            "processes": [{"argv": argv, "env": {}, "files": secrets}],
        }
        (self.folder / files.SPEC).write_text(json.dumps(spec))
        said = str(uptime_s() if answered_at is None else answered_at)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, str(SOURCE), str(self.folder), str(CUT_S), said],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, files.MARK: spec["mark"]},
            start_new_session=True,
        )

    def beat(self, at: float | None = None) -> None:
        """Say that the head was asked then, and answered."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(f"{uptime_s() if at is None else at}\n".encode())
        self.process.stdin.flush()

    def beating(self, holds: Callable[[], Any], beat: bool = True, limit_s: float = 15.0) -> Any:
        """Wait until something holds, with beats (or without)."""
        until = time.monotonic() + limit_s
        while not (found := holds()):
            assert time.monotonic() < until, "it does not come about"
            if beat:
                self.beat()
            time.sleep(0.02)
        return found

    def pid(self) -> int:
        """The program's."""
        return int(self.beating(lambda: (self.read(files.SHIM) or {}).get("processes"))[0][0])

    def read(self, name: str) -> Any:
        """A file of the gang's folder, if it is there."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def shim(self) -> Identity:
        """Who it is."""
        return Identity(*self.beating(lambda: self.read(files.SHIM))["shim"])

    def over(self, shim: Identity) -> None:
        """Wait until the shim has left."""
        self.beating(lambda: not alive(shim), beat=False)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    made = Held(tmp_path)
    yield made
    if made.process is not None:
        assert made.process.stdin is not None and made.process.stdout is not None
        made.process.kill()
        made.process.wait()
        made.process.stdout.close()
        made.process.stdin.close()  # and with it the shim


FOREVER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"

HEEDS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
HEEDS += "print('up', flush=True); time.sleep(600)"


def test_it_lives_while_it_is_told_so(held: Held) -> None:
    held.start(FOREVER)
    pid = held.pid()
    until = time.monotonic() + 3 * CUT_S
    held.beating(lambda: time.monotonic() > until)
    assert psutil.pid_exists(pid)
    assert (held.logs / names.log_file("a-0", 0)).read_text() == "up\n"


def test_silence_ends_it_within_the_bound(held: Held) -> None:
    held.start(FOREVER)
    pid = held.pid()
    shim, silent_at = held.shim(), time.monotonic()
    held.beating(lambda: not psutil.pid_exists(pid), beat=False)
    assert time.monotonic() - silent_at < CUT_S + names.CUT_MARGIN_S
    held.over(shim)
    assert not held.folder.exists()


def test_answers_that_are_old_are_no_answers(held: Held) -> None:
    held.start(FOREVER)
    pid, old = held.pid(), uptime_s()
    until = time.monotonic() + 10.0
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        held.beat(old)
        time.sleep(0.05)


def test_the_end_of_the_string_ends_it_at_once_with_its_secrets(held: Held) -> None:
    held.start(FOREVER, key="secret")
    pid, shim = held.pid(), held.shim()
    assert (held.folder / "key").stat().st_mode & 0o777 == 0o600
    assert held.process is not None and held.process.stdin is not None
    held.process.stdin.close()
    cut_at = time.monotonic()
    held.beating(lambda: not psutil.pid_exists(pid), beat=False)
    assert time.monotonic() - cut_at < 1.0
    held.over(shim)
    assert not held.folder.exists()


def test_a_start_that_was_held_up_is_not_made(held: Held, tmp_path: Path) -> None:
    held.start(f"open({str(tmp_path / 'ran')!r}, 'w')", answered_at=uptime_s() - 2 * CUT_S)
    end = held.beating(lambda: held.read(files.EXIT), beat=False)
    assert end["exit_code"] == names.CANNOT_START
    assert not (tmp_path / "ran").exists()


def test_an_exit_code_is_kept_and_a_stop_is_graceful(held: Held) -> None:
    held.start(HEEDS)
    held.pid()
    log = held.logs / names.log_file("a-0", 0)
    held.beating(lambda: "up" in log.read_text())
    (held.folder / files.STOP).write_text(json.dumps({"grace_s": 10.0}))
    send(held.shim(), signal.SIGTERM)
    assert held.beating(lambda: held.read(files.EXIT))["exit_code"] == 143
