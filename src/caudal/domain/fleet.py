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
    neuron_cores: int = 0  # of Trainium and Inferentia, which are given out core by core

    def fits(self, free: Resources) -> bool:
        """Whether a request of this size fits into `free` (a millionth of a core is rounding)."""
        return (
            self.cpus <= free.cpus + 1e-6
            and self.memory_bytes <= free.memory_bytes
            and self.accelerators <= free.accelerators
            and self.neuron_cores <= free.neuron_cores
        )

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(
            self.cpus + other.cpus,
            self.memory_bytes + other.memory_bytes,
            self.accelerators + other.accelerators,
            self.neuron_cores + other.neuron_cores,
        )

    def minus(self, other: Resources) -> Resources:
        """What is left after `other` is taken; may be negative where a node is overcommitted."""
        return Resources(
            self.cpus - other.cpus,
            self.memory_bytes - other.memory_bytes,
            self.accelerators - other.accelerators,
            self.neuron_cores - other.neuron_cores,
        )


@dataclass(frozen=True, slots=True)
class MachineType:
    """A kind of machine that can be had."""

    name: str
    resources: Resources
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A machine of the team's own: where it is reached over SSH, and what it has."""

    name: str
    site: str
    address: str
    resources: Resources
    user: str = ""
    port: int = 22
    accelerator: str = ""
    price_usd_per_hour: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """Where machines come from, and how it is reached. Credentials are never here: they come from the cloud's own
    chain. `endpoint`: empty is the cloud's own; `fake` is a fake on this machine, which `caudal up` starts; else a
    URL of this machine. `account`: AWS's profile, Azure's subscription. `max_machines`: never more at one time."""

    name: str
    kind: Literal["local", "aws", "azure", "hosts"]
    endpoint: str = ""
    account: str = ""
    resource_group: str = ""
    max_machines: int = 0  # 0: no bound but the account's quotas
    hosts: tuple[HostSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class SlurmSpec:
    """What Slurm is told about our jobs; empty: its own defaults. Those that begin with `service_` hold for replicas and
    gateways, the others for training (and for services, where theirs are empty).

    `folder` and `python` are paths on the host where Slurm's commands are called, and the same on all nodes: a folder
    on a file system that they share (default: `.caudal/slurm` in the home directory), and an interpreter that has
    Caudal (default: `.caudal/venv/bin/python` there over SSH, else the one that runs this). `requeue`: Slurm may start
    a gang again by itself after a preemption or a dead node; else Caudal starts another one.
    """

    account: str = ""
    partition: str = ""
    qos: str = ""
    service_partition: str = ""
    service_qos: str = ""
    folder: str = ""
    python: str = ""
    requeue: bool = False


@dataclass(frozen=True, slots=True)
class DriverSpec:
    """What runs processes at a site. `address`: the Ray head's (`host:port`, or its Jobs URL), or the host on which
    Slurm's commands are called over SSH (as ssh names it: `me@login`); empty: started on the site's first node (Ray), or
    called here (Slurm)."""

    name: str
    kind: Literal["local", "ray", "slurm"]
    address: str = ""
    slurm: SlurmSpec = field(default_factory=SlurmSpec)


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One failure and interconnect domain, as the fleet file names it.

    `provider` and `driver` are names from the fleet's own lists, or `local`. `region` and `zone` are the cloud's;
    `machine_types` and `markets` bound what may be taken (empty: all that is known there); `image`, `network` are the
    cloud's own ids of what a machine boots and where it is attached.
    """

    name: str
    provider: str = "local"
    driver: str = "local"
    region: str = "local"
    zone: str = ""
    machine_types: tuple[str, ...] = ()
    markets: tuple[Literal["on_demand", "spot", "reserved", "block", "own"], ...] = ()
    image: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class RampStep:
    """From `start` (a date, 2027-01-01) on, a contract has `count` machines in all."""

    start: str
    count: int


@dataclass(frozen=True, slots=True)
class Contract:
    """An offer that was bought: what we may use, from when to when, and what it costs whether used or not.

    `reserved`, `block` and `own` give `count` machines of a type (or `ramp`); `savings` is dollars an hour that are
    owed for use at `discount` off the list; `spend` is `commitment_usd` over the whole term. Dates are days in UTC,
    `start` included, `end` not. `reference` is the provider's own id (a capacity reservation, a group).
    """

    name: str
    kind: Literal["reserved", "block", "savings", "spend", "own"]
    provider: str
    start: str
    end: str
    sites: tuple[str, ...] = ()  # where it holds; empty: at all sites of the provider
    machine_type: str = ""
    count: int = 0
    ramp: tuple[RampStep, ...] = ()
    price_usd_per_hour: Decimal = Decimal(0)  # of one machine; of the commitment, for `savings`
    commitment_usd: Decimal = Decimal(0)
    prepayment_usd: Decimal = Decimal(0)
    discount: float = 0.0
    reference: str = ""


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """What a team may spend in a calendar month (UTC). Over it nothing new is taken for the team; what runs is ended
    only with `stop_running`."""

    team: str
    monthly_usd: Decimal
    stop_running: bool = False


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """Where the front door listens, and whether it asks for a key.

    With `each_site` there is one at every site: the fleet's first site has `port`, the second one the next, and so
    on, and clients may use any of them. Else there is one, at whichever site has room. `hedge`: the share of
    requests that may be sent to a second replica when the first is slow to begin (0: none). `traces`: the address of
    an OpenTelemetry collector (OTLP over HTTP) that gets a span for each generation; empty: none. `processes`: how
    many processes answer at a gateway's port; more than one where one core is not enough. With `keys: optional` a
    request without a key is served, and one with a wrong, revoked or expired key is refused all the same.

    `host` other than this machine's own loopback takes `tls`: with a `certificate` and its `certificate_key` (PEM files,
    absolute paths on the machine of the control process), or with neither, and then by the fleet's own authority for
    the IP address that is `host`. Beyond loopback keys are required.
    """

    host: str = "127.0.0.1"
    port: int = 8601
    keys: Literal["optional", "required"] = "optional"
    each_site: bool = False
    hedge: float = 0.0
    traces: str = ""
    processes: int = 1
    tls: bool = False
    certificate: str = ""
    certificate_key: str = ""

    def url(self, port: int) -> str:
        """The address of the gateway that has this port, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{port}"


