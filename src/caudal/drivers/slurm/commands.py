"""Slurm's commands as calls: bounded in time, with a clean environment, and their errors as ours.

Knows nothing about gangs. `TIMEOUT_S` bounds each: a slurmctld that hangs makes its clients wait and try again
for a minute, and the control loop has other sites to look after.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from caudal.domain.errors import (
    CaudalError,
    Failed,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
)

TIMEOUT_S = 10.0  # MessageTimeout, after which a client gives up on one message, is 10 s by default
TIMEOUT_VARIABLE = "CAUDAL_SLURM_TIMEOUT_S"

PASSED_ON = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LD_LIBRARY_PATH", "KRB5CCNAME", "SLURM_CONF"})
"""What Slurm's commands get of our environment, and the job of theirs. Nothing else: slurmctld keeps the environment
of every job in its state directory, and a credential has no business there."""

LOST_CONTACT = re.compile(
    r"unable to contact|timed out|connection (refused|reset)|zero bytes were transmitted|communication"
    r"|munge|authentication|no route to host|slurmctld .*(down|not respond)|controller.* (busy|not respond)",
    re.IGNORECASE,
)
SAID: tuple[tuple[str, type[CaudalError], str], ...] = (
    (r"policy|quota", QuotaExceeded, "ask Slurm's administrators to raise the limit, or run less"),
    (r"partition", NotOffered, "name a partition that `sinfo` lists, in the driver's `slurm: partition`"),
    (r"account|association", NotOffered, "name an account that `sacctmgr show assoc` gives you"),
    (r"invalid qos", NotOffered, "name a QOS that `sacctmgr show qos` lists"),
    (
        r"gres|node configuration|memory spec|cpu count",
        NotOffered,
        "ask for what `sinfo -o '%N %c %m %G'` lists",
    ),
    (r"permission|denied|not authorized", NotAllowed, "ask Slurm's administrators for the right to submit"),
    (r"node", NoCapacity, "see `sinfo -R` for nodes that are out of service"),
)
"""What sbatch complains of → which error, and what to do. The first that is found. Texts: Slurm 22.05's slurm_errno.c."""


def call(argv: Sequence[str], stdin: str | None = None) -> str:
    """Run one command and return what it printed. Raises Unreachable where no answer came in time (then it may or
    may not have taken effect), and what `SAID` has for an answer that is a refusal, else Failed."""
    try:
        done = subprocess.run(
            [*argv], input=stdin or "", capture_output=True, text=True, errors="replace",
            env=environment(os.environ), timeout=_timeout_s(), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unreachable(
            f"{argv[0]} had no answer after {_timeout_s():.0f} s",
            remedy="see whether slurmctld runs: `scontrol ping`",
        ) from error
    except OSError as error:
        raise Failed(
            f"cannot run {argv[0]}",
            why=str(error),
            remedy="install Slurm's client commands here, or give the driver the `address` of a host that has them",
        ) from error
    if done.returncode == 0:
        return done.stdout
    raise refusal(argv[0], done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands: times in seconds since 1970, messages in English."""
    kept = {
        name: value
        for name, value in ours.items()
        if name in PASSED_ON or name.startswith(("SBATCH_", "SACKD_"))
    }
    return {**kept, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}


def refusal(command: str, said: str) -> CaudalError:
    """The error for what a command printed when it failed."""
    line = said.splitlines()[-1][:500]
    if LOST_CONTACT.search(said):
        return Unreachable(f"{command}: no contact with slurmctld", why=line, remedy="see `scontrol ping`")
    for pattern, kind, remedy in SAID if command == "sbatch" else ():
        if re.search(pattern, line, re.IGNORECASE):
            return kind("Slurm refuses the job", why=line, remedy=remedy)
    return Failed(f"{command} failed", why=line)


def _timeout_s() -> float:
    try:
        return min(600.0, max(0.1, float(os.environ.get(TIMEOUT_VARIABLE, ""))))
    except ValueError:
        return TIMEOUT_S
