"""squeue's rows, and what a job's state says of its gang. Pure: text in, values out.

Format strings, not `--json`: the JSON's shape changes with every release (a number became a table of three in
23.02), `-o` has been the same since Slurm 2. Fields that anybody may fill (the comment) come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FIELDS = ("%A", "%T", "%r", "%N", "%S", "%j", "%k")
FORMAT = "|".join(FIELDS)
"""Job id, state, reason, nodes, start, name, comment."""

PENDING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
NODE_GONE = frozenset({"NODE_FAIL", "BOOT_FAIL"})
BY_ITSELF = frozenset({"COMPLETED", "FAILED"})
SIGTERM, SIGKILL = -15, -9

_EXIT = re.compile(r"\bExitCode=(\d+):(\d+)")
_COMMENT = re.compile(r"caudal:([0-9a-f]{16}):([^:|\s]+):(\d+):([0-9a-f]{16})\s*")


@dataclass(frozen=True, slots=True)
class Job:
    """One row of squeue: a job of ours. `nodes` is empty until it has some."""

    id: int
    state: str
    reason: str
    nodes: str
    gang_id: str
    epoch: int
    token_digest: str

    @property
    def final(self) -> bool:
        """Whether Slurm will never (again) run it. A state that we do not know counts as one that may."""
        return self.state in FINAL

    @property
    def waits(self) -> bool:
        """Whether it has yet to start, or to start again."""
        return self.state in PENDING


FINAL = (
    NODE_GONE
    | BY_ITSELF
    | {"CANCELLED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "REVOKED", "LAUNCH_FAILED"}
    | {"RECONFIG_FAIL"}
)


def comment(mark: str, site: str, epoch: int, token_digest: str) -> str:
    """What says in squeue whose a job is. Everybody sees it: a digest of the token, never the token."""
    return f"caudal:{mark}:{site}:{epoch}:{token_digest}"


def parse(text: str, mark: str, site: str) -> list[Job]:
    """Our site's jobs among squeue's rows, by id; other people's and other fleets' are left out."""
    rows = (line.split("|", len(FIELDS) - 1) for line in text.splitlines())
    return sorted(_ours(rows, mark, site), key=lambda job: job.id)


def _ours(rows: Iterable[list[str]], mark: str, site: str) -> Iterable[Job]:
    for row in rows:
        if len(row) != len(FIELDS) or not row[0].isdigit():
            continue
        said = _COMMENT.fullmatch(row[-1])
        if said is None or said[1] != mark or said[2] != site:
            continue
        number, state, reason, nodes, _start, name, _ = row
        yield Job(int(number), state, "" if reason == "None" else reason, nodes, name, int(said[3]), said[4])


def exit_code(state: str, shown: str, ran: bool) -> int | None:
    """A gang's exit code where its keeper left none, from the job's final state and `scontrol show job`.

    None: nobody knows, so the gang is lost. A job that Slurm ended (preempted, cancelled, out of time) never counts
    as one that ended well, whatever its processes said to the signal. `ran`: it had begun.
    """
    if state in NODE_GONE:
        return None
    found = _EXIT.search(shown)
    code = 0 if found is None else (-int(found[2]) or int(found[1]))
    if state == "OUT_OF_MEMORY":
        return SIGKILL
    if state in BY_ITSELF:
        return code if found is not None and (code or state == "COMPLETED") else None
    if state in {"CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE"}:
        return (code if ran else 0) or SIGTERM
    return None