@dataclass(frozen=True, slots=True)
class ApiSpec:
    """Where the control API and the web page listen. `host` other than this machine's own loopback is for fleets with
    other machines: it takes `tls`, with a certificate by the fleet's own authority; then reading takes the token, too,
    and the web page stays away."""

    host: str = "127.0.0.1"
    port: int = 8600
    tls: bool = False


@dataclass(frozen=True, slots=True)
class NodesSpec:
    """What a rented machine is given to become a node: a wheel of Caudal and (`lock`) a requirements file with the hash
    of every dependency, as URLs or absolute paths, each with its SHA-256; `python` makes the venv. Without a wheel the
    image has Caudal, in `python`."""

    python: str = "python3"
    wheel: str = ""
    wheel_sha256: str = ""
    lock: str = ""
    lock_sha256: str = ""


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What a `type: fleet` file says. Filled by spec/; read by everything above it."""

    name: str
    sites: tuple[SiteSpec, ...]
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    api: ApiSpec = field(default_factory=ApiSpec)
    providers: tuple[ProviderSpec, ...] = ()
    drivers: tuple[DriverSpec, ...] = ()
    contracts: tuple[Contract, ...] = ()
    budgets: tuple[BudgetSpec, ...] = ()
    nodes: NodesSpec = field(default_factory=NodesSpec)

    def driver_of(self, site: str) -> DriverSpec | None:
        """What runs processes at a site; None where that is this machine itself, or nobody knows the site."""
        found = self.site(site)
        return next((d for d in self.drivers if found is not None and d.name == found.driver), None)

    def begins_ray(self, site: str) -> bool:
        """Whether the site's Ray cluster is begun by its first node, so that nothing runs there before it is."""
        driver = self.driver_of(site)
        return driver is not None and driver.kind == "ray" and not driver.address

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
    contract: str = ""  # the contract that it draws on; empty: paid by the hour


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
    leaves_at: float | None = None  # the provider has said that it takes the machine back then (spot, blocks)
    silent: bool = False  # the machine itself did not answer just now: the row is what it last said
    failed: str = ""  # it did not become a node, and why; empty: nothing is known against it


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
    contract: str = ""  # the contract that it draws on; empty: paid by the hour
    provider: str = ""  # whose machine it is, by name; empty: of its site's provider (rows of older versions)
    active_at: float | None = None
    suspect_since: float | None = None
    ended_at: float | None = None

    @property
    def live(self) -> bool:
        """Whether it still holds, or may still hold, a machine."""
        return self.state is not LeaseState.ENDED
