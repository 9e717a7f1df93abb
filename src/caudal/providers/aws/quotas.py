"""How many vCPUs the account may run, by kind of machine and market, from Service Quotas.

EC2's quotas count vCPUs, not machines: a p5.48xlarge needs 192 of the P quota. Says what the quota is, not how much of
it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caudal.catalog.aws_types import lookup
from caudal.domain.fleet import Market
from caudal.providers.aws.clients import Clients

ON_DEMAND = {
    "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances": ("c", "m"),
    "Running On-Demand G and VT instances": ("g",),
    "Running On-Demand P instances": ("p",),
    "Running On-Demand Trn instances": ("trn",),
    "Running On-Demand Inf instances": ("inf",),
}
SPOT = {
    "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests": ("c", "m"),
    "All G and VT Spot Instance Requests": ("g",),
    "All P4, P3 and P2 Spot Instance Requests": ("p4d", "p4de"),
    "All P5 Spot Instance Requests": ("p5", "p5e", "p5en"),
    "All P6 Spot Instance Requests": ("p6-b200",),
    "All Trn Spot Instance Requests": ("trn",),
    "All Inf Spot Instance Requests": ("inf",),
}
"""Names of quotas, and the families (`p5`) or letters (`p`) that count against them. Service Quotas' own names, as the
EC2 user guide lists them (read 2026-11)."""


@dataclass(frozen=True, slots=True)
class VcpuQuota:
    """One quota of a region. `adjustable`: AWS may raise it when asked."""

    region: str
    code: str
    name: str
    market: Market
    families: tuple[str, ...]
    vcpus: float
    adjustable: bool

    def covers(self, machine_type: str, market: Market) -> bool:
        """Whether machines of that type count against it."""
        family = machine_type.partition(".")[0]
        return market is self.market and any(
            family == known or _letters(family) == known for known in self.families
        )

    def machines(self, machine_type: str) -> int:
        """How many machines of that type it allows in all."""
        return int(self.vcpus // lookup(machine_type).machine_type.resources.cpus)


def vcpu_quotas(clients: Clients, region: str) -> Sequence[VcpuQuota]:
    """The account's quotas in a region, by name. Raises NotAllowed, Unreachable."""
    found = []
    for page in clients.pages(region, "list_service_quotas", "service-quotas", ServiceCode="ec2"):
        for row in page.get("Quotas", ()):
            name = str(row.get("QuotaName", ""))
            market = Market.ON_DEMAND if name in ON_DEMAND else Market.SPOT
            families = ON_DEMAND.get(name) or SPOT.get(name)
            if families is not None:
                found.append(
                    VcpuQuota(
                        region,
                        str(row.get("QuotaCode", "")),
                        name,
                        market,
                        families,
                        float(row.get("Value", 0.0)),
                        bool(row.get("Adjustable", False)),
                    )
                )
    return sorted(found, key=lambda quota: quota.name)


def _letters(family: str) -> str:
    """`p` of `p5en`, `trn` of `trn1n`."""
    end = next((number for number, sign in enumerate(family) if sign.isdigit()), len(family))
    return family[:end]
