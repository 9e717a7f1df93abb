"""The small program that stands behind every gang of the local driver, and outlives the control process.

It starts the gang's processes, waits for them, and writes down how they ended, so that a control process
that was away learns it later. What it promises:

- **Never two.** It holds the folder's lock for its whole life and leaves where another holds it; a gang
  that was started once, by whatever shim, is not started again.
- **Together.** The processes form one process group. When one ends, for whatever reason, the others are
  asked to end and after a grace killed; nothing that they started outlives them.
- **Never orphans.** On Linux the kernel kills the processes when their shim dies, even by SIGKILL. Elsewhere
  (and for children of children) the driver does it, when it next looks and finds the shim dead.

SIGTERM, or a `stop.json`, asks it to end the gang. Run as `python -I -S -c BOOT ROOT FOLDER`, where ROOT is
what holds the package: without site-packages it is up in 50 ms. Knows nothing about what the processes do.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from caudal.drivers import local_folder as files
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.local_log import CappedLog
from caudal.drivers.processes import identify, marked, send

BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from caudal.drivers.local_shim import main; main(sys.argv[2])"
)
"""What `python -c` is given. Appended: nothing in ROOT may stand before the standard library."""

DEFAULT_GRACE_S = 10.0
LOOK_S = 1.0  # how often it looks for a stop.json whose signal was lost
LOCK_WAIT_S = 5.0
KEEP_TRYING_S = 30.0  # how long a full disk may keep the exit status from being written
OWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
NOT_FOR_PROGRAMS = {signal.SIGKILL, signal.SIGSTOP}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CANNOT_START = 71  # sysexits.h: EX_OSERR
CANNOT_RUN = 127  # what a shell says for a command that it cannot find


def main(folder: str) -> None:
    """Detach from the caller and be the shim of that folder's gang. The caller's process ends at once; its
    standard output gets one byte when the gang stands, and is closed in any case."""
    if os.fork():
        os._exit(0)  # so the starter reaps at once, and whoever inherits orphans reaps the shim
    os.setsid()
    os.umask(0o077)
    gang = Folder(Path(folder))
    lock = _sole(gang)
    if lock is None:
        return
    spec = gang.read(files.SPEC)
    assert spec, "the driver writes the spec before it starts a shim"
    Shim(gang, spec).run()


def _sole(gang: Folder) -> int | None:
    """The lock of a gang that nobody started before; None where there is nothing (more) to do here."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        lock = gang.lock()
        if gang.has(files.SHIM) or gang.has(files.EXIT):
            return None
        if lock is not None or time.monotonic() > until:
            return lock
        time.sleep(0.01)  # another shim that has not said so yet, or a driver that looks: both are brief


