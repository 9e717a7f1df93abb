"""The seams: everything that Caudal asks of the world, and so the list of what the simulator replaces.

Methods block and return, or raise a CaudalError. All calls that change something are idempotent: asking
twice for the same id or token is asking once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from caudal.domain.decision import Decision, Intent
from caudal.domain.event import Event, Point
from caudal.domain.fleet import FleetSpec, Lease, Machine, Offer, SiteSpec
from caudal.domain.gang import Gang, GangSpec, GangStatus, Report
from caudal.domain.key import ApiKey, UsageBatch, UsageHour
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import State
from caudal.domain.workload import Workload


class Clock(Protocol):
    """Time. In the simulator it is virtual."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after that long."""
        ...


@dataclass(frozen=True, slots=True)
class Holder:
    """Who leads: enough to say it to a person and to see whether the process still lives."""

    name: str
    host: str
    pid: int
    pid_started_at: float


@dataclass(frozen=True, slots=True)
class Change:
    """Rows to write in one transaction; a row replaces the one with its key."""

    fleet: FleetSpec | None = None
    workloads: Sequence[Workload] = ()
    leases: Sequence[Lease] = ()
    gangs: Sequence[Gang] = ()
    intents: Sequence[Intent] = ()
    decision: Decision | None = None
    events: Sequence[Event] = ()
    keys: Sequence[ApiKey] = ()


Notable = Callable[[Mapping[str, Any], Sequence[Point]], Sequence[Event]]
"""The events of a report: from the status that its gang reported last (empty: none) and the points that are new.
Pure: it is called inside a transaction."""


class Store(Protocol):
    """The state of the fleet, in transactions."""

    def read(self) -> State:
        """One consistent view."""
        ...

    def commit(
        self, change: Change, *, expect_version: int | None = None, leader_epoch: int | None = None
    ) -> int:
        """Write all of it or nothing; returns the new version. Raises Stale where the version is not the
        expected one, LostLeadership where another epoch leads."""
        ...

    def lead(self, holder: Holder, now: float, ttl_s: float) -> int:
        """Become the leader, or stay it; returns the epoch (it rises whenever the holder changes). Raises
        StateHeld, naming the holder, while another's term has not run out."""
        ...

    def leader(self) -> tuple[Holder, int, float] | None:
        """The holder, the epoch and when its term ends; None before the first."""
        ...

    def resign(self, epoch: int) -> None:
        """End the term now, if that epoch still leads."""
        ...

    def put_report(
        self, report: Report, points: Sequence[Point] = (), notable: Notable | None = None
    ) -> None:
        """Keep a gang's last report, and append its points (one that is there already is left alone). What
        `notable` says of them is kept with them, wholly or not at all, so that it is told exactly once."""
        ...

    def points(self, run: str, after_seq: int = -1, limit: int = 10_000) -> list[Point]:
        """A run's curve, in order."""
        ...

    def events(self, after_seq: int = 0, limit: int = 1000, subject: str | None = None) -> list[Event]:
        """Events in order of seq."""
        ...

    def last_event_seq(self) -> int:
        """The newest event's seq; 0 where there is none."""
        ...

    def decisions(self, subject: str, limit: int = 20) -> list[Decision]:
        """The newest decisions that name the subject or something below it, newest first."""
        ...

    def intents(self, subject: str, limit: int = 50) -> list[Intent]:
        """A subject's intents in any state, newest first."""
        ...

    def lease_history(self, since: float = 0.0, until: float = math.inf) -> list[Lease]:
        """Every lease that was live at some moment of since <= t < until, by id; also those that have ended: they
        are kept for ever, since bills are made from them."""
        ...

    def gang_history(self, since: float = 0.0, until: float = math.inf) -> list[Gang]:
        """Every gang that was not over at some moment of since <= t < until, by slot and incarnation."""
        ...

    def api_keys(self) -> list[ApiKey]:
        """Every key that was ever made, by id; also those that were revoked."""
        ...

    def add_usage(self, batches: Sequence[UsageBatch]) -> None:
        """Add what was used to the sums: each batch once, however often it is brought, also where this and
        whoever brings it are cut off at any moment. The batches of a source come in the order of their seq."""
        ...

    def usage(
        self, since: float = 0.0, until: float = math.inf, key_id: str | None = None
    ) -> list[UsageHour]:
        """What was used in the hours that began at `since` or later and before `until`, by key, model, hour."""
        ...


