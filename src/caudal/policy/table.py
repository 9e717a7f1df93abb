"""Gangs by id, with indexes by what a decision asks for: their slot, their workload, their lease. A fleet of thousands is
walked once then, and not once for each slot."""

from __future__ import annotations

from collections.abc import Iterable

from caudal.domain.gang import Gang


class GangTable(dict[str, Gang]):
    """A dictionary by id that keeps its indexes. Change it by `table[id] = gang` and `table.pop(id)` only; all come in the
    order in which they were first put in."""

    def __init__(self, gangs: Iterable[Gang] = ()) -> None:
        super().__init__()
        self._by_slot: dict[str, dict[str, None]] = {}
        self._by_workload: dict[str, dict[str, None]] = {}
        self._by_lease: dict[str, dict[str, None]] = {}
        self.changes: list[str] = []  # the lease of each change, in their order
        for gang in gangs:
            self[gang.id] = gang

    def __setitem__(self, key: str, gang: Gang) -> None:
        """Put in, or put in the place of the gang that has this id."""
        assert key == gang.id, "by its own id"
        before = self.get(key)
        if before is not None and before.lease_id != gang.lease_id:
            self._by_lease[before.lease_id].pop(key)
            self.changes.append(before.lease_id)
        super().__setitem__(key, gang)
        self._by_slot.setdefault(gang.slot, {})[key] = None
        self._by_workload.setdefault(gang.workload, {})[key] = None
        self._by_lease.setdefault(gang.lease_id, {})[key] = None
        self.changes.append(gang.lease_id)

    def pop(self, key: str) -> Gang:  # type: ignore[override]
        """Take out. Raises KeyError."""
        gang = super().pop(key)
        self._by_slot[gang.slot].pop(key)
        self._by_workload[gang.workload].pop(key)
        self._by_lease[gang.lease_id].pop(key)
        self.changes.append(gang.lease_id)
        return gang

    def in_slot(self, slot: str) -> list[Gang]:
        """Those of a slot."""
        return [self[key] for key in self._by_slot.get(slot, ())]

    def of(self, workload: str) -> list[Gang]:
        """Those of a workload."""
        return [self[key] for key in self._by_workload.get(workload, ())]

    def on(self, lease_id: str) -> list[Gang]:
        """Those on a lease's node."""
        keys = self._by_lease.get(lease_id)
        return [self[key] for key in keys] if keys else []
