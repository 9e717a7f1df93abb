"""Which Slurm this is and how it is set, for `caudal doctor`. Raises where it is too old or away.

Knows nothing about gangs. Only 22.05 was seen working (docs/howto/slurm.md); what the driver uses is older.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caudal.domain.errors import Failed, Unreachable
from caudal.drivers.slurm import commands

OLDEST = (20, 11)
"""SchedMD stopped mending anything older long ago (CVE-2022-29500 is mended from 20.11.9 on, 2022-05); squeue, scancel
and sbatch have all the options that we use there."""

NOTED = (
    *(
        "SlurmctldTimeout",
        "SlurmdTimeout",
        "KillWait",
        "MinJobAge",
        "MessageTimeout",
        "JobRequeue",
        "GresTypes",
    ),
    *("PreemptType", "PreemptMode", "AuthInfo"),
)


def version(text: str) -> tuple[int, int]:
    """(22, 5) of `slurm-wlm 22.05.8`. Raises Failed where there is none, or it is too old."""
    found = re.search(r"\b(\d{2})\.(\d{2})(?:\.|-|\b)", text)
    if found is None:
        raise Failed("this is not Slurm, or of no known version", why=text.strip()[:200])
    seen = int(found[1]), int(found[2])
    if seen < OLDEST:
        raise Failed(
            f"Slurm {found[1]}.{found[2]} is too old",
            why=f"the driver needs {OLDEST[0]}.{OLDEST[1]:02d} or newer",
            remedy="ask Slurm's administrators for a newer one, or use another site",
        )
    return seen


def look() -> dict[str, Any]:
    """{version, nodes: {node: gres}, settings}. Raises Failed (too old), Unreachable (slurmctld is down)."""
    text = commands.call(["sbatch", "--version"])
    version(text)
    pings = commands.call(["scontrol", "ping"])
    if " is UP" not in pings:
        raise Unreachable("slurmctld is down", why=pings.strip()[:300], remedy="ask Slurm's administrators")
    nodes = commands.call(["sinfo", "--noheader", "--Node", "--format=%N|%G"])
    return {
        "version": text.split()[-1],
        "nodes": dict(line.split("|", 1) for line in nodes.split() if "|" in line),
        "settings": settings(commands.call(["scontrol", "show", "config"])),
    }


def settings(text: str) -> dict[str, str]:
    """What is worth knowing of `scontrol show config`."""
    rows = (line.partition("=") for line in text.splitlines())
    found = {name.strip(): value.strip() for name, _, value in rows}
    return {name: found[name] for name in NOTED if name in found}


def advice(found: Mapping[str, str]) -> list[str]:
    """What of those settings makes Caudal slower than it has to be, with what to set."""
    said = []
    if (timeout_s := _seconds(found.get("SlurmdTimeout", ""))) is not None and timeout_s > 30:
        said.append(f"SlurmdTimeout is {timeout_s} s: so long a dead node is not noticed; 10 is enough")
    kill_s = _seconds(found.get("KillWait", ""))
    if kill_s is not None and kill_s < 10:
        said.append(f"KillWait is {kill_s} s: preempted workers have no 10 s to leave; set 30")
    if found.get("PreemptType", "").endswith("none"):
        said.append("PreemptType is preempt/none: services wait for training; set preempt/partition_prio")
    if "SUSPEND" in found.get("PreemptMode", ""):
        said.append("PreemptMode suspends: a stopped worker looks like one that hangs; set REQUEUE or CANCEL")
    return said


def _seconds(text: str) -> int | None:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None