class Blobs(Protocol):
    """Bytes by path in an object store. Writes are whole: a reader sees all of it or nothing."""

    url: str

    def put(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Raises AlreadyExists where `if_absent` and something is there; StorageFailed when not kept."""
        ...

    def get(self, path: str) -> bytes:
        """Raises NotFound."""
        ...

    def put_file(self, path: str, file: Path, *, if_absent: bool = False) -> None:
        """`put` of a file that may be larger than memory: streamed, and where the store is this machine's
        disk, linked or copied. The file is not to be changed afterwards. Raises as `put` does, and leaves
        nothing at `path` where it fails."""
        ...

    def get_file(self, path: str, target: Path) -> None:
        """`get` into a file that may be larger than memory: streamed beside `target` and renamed into its
        place, so that `target` is never half-written. Raises NotFound, StorageFailed."""
        ...

    def list(self, prefix: str) -> list[str]:
        """The paths that start with `prefix` (a folder, with its slash), sorted."""
        ...

    def delete(self, path: str) -> None:
        """A path that is not there is fine."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the object lies as a file of this machine, if it does; None: it has to be fetched."""
        ...


class Provider(Protocol):
    """Where machines come from. One instance serves all sites that name it."""

    def offers(self) -> Sequence[Offer]:
        """What can be had now, and at what price."""
        ...

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Ask for a machine, tagged with the lease. Raises NoCapacity. Done when `machines` lists it."""
        ...

    def release(self, machine_id: str) -> None:
        """Give it back. Done when `machines` no longer lists it."""
        ...

    def machines(self) -> Sequence[Machine]:
        """The provider's own list. Raises Unreachable: then nothing is known."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """A provider's list as far as it is known: of what is at the `silent` sites nothing is known."""

    machines: Sequence[Machine]
    silent: frozenset[str]


@runtime_checkable
class Regional(Protocol):
    """What a provider may be besides: one with several regions, of which one may be away while the others answer.
    `machines` raises then, since a list that lacks a region reads as if its machines were gone."""

    def listing(self) -> Listing:
        """The list of the regions that answer. Raises Unreachable where none does."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One look at something that may stand in the way. `state`: `warn` works now and will hurt, `fail` does not work.
    `said` is what was seen, in one line and without secrets; `remedy` what to do (empty where nothing is to be done)."""

    name: str
    state: Literal["ok", "warn", "fail"]
    said: str
    remedy: str = ""


@runtime_checkable
class Checkup(Protocol):
    """What a provider or a driver may be besides: one that can say what stands in its way (`caudal doctor`)."""

    def checks(self) -> Sequence[Check]:
        """Look, within seconds, and change nothing. Raises nothing: what cannot be seen is a check that says why."""
        ...


class Driver(Protocol):
    """How processes run on a site. One instance per site."""

    site: str

    def start(self, spec: GangSpec, token: str) -> None:
        """Start it, once, however often asked. Done when `gangs` lists it."""
        ...

    def stop(self, gang_id: str, grace_s: float) -> None:
        """Ask it to end, and make it end after the grace. Returns at once; done when it is over."""
        ...

    def gangs(self) -> Sequence[GangStatus]:
        """The driver's own list, with those that are over until they are forgotten. Raises Unreachable."""
        ...

    def forget(self, gang_id: str) -> None:
        """Drop a gang that is over from the list (its logs may be kept)."""
        ...

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """The end of what its processes printed. Raises NotFound."""
        ...


class Models(Protocol):
    """The models that can be served."""

    def list(self) -> Sequence[ModelRecord]:
        """The newest version of each."""
        ...

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Bring one in. May take minutes. Raises PullFailed, ModelInvalid, StorageFailed."""
        ...


@dataclass(frozen=True, slots=True)
class EngineLaunch:
    """What an engine is asked to serve: `path` is a GGUF file or a Hugging Face directory. `arguments` are the
    user's own, for engines that are started by a command."""

    model_id: str
    path: Path
    host: str
    port: int
    context: int
    slots: int
    threads: int
    accelerators: int = 0
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What requests it understands, for the gateway's checks."""

    chat: bool
    completions: bool
    embeddings: bool
    tools: bool
    parameters: frozenset[str] = field(default_factory=frozenset)


class Engine(Protocol):
    """What generates tokens: a server that speaks (a dialect of) the OpenAI API, in the replica's process
    tree. Only serve/ starts one; the gateway talks to its address."""

    name: str
    url: str  # where it listens, once started: `http://host:port`

    def start(self, launch: EngineLaunch) -> None:
        """Load the model and listen. Returns when it can answer. Raises ModelInvalid, PortInUse, Failed."""
        ...

    def open_with(self, opening: str) -> int:
        """Read ahead what chats begin with: the system prompt `opening` (empty: what the model's template puts first), so
        that no request has to. For one that is started and runs nothing. Returns the tokens that it holds now (0: none,
        also where it cannot). Raises Failed where it was asked for and did not work."""
        ...

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Call `tell`, from any thread and at once, when the engine ends without having been asked to. One that
        lives in this process never does."""
        ...

    def healthy(self) -> bool:
        """Whether it answers now."""
        ...

    def capabilities(self) -> EngineCapabilities:
        """What it understands."""
        ...

    def figures(self) -> Mapping[str, float | list[float]]:
        """Its metrics under vLLM's names (serve/figures.py says how); empty where it does not answer."""
        ...

    def stop(self) -> None:
        """Let the requests in flight end, then leave."""
        ...

    def kill(self) -> None:
        """End now, whatever runs. One that lives in this process ends with it."""
        ...


@dataclass(frozen=True, slots=True)
class World:
    """All ports together: what the composition root builds, and what the simulator builds instead."""

    clock: Clock
    store: Store
    models: Models
    providers: Mapping[str, Provider]  # by provider name
    drivers: Mapping[str, Driver]  # by site name
    sites: Iterable[SiteSpec] = ()
