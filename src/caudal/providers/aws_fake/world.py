"""What the fake's AWS is like now: its clock, its machines, what is reserved, and how it fails.

Plain data; `gate` and the modules of actions change it, one request at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from caudal.providers.aws_fake.wire import Ask

RegionMode = Literal["", "down", "slow", "silent"]
MAX_CALLS = 2000


@dataclass(slots=True)
class Instance:
    """One machine, as the gate knows it; moto knows the rest. Times are in seconds since 1970."""

    id: str
    region: str
    zone: str
    machine_type: str
    lifecycle: str  # empty: on demand; spot, capacity-block
    launched_at: float
    listed_at: float
    runs_at: float
    reservation_id: str = ""
    spot_id: str = ""
    group: str = ""
    told_at: float | None = None  # when it was told that it will be interrupted
    leaves_at: float | None = None
    stopping_at: float | None = None
    gone_at: float | None = None
    buried: bool = False  # moto was told

    def exists(self, now: float) -> bool:
        """Whether it is not gone."""
        return self.gone_at is None or now < self.gone_at

    def state(self, now: float) -> tuple[int, str]:
        """EC2's code and word."""
        if not self.exists(now):
            return 48, "terminated"
        if self.stopping_at is not None:
            return 32, "shutting-down"
        return (16, "running") if now >= self.runs_at else (0, "pending")


@dataclass(slots=True)
class Reservation:
    """A capacity reservation or, with an `ends_at` and an `offering`, a block."""

    id: str
    region: str
    zone: str
    machine_type: str
    total: int
    match: str = "targeted"
    kind: str = "default"  # or capacity-block
    state: str = "active"
    starts_at: float = 0.0
    ends_at: float | None = None
    group_arn: str = ""
    tags: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Offering:
    """A capacity block on sale."""

    id: str
    region: str
    zone: str
    machine_type: str
    count: int
    starts_at: float
    ends_at: float
    fee_usd: Decimal


@dataclass(slots=True)
class Fault:
    """What becomes of the next `left` calls of an action (empty: any) in a region (empty: any). `when`: `before`, it
    fails; `after`, it is done and the answer is lost."""

    action: str
    region: str
    when: Literal["before", "after"]
    code: str
    message: str
    status: int
    left: int


@dataclass(slots=True)
class Times:
    """How long things take, in seconds. `lag_s` is how far lists are behind."""

    boot_s: float = 0.5
    stop_s: float = 0.5
    lag_s: float = 0.0
    notice_s: float = 120.0


@dataclass(slots=True)
class World:
    """All of it."""

    clock: Callable[[], float] = time.time
    times: Times = field(default_factory=Times)
    shifted_s: float = 0.0
    instances: dict[str, Instance] = field(default_factory=dict)
    tokens: dict[tuple[str, str], tuple[str, str]] = field(
        default_factory=dict
    )  # → what was asked, the instance
    reservations: dict[str, Reservation] = field(default_factory=dict)
    offerings: dict[str, Offering] = field(default_factory=dict)
    groups: dict[tuple[str, str], str] = field(default_factory=dict)  # region and name → strategy
    capacity: dict[tuple[str, str, str], int] = field(default_factory=dict)  # region, zone, type ("*": any)
    vcpus: dict[str, int] = field(default_factory=dict)  # by region: never more in all
    spot_prices: dict[tuple[str, str], str] = field(default_factory=dict)  # type and zone
    gone_images: set[str] = field(default_factory=set)
    regions: dict[str, tuple[RegionMode, float]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def now(self) -> float:
        """Seconds since 1970, as far as the fake was moved on."""
        return self.clock() + self.shifted_s

    def new_id(self, start: str) -> str:
        """`cr-0000000000000001f`, …"""
        return f"{start}-{next(self.numbers):016x}f"

    def live(self) -> list[Instance]:
        """The machines that are not gone."""
        now = self.now()
        return [one for one in self.instances.values() if one.exists(now)]

    def free_in(self, reservation: Reservation) -> int:
        """How many more machines a reservation holds."""
        used = sum(1 for one in self.live() if one.reservation_id == reservation.id)
        return max(0, reservation.total - used) if reservation.state == "active" else 0

    def full(self, region: str, zone: str, machine_type: str) -> bool:
        """Whether a limit of capacity is reached, reservations aside."""
        for (where, at, kind), most in self.capacity.items():
            if where != region or at not in ("*", zone) or kind not in ("*", machine_type):
                continue
            used = [
                one
                for one in self.live()
                if one.region == region
                and not one.reservation_id
                and at in ("*", one.zone)
                and kind in ("*", one.machine_type)
            ]
            if len(used) >= most:
                return True
        return False

    def fault(self, ask: Ask, when: str) -> Fault | None:
        """The fault that this call is to meet, counted down."""
        for one in self.faults:
            fits = one.action in ("", ask.action) and one.region in ("", ask.region)
            if one.when == when and one.left > 0 and fits:
                one.left -= 1
                return one
        return None

    def note(self, ask: Ask) -> None:
        """Remember the call, without what a machine was told to run."""
        shown = {key: value for key, value in ask.form.items() if key != "UserData"}
        self.calls.append({"at": self.now(), "region": ask.region, "action": ask.action, "form": shown})
        del self.calls[:-MAX_CALLS]
