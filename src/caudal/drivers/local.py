"""Gangs as processes of this machine, which outlive the control process and are adopted again by it.

Every gang has a folder (local_folder.py) and a shim (local_shim.py). All that is known is in the folder, so
a new driver on the same root knows what the one before it knew, and a crash between any two steps of a
start or a stop is repaired by asking again. Needs a POSIX system. Knows nothing about what gangs are for.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from caudal.domain.errors import Failed, NotFound, Stale, StorageFailed, Unreachable
from caudal.domain.gang import GangSpec, GangState, GangStatus
from caudal.drivers import local_folder as files
from caudal.drivers.local_archive import Archive, logs_in
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.local_log import tail
from caudal.drivers.local_shim import BOOT
from caudal.drivers.processes import Identity, alive, marked, send
from caudal.ports import Clock

LOG_CAP_BYTES = 16 << 20  # per process
OVER = ".over"
READY_TIMEOUT_S = 20.0  # a shim stands in 0.05 s; a machine that swaps takes longer
SHIM_MARGIN_S = 5.0  # past the grace: then the shim itself hangs, and is killed with all it started
FENCE_ROUNDS = 100
FENCE_PAUSE_S = 0.01

PASSED_ON = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"}
    | {"VIRTUAL_ENV"}
)
PASSED_ON_PREFIXES = (
    *("CAUDAL_", "PYTHON", "PIP_", "SSL_", "LC_", "HF_"),
    *("OMP_", "MKL_", "OPENBLAS_", "CUDA_", "TORCH"),
    *("AWS_", "AZURE_", "GOOGLE_"),  # object stores that are named by URL ask these for credentials
)
KEPT_BACK = frozenset({"CAUDAL_DATABASE_URL"})  # may hold a password, and no gang talks to the database
PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"})

ISOLATED = ("-I", "-S") if sys.platform == "linux" else ("-I",)  # elsewhere psutil has to be found
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,180}")


class LocalDriver:
    """Implements `ports.Driver` with one folder per gang below `root`, which sites may share."""

    def __init__(self, site: str, root: Path, clock: Clock, *, log_cap_bytes: int = LOG_CAP_BYTES) -> None:
        self.site = site
        self._root = root
        self._archive = Archive(root / OVER)
        self._clock = clock
        self._log_cap_bytes = log_cap_bytes

    def start(self, spec: GangSpec, token: str) -> None:
        """Start it, once, however often asked; returns when `gangs` lists it. Raises Stale where another
        token has started that id, StorageFailed, Failed where no shim came up (then asking again helps)."""
        assert spec.site == self.site and spec.processes and SAFE_NAME.fullmatch(spec.gang_id), spec
        if self._archive.has(spec.gang_id, token):
            return  # it ran, ended and was forgotten: this is a late repetition
        gang = self._folder(spec.gang_id)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            gang.create()
            gang.write_once(files.SPEC, self._record(spec, token))
        except OSError as error:
            raise StorageFailed(
                f"cannot write the folder of gang {spec.gang_id}",
                where=str(gang.path),
                why=str(error),
                remedy="free disk space there, or make the folder writable",
            ) from error
        written = gang.read(files.SPEC) or {}
        if written.get("token") != token:
            raise Stale(f"gang {spec.gang_id} was started with another token", where=f"site {self.site}")
        if not _begun(gang):
            self._launch(gang, written["mark"])

    def stop(self, gang_id: str, grace_s: float) -> None:
        """Ask it to end, and make it end after the grace. Returns at once. One that is over or unknown is
        fine; one whose start was cut short is over then, and never starts."""
        gang = self._folder(gang_id)
        spec = gang.read(files.SPEC)
        if spec is None or spec.get("site") != self.site or gang.has(files.EXIT):
            return
        kill_at = self._clock.now() + grace_s
        before = gang.read(files.STOP)
        if before:
            # Asking again gives no more time, also where the shim has not yet read the word before.
            grace_s, kill_at = min(grace_s, before["grace_s"]), min(kill_at, before["kill_at"])
        try:
            gang.write(files.STOP, {"grace_s": grace_s, "kill_at": kill_at})
        except OSError:
            pass  # the disk is full: the signal alone ends it, with the shim's own grace
        shim = gang.read(files.SHIM)
        if shim is not None:
            send(_shim_of(shim), signal.SIGTERM)
            return
        lock = gang.lock()
        if lock is None:
            return  # a shim is just coming up, and looks for stop.json before it starts anything
        if not _begun(gang):
            self._write_end(gang, spec["token"], -signal.SIGTERM)
        os.close(lock)

    def gangs(self) -> Sequence[GangStatus]:
        """All gangs of this site with what is true of them now, ordered by id. A gang whose shim died
        without an exit status is listed as LOST once nothing of it runs. Raises Unreachable."""
        try:
            found = [self._status(Folder(path)) for path in self._folders()]
        except OSError as error:
            raise Unreachable(
                "cannot read the gangs' folders", where=str(self._root), why=str(error)
            ) from error
        return [status for status in found if status is not None]

    def forget(self, gang_id: str) -> None:
        """Drop a gang that is over from the list, with its secrets; the ends of its logs are kept while it
        is one of the last 200. One that is not over stays; an unknown one is fine."""
        gang = self._folder(gang_id)
        end = gang.read(files.EXIT)
        if end is None or end.get("site", self.site) != self.site:
            return
        try:
            self._archive.take(gang.path, gang_id, end.get("token", ""))
        except OSError as error:
            raise StorageFailed(
                f"cannot put the logs of gang {gang_id} aside", where=str(gang.path), why=str(error)
            ) from error

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """The end of what its processes printed, also after it was forgotten; with more than one process
        each has an equal share under a heading. Raises NotFound."""
        if not SAFE_NAME.fullmatch(gang_id):
            raise NotFound(f"no gang {gang_id!r}", where=f"site {self.site}")
        listed = self._root / gang_id
        folder = listed if listed.is_dir() else self._archive.find(gang_id)
        if folder is None:
            raise NotFound(f"no gang {gang_id}", where=f"site {self.site}")
        paths = logs_in(folder)
        share_bytes = tail_bytes // max(1, len(paths))
        texts = [tail(path, share_bytes).decode(errors="replace") for path in paths]
        if len(texts) < 2:
            return "".join(texts)
        return "".join(f"== process {path.stem} ==\n{text}" for path, text in zip(paths, texts, strict=True))

    def _folder(self, gang_id: str) -> Folder:
        return Folder(self._root / gang_id)

    def _folders(self) -> list[Path]:
        if not self._root.exists():
            return []
        return sorted(path for path in self._root.iterdir() if SAFE_NAME.fullmatch(path.name))

    def _record(self, spec: GangSpec, token: str) -> Record:
        folder = self._root / spec.gang_id
        names: dict[str, str] = {}
        for process in spec.processes:
            for name, text in process.files.items():
                assert SAFE_NAME.fullmatch(name) and not files.reserved(name), f"bad file name {name!r}"
                assert names.setdefault(name, text) == text, f"two processes want another {name!r}"
        return {
            "gang_id": spec.gang_id,
            "site": spec.site,
            "node": spec.node,
            "epoch": spec.epoch,
            "token": token,
            "mark": os.urandom(16).hex(),
            "log_cap_bytes": self._log_cap_bytes,
            "processes": [
                {
                    "argv": [_fill(argument, folder) for argument in process.argv],
                    "env": {name: _fill(value, folder) for name, value in process.env.items()},
                    "files": dict(process.files),
                }
                for process in spec.processes
            ],
        }

    def _launch(self, gang: Folder, mark: str) -> None:
        """Start a shim and wait until the folder says how things stand."""
        log = os.open(gang.path / files.SHIM_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            launcher = subprocess.Popen(
                [sys.executable, *ISOLATED, "-c", BOOT, str(PACKAGE_ROOT), str(gang.path.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**passed_on(os.environ), files.MARK: mark},
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise Failed("cannot start a process", where=str(gang.path), why=str(error)) from error
        finally:
            os.close(log)
        assert launcher.stdout is not None
        with launcher.stdout as ready:
            poll = select.poll()  # unlike select(), it takes descriptors over 1023
            poll.register(ready, select.POLLIN)
            if not poll.poll(READY_TIMEOUT_S * 1000):
                launcher.kill()  # if it has not even forked, it must not do so later
        launcher.wait()  # it forked and left: nothing is ours to reap later
        if not _begun(gang):
            self._check_held(gang)

    def _check_held(self, gang: Folder) -> None:
        """No shim has said anything: fine while one is coming up, an error where there is none."""
        lock = gang.lock()
        if lock is None:
            return
        os.close(lock)
        if not _begun(gang):
            said = tail(gang.path / files.SHIM_LOG, 2000).decode(errors="replace").strip()
            raise Failed(
                "the program that keeps a gang did not come up",
                where=str(gang.path),
                why=said.splitlines()[-1] if said else "it said nothing",
                remedy="it is started again with the next attempt",
            )

    def _status(self, gang: Folder) -> GangStatus | None:
        """What is true of one gang; None where nothing was ever started, or it is another site's."""
        shim = gang.read(files.SHIM)
        end = gang.read(files.EXIT)
        told = shim or end
        if told is not None and told.get("site", self.site) != self.site:
            return None
        if end is None and shim is not None:
            end = self._end_or_none(gang, shim)
        if end is not None:
            return GangStatus(
                gang_id=gang.path.name,
                state=GangState.EXITED if end.get("exit_code") is not None else GangState.LOST,
                site=self.site,
                exit_code=end.get("exit_code"),
                started_at=(shim or {}).get("started_at"),
                ended_at=end.get("at"),
            )
        if shim is None:
            return None
        return GangStatus(
            gang_id=gang.path.name,
            state=GangState.RUNNING if shim.get("state") == files.RUNNING else GangState.STARTING,
            site=self.site,
            started_at=shim.get("started_at"),
            pids=tuple(p.pid for p in _processes_of(shim) if alive(p)),
        )

    def _end_or_none(self, gang: Folder, shim: Record) -> Record | None:
        """How a gang without an exit status ended; None: it lives."""
        if alive(_shim_of(shim)):
            stop = gang.read(files.STOP)
            if not stop or self._clock.now() < stop["kill_at"] + SHIM_MARGIN_S:
                return None
            send(_shim_of(shim), signal.SIGKILL)
        lock = gang.lock()
        if lock is None:
            return None  # it is just dying, or lives where we cannot see its pid
        try:
            end = gang.read(files.EXIT)  # written between our two looks
            if end is None and self._fenced(gang, shim):
                end = self._write_end(gang, shim.get("token", ""), None)
            return end
        finally:
            os.close(lock)

    def _fenced(self, gang: Folder, shim: Record) -> bool:
        """Kill what a dead shim left behind; whether nothing is left."""
        mark = (gang.read(files.SPEC) or {}).get("mark")
        for _ in range(FENCE_ROUNDS):
            left = {p for p in _processes_of(shim) if alive(p)}
            left.update(marked(f"{files.MARK}={mark}") if mark else ())
            if not left:
                return True
            for process in left:
                send(process, signal.SIGKILL)
            self._clock.sleep(FENCE_PAUSE_S)
        return False

    def _write_end(self, gang: Folder, token: str, exit_code: int | None) -> Record:
        """Say that it is over, where no shim can; only with the gang's lock."""
        end: Record = {"lost": exit_code is None, "site": self.site, "token": token, "exit_code": exit_code}
        end |= {"signal": -exit_code if exit_code else None, "codes": [], "error": ""}
        end |= {"at": self._clock.now()}
        try:
            gang.write_once(files.EXIT, end)
        except OSError:
            pass  # the disk is full: it is as true without the file, and found again at the next look
        return end


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the control process's environment its gangs inherit: a list of what is known to be needed."""
    return {
        name: value
        for name, value in environment.items()
        if name not in KEPT_BACK
        and (name in PASSED_ON or name.upper() in PROXIES or name.startswith(PASSED_ON_PREFIXES))
    }


def _fill(argument: str, folder: Path) -> str:
    return argument.replace("{python}", sys.executable).replace("{dir}", str(folder.resolve()))


def _begun(gang: Folder) -> bool:
    """Whether a shim has taken charge, or the gang is over: then nothing is to be started any more."""
    return gang.has(files.SHIM) or gang.has(files.EXIT)


def _shim_of(shim: Record) -> Identity:
    return Identity(*shim.get("shim", (0, "")))


def _processes_of(shim: Record) -> list[Identity]:
    return [Identity(*process) for process in shim.get("processes", ())]
