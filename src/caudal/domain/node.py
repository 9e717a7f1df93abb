"""What is known of a node by its own word: kept as the report of `node:LEASE`."""

from __future__ import annotations

from caudal.domain.gang import Report

PREFIX = "node:"
FAILED = "failed"


def subject(lease_id: str) -> str:
    """Under which name a node's reports are kept; gangs have no colon in theirs."""
    return PREFIX + lease_id


def failed(report: Report) -> bool:
    """Whether it is a node's, and says that the machine is not what it should be."""
    return report.gang_id.startswith(PREFIX) and report.status.get("state") == FAILED
