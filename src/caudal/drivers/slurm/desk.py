"""Where Slurm's commands and the shared folder are: takes one question at a time and answers it.

The driver asks it in its own process, or runs it on a login host (`python -m caudal.drivers.slurm.desk`, a question
as JSON on standard input, the answer as JSON on standard output), so that one journey over SSH does all that has to
be done under a lock. Everything that it knows is in the folder `ROOT/SITE` and in Slurm.

**A lost answer of sbatch.** Slurm has no token for a submission. So: the folder with the token is written first; then,
under the site's lock, squeue is asked for a job of that gang; only where there is none, sbatch is called. A submission
that slurmctld takes up later than that (its client had given up) makes a second job: whichever begins first holds the
folder's lock, the other starts nothing (keeper.py), and is cancelled when it is seen while it waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from caudal.domain.errors import CaudalError, Failed, NotFound, Stale, StorageFailed, Unreachable
from caudal.domain.fleet import Resources, SlurmSpec
from caudal.domain.gang import Role
from caudal.drivers import local_folder as files
from caudal.drivers.local import ISOLATED, LOG_CAP_BYTES, PACKAGE_ROOT, SAFE_NAME, passed_on
from caudal.drivers.local_archive import Archive, logs_in
from caudal.drivers.local_folder import Folder
from caudal.drivers.local_log import tail
from caudal.drivers.slurm import check, commands, queue
from caudal.drivers.slurm.keeper import FENCES, RAN
from caudal.drivers.slurm.status import JOB, Look, status
from caudal.drivers.slurm.submit import Wish, sbatch, script

PROTOCOL = 1
OVER = ".over"
MARK_FILE = ".mark.json"
SUBMIT_LOCK = ".submit"
LOCK_WAIT_S = 15.0
DEFAULT_FOLDER = ".caudal/slurm"
MAX_QUESTION_BYTES = 64 << 20
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Desk:
    """One site's gangs in one Slurm."""

    def __init__(self, site: str, spec: SlurmSpec) -> None:
        self.site = site
        self._spec = spec
        base = Path(spec.folder) if spec.folder else Path.home() / DEFAULT_FOLDER
        self._root = base / site
        self._archive = Archive(self._root / OVER)

    def start(self, gang: Mapping[str, Any], token: str) -> None:
        """See `ports.Driver.start`. `gang` is what driver.py makes of a GangSpec."""
        gang_id = str(gang["gang_id"])
        if self._archive.has(gang_id, token):
            return  # it ran, ended and was forgotten: this is a late repetition
        mark = self._mark()
        folder = self._folder(gang_id)
        self._raise_fence(gang)
        self._write_spec(folder, gang, token)
        if folder.has(RAN) or folder.has(files.EXIT) or folder.has(files.STOP):
            return
        with self._lock():
            found = self._queue(mark, gang_id).get(gang_id, [])
            if found:
                self._keep_one(folder, found)
            elif not folder.has(JOB):
                self._submit(folder, gang, token, mark)

    def stop(self, gang_id: str, grace_s: float) -> None:
        """See `ports.Driver.stop`. Slurm is asked first: where it does not answer, nothing has changed."""
        folder = self._folder(gang_id)
        if not folder.has(files.SPEC):
            return
        jobs = self._queue(self._mark(), gang_id).get(gang_id, [])
        if folder.has(files.EXIT) and all(job.final for job in jobs):
            return
        kill_at = time.time() + grace_s
        before = folder.read(files.STOP)
        if before:
            grace_s, kill_at = min(grace_s, before["grace_s"]), min(kill_at, before["kill_at"])
        folder.write(files.STOP, {"grace_s": grace_s, "kill_at": kill_at})
        for job in jobs:
            if job.waits:
                commands.call(["scancel", "--state=PENDING", str(job.id)])
            elif not job.final:
                with suppress(CaudalError):  # the node is away: the keeper finds stop.json by itself
                    commands.call(["scancel", "--batch", "--signal=TERM", str(job.id)])
        if not jobs and not folder.has(RAN) and not folder.has(JOB):
            end = {"lost": False, "site": self.site, "exit_code": queue.SIGTERM, "signal": -queue.SIGTERM}
            folder.write_once(files.EXIT, {**end, "codes": [], "error": "", "at": time.time()})

    def gangs(self) -> list[dict[str, Any]]:
        """See `ports.Driver.gangs`: the rows as plain values. Cleans up second jobs of one gang."""
        mark = self._mark()
        jobs = self._queue(mark)
        look = Look(time.time(), self._show, self._cancel)
        rows = []
        for folder in self._folders():
            found = jobs.pop(folder.path.name, [])
            job = self._keep_one(folder, found) if found else None
            row = status(folder, self.site, job, look)
            if row is not None:
                rows.append({**asdict(row), "pids": list(row.pids)})
        for left in jobs.values():  # of gangs that were forgotten, or whose folder is gone: nothing to start
            for job in left:
                if job.waits:
                    self._cancel(job.id)
        return rows

    def forget(self, gang_id: str) -> None:
        """See `ports.Driver.forget`."""
        folder = self._folder(gang_id)
        end = folder.read(files.EXIT)
        if end is None:
            return
        token = (folder.read(files.SPEC) or {}).get("token", "")
        try:
            self._archive.take(folder.path, gang_id, token)
        except OSError as error:
            raise _storage(folder.path, error) from error

    def logs(self, gang_id: str, tail_bytes: int) -> str:
        """See `ports.Driver.logs`. Where no process printed anything, what the job itself said is shown."""
        listed = self._root / gang_id
        folder = listed if listed.is_dir() else self._archive.find(gang_id)
        if folder is None:
            raise NotFound(f"no gang {gang_id}", where=f"site {self.site}")
        paths = logs_in(folder) or [folder / files.SHIM_LOG]
        share_bytes = tail_bytes // max(1, len(paths))
        texts = [tail(path, share_bytes).decode(errors="replace") for path in paths]
        if len(texts) < 2:
            return "".join(texts)
        return "".join(f"== process {path.stem} ==\n{text}" for path, text in zip(paths, texts, strict=True))

    def check(self) -> dict[str, Any]:
        """What `caudal doctor` asks; see check.py."""
        self._mark()
        with self._lock():
            return {**check.look(), "folder": str(self._root)}

    def _submit(self, folder: Folder, gang: Mapping[str, Any], token: str, mark: str) -> None:
        node = str(gang["node"])
        wish = Wish(
            gang_id=str(gang["gang_id"]),
            role=Role(gang["role"]) if gang["role"] else None,
            resources=Resources(**gang["resources"]),
            node=node if NODE_NAME.fullmatch(node) and self._is_node(node) else "",
            comment=queue.comment(mark, self.site, int(gang["epoch"]), _digest(token)),
            output=str(folder.path.resolve() / files.SHIM_LOG),
        )
        text = script([self._python(), *ISOLATED], PACKAGE_ROOT, folder.path.resolve())
        said = commands.call([*sbatch(wish, self._spec), f"--chdir={folder.path.resolve()}"], stdin=text)
        number = said.strip().split(";")[0]
        if not number.isdigit():
            raise Failed("sbatch printed no job id", why=said.strip()[:200], where=f"site {self.site}")
        folder.write(JOB, {"job": int(number), "at": time.time()})

    def _keep_one(self, folder: Folder, found: list[queue.Job]) -> queue.Job:
        """The job that stands for the gang: the one that began it, else the first that may still run. Others are
        cancelled while they wait; what began by itself leaves by itself."""
        began = (folder.read(RAN) or {}).get("job")
        live = [job for job in found if not job.final]
        kept = next((job for job in found if job.id == began), None) or (live or found)[0]
        for job in live:
            if job.id != kept.id and job.waits:
                self._cancel(job.id)
        if not folder.has(JOB) and folder.has(files.SPEC):
            folder.write(JOB, {"job": kept.id, "at": time.time()})
        return kept

    def _queue(self, mark: str, gang_id: str = "") -> dict[str, list[queue.Job]]:
        only = [f"--name={gang_id}"] if gang_id else []
        said = commands.call(
            [
                "squeue",
                "--noheader",
                "--states=all",
                f"--user={os.getuid()}",
                f"--format={queue.FORMAT}",
                *only,
            ]
        )
        by_gang: dict[str, list[queue.Job]] = defaultdict(list)
        for job in queue.parse(said, mark, self.site):
            by_gang[job.gang_id].append(job)
        return by_gang

    def _show(self, job: int) -> str:
        try:
            return commands.call(["scontrol", "--oneliner", "show", "job", str(job)])
        except Unreachable:
            raise
        except Failed:
            return ""  # forgotten between our two questions

    def _cancel(self, job: int) -> None:
        with suppress(Failed):
            commands.call(["scancel", str(job)])

    def _is_node(self, name: str) -> bool:
        try:
            commands.call(["scontrol", "--oneliner", "show", "node", name])
        except Unreachable:
            raise
        except Failed:
            return False
        return True

    def _write_spec(self, folder: Folder, gang: Mapping[str, Any], token: str) -> None:
        processes = [
            {
                **process,
                "argv": [self._fill(argument, folder.path) for argument in process["argv"]],
                "env": {name: self._fill(value, folder.path) for name, value in process["env"].items()},
            }
            for process in gang["processes"]
        ]
        neuron = gang["resources"]["neuron_cores"]
        environment = {**passed_on(os.environ), **({"NEURON_RT_NUM_CORES": str(neuron)} if neuron else {})}
        record = {
            **{key: gang[key] for key in ("gang_id", "node", "epoch", "fence")},
            "site": self.site,
            "token": token,
            "mark": os.urandom(16).hex(),
            "log_cap_bytes": LOG_CAP_BYTES,
            "requeue": self._spec.requeue,
            "environment": environment,
            "processes": processes,
        }
        try:
            folder.create()
            folder.write_once(files.SPEC, record)
        except OSError as error:
            raise _storage(folder.path, error) from error
        if (folder.read(files.SPEC) or {}).get("token") != token:
            raise Stale(f"gang {gang['gang_id']} was started with another token", where=f"site {self.site}")

    def _raise_fence(self, gang: Mapping[str, Any]) -> None:
        """Write down the newest epoch of a lease. Raises Stale where the gang is of an older one."""
        fences, name, epoch = Folder(self._root / FENCES), str(gang["fence"]), int(gang["epoch"])
        known = int((fences.read(name) or {}).get("epoch", 0))
        if epoch < known:
            raise Stale(
                f"gang {gang['gang_id']} is of epoch {epoch}, its lease of {known}", where=f"site {self.site}"
            )
        if epoch > known:
            try:
                fences.create()
                fences.write(name, {"epoch": epoch})
            except OSError as error:
                raise _storage(fences.path, error) from error

    def _mark(self) -> str:
        """This folder's own mark, by which its jobs are told from another fleet's."""
        root = Folder(self._root)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = root.read(MARK_FILE)
            if not found:
                root.write_once(MARK_FILE, {"mark": os.urandom(8).hex()})
                found = root.read(MARK_FILE) or {}
        except OSError as error:
            raise _storage(self._root, error) from error
        return str(found["mark"])

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One submission at a time, whoever makes it."""
        descriptor = os.open(self._root / SUBMIT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Unreachable(
                            "another submission holds the site", where=str(self._root)
                        ) from None
                    time.sleep(0.02)
                except OSError as error:
                    raise _storage(self._root, error) from error
            yield
        finally:
            os.close(descriptor)

    def _folder(self, gang_id: str) -> Folder:
        assert SAFE_NAME.fullmatch(gang_id), gang_id
        return Folder(self._root / gang_id)

    def _folders(self) -> list[Folder]:
        try:
            return [Folder(p) for p in sorted(self._root.iterdir()) if SAFE_NAME.fullmatch(p.name)]
        except OSError as error:
            raise Unreachable(
                "cannot read the gangs' folders", where=str(self._root), why=str(error)
            ) from error

    def _python(self) -> str:
        return self._spec.python or sys.executable

    def _fill(self, argument: str, folder: Path) -> str:
        return argument.replace("{python}", self._python()).replace("{dir}", str(folder.resolve()))


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """One question: {protocol, site, slurm, do, with} → {ok} or {error}. Never raises for what went wrong."""
    try:
        if question.get("protocol") != PROTOCOL:
            raise Failed(
                "the Caudal on the login host is of another version",
                remedy="install the same version there: `pip install caudal==VERSION` in its .caudal/venv",
            )
        desk = Desk(question["site"], SlurmSpec(**question["slurm"]))
        verb = {name: getattr(desk, name) for name in ("start", "stop", "gangs", "forget", "logs", "check")}
        return {"ok": verb[question["do"]](**question["with"])}
    except CaudalError as error:
        return {"error": error.as_dict()}


def main() -> None:
    """Answer the question on standard input."""
    print(json.dumps(answer(json.loads(sys.stdin.buffer.read(MAX_QUESTION_BYTES)))))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def _storage(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(
        "cannot use the folder that the nodes share",
        where=str(path),
        why=str(error),
        remedy="make it writable, on a file system with flock (Lustre: mount with `flock`)",
    )


if __name__ == "__main__":
    main()
