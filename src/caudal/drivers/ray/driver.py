"""Gangs as jobs of a Ray cluster: one cluster per site, reached through its Jobs API and nothing else.

Everything that must be true is kept by the cluster: this process may be gone for hours and another one knows the
same. A gang's id is its job's submission id, so that starting is once however often asked. What the gang is
given (configuration, secrets) travels as a message that the supervisor takes out of the head's memory, never in
what Ray lists. Ray's autoscaler has no part in it: nodes come and go by leases only.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from caudal.domain.errors import CaudalError, Failed, NotFound, Stale, Unreachable
from caudal.domain.gang import GangSpec, GangStatus
from caudal.drivers.ray import names
from caudal.drivers.ray.commands import check_version
from caudal.drivers.ray.jobs import Jobs
from caudal.drivers.ray.package import code
from caudal.drivers.ray.records import Said, is_over, parse, status, told

LOG_CAP_BYTES = 16 << 20  # per process
LINE_BYTES = 16  # of a log's tail: more lines than needed are cut, fewer would miss its beginning
MAX_LINES = 20_000
SETTLE_S = 3.0


class RayDriver:
    """Implements `ports.Driver` for one site. `address` is the Jobs URL, or the head's `host:port`; where the head is
    started on the site's first node, a call that says it, and is empty until that is known.

    `cut_s`: a gang's processes end when their node has had no answer from the head for so long. `place_s`: how long
    a gang may wait for room. `token_file` None: Ray's own chain.
    """

    def __init__(
        self,
        site: str,
        address: str | Callable[[], str],
        *,
        token_file: Path | None = None,
        cut_s: float = names.CUT_S,
        place_s: float = names.PLACE_S,
        log_cap_bytes: int = LOG_CAP_BYTES,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.site = site
        say = address if callable(address) else lambda: str(address)
        self._jobs = Jobs(say, f"site {site}", token_file)
        self._cut_s, self._place_s, self._log_cap_bytes = cut_s, place_s, log_cap_bytes
        self._steady = steady
        self._new_enough = False
        self._said: dict[
            str, tuple[Any, Said]
        ] = {}  # by gang: the job's start time, and what its supervisor said
        self._over_since: dict[str, float] = {}  # when a gang's supervisor was first seen to be over
        self._forgotten: set[str] = set()  # and not deleted yet

    def close(self) -> None:
        """Close the connections; what runs goes on."""
        self._jobs.close()

    def version(self) -> str:
        """The site's Ray. Raises Unreachable, NotAllowed, Failed where it is too old."""
        found = self._jobs.version()
        check_version(found, f"site {self.site}")
        return found

    def start(self, spec: GangSpec, token: str) -> None:
        """Start it, once, however often asked; returns when `gangs` lists it. Raises Stale where another token has
        started that id, Unreachable, NotAllowed, Failed."""
        assert spec.site == self.site and spec.processes, spec
        if not self._new_enough:
            self.version()
            self._new_enough = True
        job = self._job(spec.gang_id)
        if job is None:
            name, data = code()
            if not self._jobs.has_package(name):
                self._jobs.send(name, data)
            message = names.spec_message(self.site, spec.gang_id, token)
            self._jobs.send(message, json.dumps(self._record(spec, token)).encode())
            self._jobs.submit(self._submission(spec, token, name, message))
            job = self._job(spec.gang_id)
        if job is None:
            raise Failed(f"gang {spec.gang_id} was accepted and is not listed", where=f"site {self.site}")
        if _labels(job).get(names.TOKEN_LABEL) != token:
            raise Stale(f"gang {spec.gang_id} was started with another token", where=f"site {self.site}")

    def stop(self, gang_id: str, grace_s: float) -> None:
        """Ask it to end, and make it end after the grace. Returns at once. One that is over or unknown is fine."""
        job = self._job(gang_id)
        if job is None or is_over(job):
            return
        token = str(_labels(job).get(names.TOKEN_LABEL, ""))
        self._jobs.send(names.stop_message(self.site, gang_id, token, grace_s), b"stop")
        self._jobs.stop(self._id(gang_id))

    def gangs(self) -> Sequence[GangStatus]:
        """All gangs of this site, by id. One whose supervisor died is LOST only once its processes must be gone.
        Raises Unreachable, NotAllowed."""
        jobs = {_gang(job): job for job in self._jobs.all() if self._ours(job)}
        self._over_since = {g: at for g, at in self._over_since.items() if g in jobs}
        self._forgotten &= jobs.keys()
        for gang_id in sorted(self._forgotten):
            self._delete(jobs[gang_id])
        rows = [self._status(jobs[gang_id]) for gang_id in sorted(jobs) if gang_id not in self._forgotten]
        return [row for row in rows if row is not None]

    def forget(self, gang_id: str) -> None:
        """Drop a gang that is over from the list. Its logs stay on its node as long as Ray's do; this driver still
        finds them, the next one does not. One that is not over stays; an unknown one is fine."""
        job = self._job(gang_id)
        if job is None:
            return
        row = self._status(job)
        if row is not None and not row.alive:
            self._forgotten.add(gang_id)
            self._delete(job)

    def _delete(self, job: Mapping[str, Any]) -> None:
        """Delete a job that is over, but not at once: Ray's own monitor, which looks every second, would write one
        that it finds deleted back into the list, as a job that failed (Ray 2.60). It is hidden meanwhile."""
        since = self._over_since.setdefault(_gang(job), self._steady())
        if self._steady() - since >= SETTLE_S:
            self._jobs.delete(str(job["submission_id"]))

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """The end of what its processes printed; with more than one each has an equal share under a heading. Where
        it printed nothing, why it did not start or was lost. Raises NotFound, Unreachable."""
        job = self._job(gang_id)
        if job is not None:
            said = self._heard(job)
        elif gang_id in self._said:
            said = self._said[gang_id][1]
        else:
            raise NotFound(f"no gang {gang_id}", where=f"site {self.site}")
        texts = [self._tail(said.node, file, tail_bytes // max(1, len(said.logs))) for file in said.logs]
        if not any(texts) and job is not None and (said.started is None or said.ended is not None):
            return _end(told(self._output(job)).encode(), tail_bytes)
        if len(texts) < 2:
            return "".join(texts)
        return "".join(f"== process {index} ==\n{text}" for index, text in enumerate(texts))

    def _tail(self, node: str, file: str, tail_bytes: int) -> str:
        if tail_bytes <= 0:
            return ""
        lines = min(MAX_LINES, max(10, tail_bytes // LINE_BYTES))
        newest = self._jobs.log_tail(node, file, lines)
        if len(newest) < tail_bytes:  # the log may have been turned just now
            newest = self._jobs.log_tail(node, f"{file}.1", lines) + newest
        return _end(newest, tail_bytes)

    def _id(self, gang_id: str) -> str:
        return names.job_id(self.site, gang_id)

    def _job(self, gang_id: str) -> dict[str, Any] | None:
        """The gang's job; None where there is none, or only what Ray's monitor wrote of one that was deleted."""
        job = self._jobs.one(self._id(gang_id))
        if job is None or self._ours(job):
            return job
        if is_over(job):
            self._jobs.delete(self._id(gang_id))
        return None

    def _ours(self, job: Mapping[str, Any]) -> bool:
        return _labels(job).get(names.SITE_LABEL) == self.site

    def _status(self, job: Mapping[str, Any]) -> GangStatus | None:
        """What is true of one gang; None where it is the echo of one that had been forgotten."""
        said = self._heard(job)
        gang_id = _gang(job)
        if not is_over(job):
            return status(job, said, surely_gone=False)
        over_s = self._steady() - self._over_since.setdefault(gang_id, self._steady())
        if said.repeated:
            self._forgotten.add(gang_id)
            return None
        return status(job, said, surely_gone=over_s > self._cut_s + names.CUT_MARGIN_S)

    def _heard(self, job: Mapping[str, Any]) -> Said:
        """What its supervisor said, asked for only where it may have said more since."""
        gang_id = _gang(job)
        stamp, said = self._said.get(gang_id, (None, Said()))
        if stamp != job.get("start_time"):
            said = Said()  # the id was used again, after it had been forgotten
        complete = said.ended is not None or said.repeated
        waiting = said.started is not None and not is_over(job)
        if job.get("status") != "PENDING" and not complete and not waiting:
            said = parse(self._output(job) or str(job.get("message") or ""))
            self._said[gang_id] = (job.get("start_time"), said)
        return said

    def _output(self, job: Mapping[str, Any]) -> str:
        """What the supervisor printed; empty where the head has it no more."""
        try:
            return self._jobs.output(str(job["submission_id"]))
        except CaudalError as error:
            if isinstance(error, Unreachable):
                raise
            return ""

    def _record(self, spec: GangSpec, token: str) -> dict[str, Any]:
        processes = [
            {"argv": list(p.argv), "env": dict(p.env), "files": dict(p.files)} for p in spec.processes
        ]
        return {
            "gang_id": spec.gang_id,
            "site": spec.site,
            "node": spec.node,
            "lease_id": spec.lease_id,
            "epoch": spec.epoch,
            "token": token,
            "resources": asdict(spec.resources),
            "cut_s": self._cut_s,
            "place_s": self._place_s,
            "log_cap_bytes": self._log_cap_bytes,
            "processes": processes,
        }

    def _submission(self, spec: GangSpec, token: str, package: str, message: str) -> dict[str, Any]:
        """The job. Everything in here is listed by Ray: nothing in here is secret."""
        words = [names.ENTRY, spec.gang_id, message]
        return {
            "submission_id": self._id(spec.gang_id),
            "entrypoint": f"exec python {shlex.join(words)}",
            "runtime_env": {
                "working_dir": f"gcs://{package}",
                # Ray would kill the supervisor 3 s after its SIGTERM; it ends by itself, after the gang's grace.
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(30 * 86400)},
            },
            "metadata": {
                names.GANG_LABEL: spec.gang_id,
                names.SITE_LABEL: spec.site,
                names.TOKEN_LABEL: token,
                names.EPOCH_LABEL: str(spec.epoch),
                names.LEASE_LABEL: spec.lease_id,
            },
        }


def _labels(job: Mapping[str, Any]) -> Mapping[str, Any]:
    found = job.get("metadata")
    return found if isinstance(found, dict) else {}


def _gang(job: Mapping[str, Any]) -> str:
    return str(_labels(job).get(names.GANG_LABEL, ""))


def _end(data: bytes, tail_bytes: int) -> str:
    return data[-tail_bytes:].decode(errors="replace") if tail_bytes > 0 else ""
