"""What is known of a node by its own word: kept as the report of `node:LEASE`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from caudal.domain.fleet import Lease
from caudal.domain.gang import Report

PREFIX = "node:"
FAILED = "failed"
READY = "ready"
HEAD = "head"


def subject(lease_id: str) -> str:
    """Under which name a node's reports are kept; gangs have no colon in theirs."""
    return PREFIX + lease_id


def failed(report: Report) -> bool:
    """Whether it is a node's, and says that the machine is not what it should be."""
    return report.gang_id.startswith(PREFIX) and report.status.get("state") == FAILED


def ready(report: Report | None) -> bool:
    """Whether a node has said that it belongs to its site."""
    return report is not None and report.status.get("state") == READY


def head_of(
    site: str, leases: Iterable[Lease], reports: Iterable[Report]
) -> tuple[Lease, Mapping[str, Any]] | None:
    """The node that is (or is to be) the head of a site's own cluster, and what it last said; None where there is none.
    One that failed is none any more."""
    said = {r.gang_id: r for r in reports}
    for lease in sorted(leases, key=lambda x: (x.requested_at, x.id)):
        report = said.get(subject(lease.id))
        if not lease.live or lease.site != site or report is None or failed(report):
            continue
        if report.status.get("role") == HEAD:
            return lease, report.status
    return None