class Shim:
    """One gang, from before its start to after its end."""

    def __init__(self, gang: Folder, spec: Record) -> None:
        self.gang = gang
        self.spec = spec
        self.pids: list[int] = []
        self.ended: list[int] = []  # pids in the order of their end
        self.asked = False  # a signal asked to end
        self.stopping = False  # somebody asked; False while it ends by itself
        self.kill_at: float | None = None  # on the monotonic clock; None: not ending
        self.logs: dict[int, CappedLog] = {}  # by the pipe's descriptor
        self.wake = -1
        self.died_with = die_with_parent()

    def run(self) -> None:
        """The whole life. Returns when the exit status is written."""
        self._listen()
        self._say(files.STARTING, [], None)
        error = ""
        if not self.gang.has(files.STOP):
            try:
                self._start_all()
            except OSError as failure:
                error = f"cannot start: {failure}"
                print(error, file=sys.stderr, flush=True)
            else:
                _announce()
                self._watch()
        self._sweep()
        self._finish(error)
        _announce()

    def _listen(self) -> None:
        """Turn signals into a readable descriptor, so that nothing is missed between looking and waiting."""
        self.wake, write_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write_end, False)
        for number in OWN_SIGNALS:
            signal.signal(number, self._noted)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the starter's thread may have blocked some

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.asked = True

    def _say(self, state: str, processes: list[list[Any]], started_at: float | None) -> None:
        me = identify(os.getpid())
        assert me is not None
        self.gang.write(
            files.SHIM,
            {
                "state": state,
                "site": self.spec["site"],
                "token": self.spec["token"],
                "shim": list(me),
                "processes": processes,
                "started_at": started_at,
            },
        )

    def _start_all(self) -> None:
        for process in self.spec["processes"]:
            for name, text in process["files"].items():
                self.gang.write_text(name, text)
        for index, process in enumerate(self.spec["processes"]):
            self._start(index, process)
        self._say(files.RUNNING, [list(identify(pid) or (pid, "")) for pid in self.pids], time.time())

    def _start(self, index: int, process: Record) -> None:
        read_end, write_end = os.pipe()
        self.logs[read_end] = CappedLog(self._log_path(index), self.spec["log_cap_bytes"])
        parent = os.getpid()
        # Blocked over the fork: a SIGTERM that came before exec would be taken by our handler in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, OWN_SIGNALS)
        pid = os.fork()
        if pid == 0:
            try:
                self._become(process, parent, write_end)
            except OSError as failure:
                os.write(2, f"cannot run {process['argv'][0]}: {failure.strerror}\n".encode())
            finally:
                os._exit(CANNOT_RUN)
        self.pids.append(pid)
        try:
            os.setpgid(pid, self.pids[0])  # here and in the child: whichever comes first
        except (PermissionError, ProcessLookupError):
            pass  # it has done so itself, and become its program
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OWN_SIGNALS)
        os.close(write_end)

    def _log_path(self, index: int) -> Path:
        """Where what a process prints is kept."""
        return self.gang.path / files.log_name(index)

    def _become(self, process: Record, parent: int, output: int) -> None:
        """In the child: turn into the program. Returns only by raising OSError."""
        self.died_with()
        if os.getppid() != parent:
            os._exit(CANNOT_RUN)  # the shim died before the kernel knew that we die with it
        os.setpgid(0, self.pids[0] if self.pids else 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        for number in signal.valid_signals() - NOT_FOR_PROGRAMS:
            signal.signal(number, signal.SIG_DFL)  # a starter in a shell's background ignores some
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OWN_SIGNALS)
        os.chdir(self.gang.path)
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, **process["env"]}
        os.execvpe(process["argv"][0], process["argv"], environment)

    def _watch(self) -> None:
        while len(self.ended) < len(self.pids):
            self._wait()
            self.ended += [pid for pid in self.pids if pid not in self.ended and _over(pid)]
            asked, self.asked = self.asked, False  # before the read: the file is there before its signal
            stop = self.gang.read(files.STOP) if asked or self.kill_at is None else None
            if asked or stop is not None:
                self.stopping = True
                self._end((stop or {}).get("grace_s", DEFAULT_GRACE_S))
            elif self.kill_at is None and not self.gang.path.is_dir():
                self._end(DEFAULT_GRACE_S)  # its folder was deleted: nobody could ever find it to end it
            elif self.ended and self.kill_at is None:
                self._end(DEFAULT_GRACE_S)
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self._signal_group(signal.SIGKILL)

    def _wait(self) -> None:
        """Wait for a signal, output, or time; take what was printed."""
        timeout_s = LOOK_S
        if self.kill_at is not None:
            timeout_s = min(LOOK_S, max(0.01, self.kill_at - time.monotonic()))
        ready, _, _ = select.select([self.wake, *self.logs], [], [], timeout_s)
        for descriptor in ready:
            if descriptor == self.wake:
                os.read(self.wake, 4096)
            else:
                self._take(descriptor)

    def _take(self, descriptor: int) -> bool:
        """One piece of what was printed; False at the end of it."""
        data = os.read(descriptor, 1 << 16)
        if data:
            self.logs[descriptor].write(data)
            return True
        self.logs.pop(descriptor).close()
        os.close(descriptor)
        return False

    def _end(self, grace_s: float) -> None:
        """Ask all to end, once; a second word may only shorten the grace."""
        kill_at = time.monotonic() + grace_s
        if self.kill_at is None:
            self._signal_group(signal.SIGTERM)
            self.kill_at = kill_at
        self.kill_at = min(self.kill_at, kill_at)

    def _signal_group(self, number: int) -> None:
        """The group cannot be a stranger's: its leader is reaped only at the very end."""
        try:
            os.killpg(self.pids[0], number)
        except (ProcessLookupError, PermissionError):
            pass  # only zombies are left in it

    def _sweep(self) -> None:
        """Kill what is left of the gang, also what left the group, and take what was still printed."""
        if self.pids:
            self._signal_group(signal.SIGKILL)
        while left := [p for p in marked(f"{files.MARK}={self.spec['mark']}") if p.pid != os.getpid()]:
            for process in left:
                send(process, signal.SIGKILL)
            time.sleep(0.005)
        for descriptor in list(self.logs):
            os.set_blocking(descriptor, False)
            try:
                while self._take(descriptor):
                    pass
            except BlockingIOError:
                pass  # someone out of reach holds the other end

    def _code(self, in_order: list[int]) -> int:
        return exit_code(in_order, self.stopping)

    def _finish(self, error: str) -> None:
        codes = {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids}
        in_order = [codes[pid] for pid in [*self.ended, *(p for p in self.pids if p not in self.ended)]]
        code = CANNOT_START if error else self._code(in_order)
        record = {
            "lost": False,
            "site": self.spec["site"],
            "token": self.spec["token"],
            "exit_code": code,
            "signal": -code if code < 0 else None,
            "codes": [codes[pid] for pid in self.pids],
            "error": error,
            "at": time.time(),
        }
        until = time.monotonic() + KEEP_TRYING_S
        while True:
            try:
                self.gang.write_once(files.EXIT, record)
                return
            except OSError:
                if not self.gang.path.is_dir():
                    return
                if time.monotonic() > until:
                    raise  # then the gang is listed as lost, which is true: nobody knows how it ended
                time.sleep(0.5)


def exit_code(codes: list[int], stopping: bool) -> int:
    """A gang's exit code from its processes', given in the order of their end: the first that is not 0.

    Where the first ended well and nobody had asked, the others were ended by us: that is no failure. A
    gang that was stopped before it had started anything counts as ended by SIGTERM.
    """
    ours = () if stopping else (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)
    if not codes:
        return -signal.SIGTERM
    if codes[0]:
        return codes[0]
    return next((code for code in codes[1:] if code and code not in ours), 0)


def die_with_parent() -> Any:
    """A call for a child to make after the fork: from then on the kernel kills it when its parent dies.
    Found before the fork, because loading a library after it is no good time. Not on Linux: does nothing."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _over(pid: int) -> bool:
    """Whether our child has ended; it is not reaped, so that its pid and group stay its own."""
    return _over_linux(pid) if sys.platform == "linux" else identify(pid) is None


def _over_linux(pid: int) -> bool:
    assert sys.platform == "linux"
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _announce() -> None:
    """Tell the starter, once, that the folder now says how things stand."""
    try:
        os.write(1, b"1")
    except OSError:
        pass  # the starter is gone: the folder says it to the next one
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.close(nothing)
