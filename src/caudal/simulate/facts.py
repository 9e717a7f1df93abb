"""What is true in a simulation, whatever the control process believes: all that a checker may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from caudal.domain.fleet import Lease, Machine
from caudal.domain.gang import Gang, Role
from caudal.domain.workload import ServiceSpec, Workload
from caudal.drivers.fake import FakeDriver, Process
from caudal.providers.fake import FakeProvider
from caudal.simulate.kernel import Kernel
from caudal.simulate.models import FakeModels
from caudal.simulate.scenario import Scenario
from caudal.simulate.watch import WatchedStore


@dataclass(slots=True)
class Facts:
    """The fakes' own truth, and every row that was ever committed.

    `faults` counts what is wrong right now; `disturbed_at` is when something last went wrong or was healed.
    """

    kernel: Kernel
    scenario: Scenario
    watch: WatchedStore
    drivers: Mapping[str, FakeDriver]
    providers: Mapping[str, FakeProvider]
    models: FakeModels
    trace: Callable[[str], None]
    faults: int = 0
    disturbed_at: float = 0.0

    def calm_s(self) -> float:
        """For how long nothing has been wrong and nothing has been healed; 0 while something is wrong."""
        return 0.0 if self.faults else self.kernel.now() - self.disturbed_at

    def alive(self) -> Iterator[tuple[Gang, Process]]:
        """The gangs that truly live, reachable or not, with what the store knows of them."""
        for site in sorted(self.drivers):
            for process in self.drivers[site].processes():
                if process.alive:
                    gang = self.watch.gangs.get(process.spec.gang_id)
                    assert gang is not None, f"{process.spec.gang_id} lives and was never written down"
                    yield gang, process

    def machines(self) -> dict[str, Machine]:
        """The machines that truly exist, listed or not."""
        return {m.id: m for name in sorted(self.providers) for m in self.providers[name].existing()}

    def leases(self) -> list[Lease]:
        """The leases that are live in the books."""
        return [lease for lease in self.watch.leases.values() if lease.live]

    def superseded(self, gang: Gang) -> bool:
        """Whether the books say that it is over, or another start of its slot came after it."""
        row = self.watch.gangs[gang.id]
        newer = any(g.slot == gang.slot and g.incarnation > gang.incarnation for g in self._rows())
        return row.ended_at is not None or newer

    def fenced(self, gang: Gang) -> bool:
        """Whether its lease has ended or has a newer epoch than the gang: it must not be believed."""
        lease = self.watch.leases[gang.lease_id]
        return not lease.live or lease.epoch > gang.epoch

    def wanted(self, gang: Gang) -> bool:
        """Whether users still want exactly this gang: its workload, generation, model and version. A replica that
        drains since its model's demand fell is wanted no more."""
        if gang.role is Role.GATEWAY:
            return self.serves()
        workload = self.watch.workloads.get(gang.workload)
        if workload is None or not workload.wanted or workload.over:
            return False
        if workload.generation != gang.generation:
            return False
        return gang.role is not Role.REPLICA or self._newest_served(workload, gang)

    def serves(self) -> bool:
        """Whether users want a service, and so the gateway."""
        rows = self.watch.workloads.values()
        return any(isinstance(w.spec, ServiceSpec) and w.wanted and not w.over for w in rows)

    def _newest_served(self, workload: Workload, gang: Gang) -> bool:
        assert isinstance(workload.spec, ServiceSpec), f"{workload.name} has a replica and is no service"
        drains = gang.draining_at is not None
        served = any(m.id == gang.model and not (m.scale.on and drains) for m in workload.spec.models)
        newest = any(m.id == gang.model and m.version == gang.model_version for m in self.models.list())
        return served and newest

    def _rows(self) -> list[Gang]:
        return list(self.watch.gangs.values())
