"""How many clients a process may have with the descriptors that it may open. Pure: numbers in, limits out.

Where accepting fails for want of a descriptor, libuv takes every waiting client and hangs up on it without a word, and
requests that were let in cannot reach a replica. So fewer clients are let in than there are descriptors for.
"""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.errors import UsageError
from caudal.gateway.limits import Limits

OWN = 48
"""What the process itself needs: the loop, its listening socket, its files, its calls to control."""

FEWEST = 64


def fitted(limits: Limits, descriptors: int) -> Limits:
    """The same limits, with as many clients as `descriptors` allow: of those that are left, two in five for clients,
    as many for their replicas, and one in ten for clients that are being refused; the rest is room for what is
    accepted and refused at once. Raises UsageError where there are too few to serve anybody."""
    if descriptors < FEWEST:
        raise UsageError(
            "the gateway may open too few files to serve anybody",
            where="the limit of open files (ulimit -n)",
            why=f"it is {descriptors}, and at least {FEWEST} are needed",
            remedy="Raise it: `ulimit -n 4096`, or LimitNOFILE= in the unit that starts Caudal.",
        )
    spare = descriptors - OWN
    return replace(
        limits,
        connections=min(limits.connections, spare * 2 // 5),
        lingering=min(limits.lingering, max(1, spare // 10)),
    )
