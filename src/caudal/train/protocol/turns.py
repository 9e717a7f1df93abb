"""A round as its coordinator sees it while it is not merged: who leased what, and what has arrived of it. Values;
the coordinator's machine changes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from caudal.train.interface import IdRange
from caudal.train.messages import Delta, Round
from caudal.train.protocol.members import Member
from caudal.train.protocol.rules import Tempo
from caudal.train.protocol.suspects import Aside


@dataclass(slots=True)
class Lease:
    """One site's share of a round. `parts` are the fragments of its delta that are here, `large` their sums of
    squares; `delta` is what they say of it. `hurried`: its holder was asked to cut it short."""

    name: str
    member: Member
    ids: tuple[IdRange, ...]
    steps: int
    tokens: int
    progress: tuple[float, float]
    leased_at: float
    rate: float = 1.0
    hurried: bool = False
    parts: dict[int, bytes] = field(default_factory=dict)
    large: float = 0.0
    delta: Delta | None = None
    size: float = 0.0
    aside: Aside | None = None  # those of its ids that are set aside when it ends

    @property
    def worker(self) -> str:
        """The slot that holds it."""
        return self.member.name


@dataclass(slots=True)
class Turn:
    """A round. `waiting` and `arrived` are by slot; `merged` are fragments of the update, as far as they could
    be merged already: they hold for exactly the leases that there are. `quorum`: it is not merged with fewer
    deltas."""

    number: int
    stage: int
    tempo: Tempo
    quorum: int
    waiting: dict[str, Lease] = field(default_factory=dict)
    arrived: dict[str, Lease] = field(default_factory=dict)
    merged: dict[int, bytearray] = field(default_factory=dict)
    grace_s: float = 0.0
    deadline: float = 0.0  # 0: not running yet
    evaluator: str = ""
    rate: float = 0.0  # of gradients: the learning rate of the step that was made of them
    skipped: tuple[Aside, ...] = ()  # ids that were set aside before it is merged

    def leases(self) -> list[Lease]:
        """All of them, in the fixed order in which deltas are merged."""
        both = {**self.waiting, **self.arrived}
        return [both[worker] for worker in sorted(both)]

    def lease_of(self, worker: str) -> Lease | None:
        """What a slot holds of this round."""
        return self.waiting.get(worker) or self.arrived.get(worker)

    def took(self, lease: Lease) -> None:
        """A delta is whole and sound."""
        self.arrived[lease.worker] = self.waiting.pop(lease.worker)

    def revoke(self, worker: str) -> Lease | None:
        """A lease whose delta did not come ends; what was merged with it is void. Returns it."""
        lease = self.waiting.pop(worker, None)
        if lease is not None:
            self.merged.clear()
        return lease

    def order(self, lease: Lease, epoch: int) -> Round:
        """What the holder of a lease is told."""
        return Round(
            epoch,
            self.number,
            lease.name,
            self.stage,
            lease.ids,
            lease.progress,
            self.tempo.inner_steps,
            self.tempo.waits,
            self.evaluator == lease.worker,
            self.tempo.bits,
            lease.rate,
            self.tempo.gradients,
        )
