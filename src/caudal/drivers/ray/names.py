"""What the control process and the code on a site call things: keys, records, exit codes, times.

Both ends have the same version of this file, because the driver sends it along (package.py). Knows nothing
about HTTP or Ray. Standard library only.
"""

from __future__ import annotations

import re

ENTRY = "start.py"
"""The file of the package that a job's entrypoint runs."""

RECORD = "CAUDAL-RECORD "
"""What a line of a supervisor's output starts with that is meant for the driver; JSON follows."""

BEGUN = "begun"  # from here on processes may exist
STARTED = "started"  # pids, node, logs, started_at
ENDED = "ended"  # exit_code, at, error
LOST = "lost"  # at, error: its processes are gone, and how they ended is unknown
REPEATED = "repeated"  # that gang has run before and was forgotten: nothing was started

GANG_LABEL = "caudal.gang"
SITE_LABEL = "caudal.site"
TOKEN_LABEL = "caudal.token"
EPOCH_LABEL = "caudal.epoch"
LEASE_LABEL = "caudal.lease"

CUT_S = 3.0
"""A gang's processes end themselves when their node has had no answer from the head for so long. Longer than
the head takes to declare a node dead (commands.py): a shorter one would end what Ray still believes in."""

LOOK_S = 0.1  # how often the shim looks whether it is cut off
CUT_MARGIN_S = 0.5  # what a look, a SIGKILL and its effect take, many times over
BEAT_S = 0.25  # how often the keeper asks the head

PLACE_S = 60.0  # how long a gang waits for room on its node
CANNOT_START = 71  # sysexits.h: EX_OSERR; as the local driver says it
FENCED = 75  # sysexits.h: EX_TEMPFAIL: an older epoch than the site has seen
STOPPED_BEFORE = -15  # it was to end before anything was started: counts as SIGTERM

LEASE_SHARE = 0.001  # of a node's lease resource, of which it has 1: room for 1,000 gangs
LEASE_PREFIX = "caudal-lease-"


def job_id(site: str, gang_id: str) -> str:
    """The submission id of a gang's job: with its site, so that several may share a cluster that is somebody's own."""
    return f"caudal-{site}-{gang_id}"


def lease_resource(lease_id: str) -> str:
    """The custom resource with which the node of a lease joins Ray."""
    return LEASE_PREFIX + re.sub(r"[^A-Za-z0-9_-]", "-", lease_id)


def spec_message(site: str, gang_id: str, token: str) -> str:
    """The package name under which a gang's spec, with its secrets, waits for its supervisor: a few seconds."""
    return f"caudal-spec-{_safe(f'{site}-{gang_id}-{token}')}.zip"


def stop_prefix(site: str, gang_id: str, token: str) -> str:
    """What the package names of a gang's stops begin with."""
    return f"caudal-stop-{_safe(f'{site}-{gang_id}-{token}')}--"


def stop_message(site: str, gang_id: str, token: str, grace_s: float) -> str:
    """The package name by which a supervisor is told how soon its gang has to end. One for each grace: a later word
    must not hide an earlier, shorter one. The first in order is the shortest."""
    return f"{stop_prefix(site, gang_id, token)}{round(max(0.0, grace_s) * 1000):012d}.zip"


def grace_of(message: str) -> float:
    """The grace that a stop's name says."""
    return int(message.rpartition("--")[2].removesuffix(".zip")) / 1000


def begun_key(site: str, gang_id: str) -> str:
    """Set once when a gang's processes are about to be started: whoever finds it set starts nothing."""
    return f"begun/{site}/{gang_id}"


def fence_prefix(site: str, lease_id: str, node: str) -> str:
    """Where a lease's epochs are written down."""
    return f"fence/{site}/{lease_id or node}/"


def fence_key(site: str, lease_id: str, node: str, epoch: int) -> str:
    """Set by every start: the newest of a prefix is the lease's fence."""
    return f"{fence_prefix(site, lease_id, node)}{epoch:012d}"


def beat_key(site: str, gang_id: str) -> str:
    """Where a gang's keeper writes that it asks, another value each time."""
    return f"beat/{site}/{gang_id}"


def lost_key(site: str, gang_id: str) -> str:
    """Set when the head has given a gang up: a keeper that reads it ends the gang."""
    return f"lost/{site}/{gang_id}"


def log_file(gang_id: str, index: int) -> str:
    """The file among the node's Ray logs that holds what a process printed."""
    return f"caudal-{_safe(gang_id)}-{index}.log"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
