"""What a subscription may have in a region, and what of it is used: for `caudal doctor`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Quota:
    """`name` is Azure's own (`standardNDSH100v5Family`, `cores`, `lowPriorityCores`), `unit` mostly `Count`, which
    is cores for the families."""

    region: str
    name: str
    label: str
    used: int
    limit: int
    unit: str = "Count"

    @property
    def left(self) -> int:
        """How much more may be had."""
        return max(0, self.limit - self.used)


def quotas(region: str, usages: Iterable[Mapping[str, Any]], families: Iterable[str] = ()) -> list[Quota]:
    """Azure's usage rows as quotas; with `families` only theirs and those that bind all sizes together."""
    wanted = {family.lower() for family in families} | {"cores", "lowprioritycores", "virtualmachines"}
    found = [_quota(region, row) for row in usages]
    return [q for q in found if len(wanted) == 3 or q.name.lower() in wanted]


def _quota(region: str, row: Mapping[str, Any]) -> Quota:
    name = row.get("name") or {}
    return Quota(
        region,
        str(name.get("value", "")),
        str(name.get("localizedValue", "")),
        int(row.get("currentValue", 0)),
        int(row.get("limit", 0)),
        str(row.get("unit", "Count")),
    )
