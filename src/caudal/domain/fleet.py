"""Where things can run: sites, machine types, offers, machines, leases, nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Literal


class Market(StrEnum):
    """How an offer is sold."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"
    BLOCK = "block"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a node has, or what a gang asks of one node."""

    cpus: float = 0.0
    memory_bytes: int = 0
    accelerators: int = 0

    def fits(self, free: Resources) -> bool:
        """Whether a request of this size fits into `free` (a millionth of a core is rounding)."""
        return (
            self.cpus <= free.cpus + 1e-6
            and self.memory_bytes <= free.memory_bytes
            and self.accelerators <= free.accelerators
        )

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(
            self.cpus + other.cpus,
            self.memory_bytes + other.memory_bytes,
            self.accelerators + other.accelerators,
        )

    def minus(self, other: Resources) -> Resources:
        """What is left after `other` is taken; may be negative where a node is overcommitted."""
        return Resources(
            self.cpus - other.cpus,
            self.memory_bytes - other.memory_bytes,
            self.accelerators - other.accelerators,
        )


@dataclass(frozen=True, slots=True)
class MachineType:
    """A kind of machine that can be had."""

    name: str
    resources: Resources
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One failure and interconnect domain, as the fleet file names it."""

    name: str
    provider: str = "local"
    driver: str = "local"
    region: str = "local"


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """Where the front door listens, and whether it asks for a key.

    With `each_site` there is one at every site: the fleet's first site has `port`, the second one the next, and so
    on, and clients may use any of them. Else there is one, at whichever site has room. `hedge`: the share of
    requests that may be sent to a second replica when the first is slow to begin (0: none). `traces`: the address of
    an OpenTelemetry collector (OTLP over HTTP) that gets a span for each generation; empty: none. `processes`: how
    many processes answer at a gateway's port; more than one where one core is not enough. With `keys: optional` a
    request without a key is served, and one with a wrong, revoked or expired key is refused all the same.
    """

    host: str = "127.0.0.1"
    port: int = 8601
    keys: Literal["optional", "required"] = "optional"
    each_site: bool = False
    hedge: float = 0.0
    traces: str = ""
    processes: int = 1


@dataclass(frozen=True, slots=True)
class ApiSpec:
    """Where the control API and the web page listen."""

    host: str = "127.0.0.1"
    port: int = 8600


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What a `type: fleet` file says. Filled by spec/; read by everything above it."""

    name: str
    sites: tuple[SiteSpec, ...]
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    api: ApiSpec = field(default_factory=ApiSpec)

    def site(self, name: str) -> SiteSpec | None:
        """The site of that name, if the fleet has it."""
        return next((s for s in self.sites if s.name == name), None)

    def gateway_ports(self) -> tuple[int, ...]:
        """The ports on which gateways listen: one, or one for each site in their order."""
        count = len(self.sites) if self.gateway.each_site else 1
        return tuple(self.gateway.port + number for number in range(count))


@dataclass(frozen=True, slots=True)
class Offer:
    """machine type × site × market × price, with where the price comes from and of which date."""

    id: str
    site: str
    machine_type: MachineType
    market: Market
    price_usd_per_hour: Decimal
    source: str
    as_of: str
    available: int | None = None  # how many more can be had now; None: unknown


class MachineState(StrEnum):
    """A machine's state in its provider's own list. A machine that is not listed is gone."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Machine:
    """One row of a provider's own list: what exists, and what bills, whatever we believe."""

    id: str
    site: str
    machine_type: str
    state: MachineState
    lease_id: str = ""  # our tag; empty: not ours, never to be touched
    address: str = ""


class LeaseState(StrEnum):
    """requested → active → (suspect →) releasing → ended."""

    REQUESTED = "requested"
    ACTIVE = "active"
    SUSPECT = "suspect"
    RELEASING = "releasing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Lease:
    """Our hold on one node under an offer, with its price frozen and an epoch that fences stale holders.

    `epoch` is raised when contact is lost: whatever runs under an older epoch must not be believed.
    `machine_id` is filled once the provider's list shows the machine.
    """

    id: str
    node: str
    site: str
    machine_type: MachineType
    offer_id: str
    market: Market
    price_usd_per_hour: Decimal
    state: LeaseState
    epoch: int
    requested_at: float
    machine_id: str = ""
    active_at: float | None = None
    suspect_since: float | None = None
    ended_at: float | None = None

    @property
    def live(self) -> bool:
        """Whether it still holds, or may still hold, a machine."""
        return self.state is not LeaseState.ENDED
