"""Who takes part in a run, as its coordinator sees them. Values; the coordinator's machine changes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from caudal.train.messages import Hello


class Phase(StrEnum):
    """What a run does now: waits for sites, has leases out, looks for somebody to answer the held-out
    questions, waits for the answers, is through."""

    WAITING = "waiting"
    ROUND = "round"
    FINAL = "final"
    ASKING = "asking"
    TRAINED = "trained"


class MemberState(StrEnum):
    """loading → idle → busy → idle ... | late: its lease was revoked, and it has not been heard of since."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    LATE = "late"


@dataclass(slots=True)
class Member:
    """A site that was welcomed."""

    connection: int
    hello: Hello
    state: MemberState
    heard_at: float
    since: float  # when it last gained or answered a lease
    seconds_per_id: float = 0.0
    tokens_per_s: float = 0.0
    wait_share: float = 0.0
    loss: float = 0.0
    round: int = 0
    follows: bool = False  # it has said that it holds a state, since it joined

    @property
    def name(self) -> str:
        """The slot: what there is one live member of."""
        return self.hello.worker


@dataclass(slots=True)
class Members:
    """The live members, by connection; at most one per slot."""

    by_connection: dict[int, Member] = field(default_factory=dict)

    def of(self, connection: int) -> Member | None:
        """The member on that connection."""
        return self.by_connection.get(connection)

    def named(self, worker: str) -> Member | None:
        """The live member of a slot."""
        return next((m for m in self.by_connection.values() if m.name == worker), None)

    def all(self) -> list[Member]:
        """All, in the fixed order in which deltas are merged."""
        return sorted(self.by_connection.values(), key=lambda m: m.name)

    def in_state(self, states: Iterable[MemberState]) -> list[Member]:
        """Those in one of the states, in the fixed order."""
        wanted = frozenset(states)
        return [m for m in self.all() if m.state in wanted]

    def following(self) -> list[Member]:
        """Those that join and hold a state already. One that is still on its way says nothing of how fast updates
        arrive behind it."""
        return [m for m in self.in_state([MemberState.LOADING]) if m.follows]

    def view(self) -> dict[str, dict[str, object]]:
        """What the coordinator reports of its sites: by site, with the slot where a site has several."""
        sites = [m.hello.site for m in self.all()]
        return {
            m.hello.site if sites.count(m.hello.site) == 1 else f"{m.hello.site}/{m.name}": {
                "worker": m.name,
                "state": m.state.value,
                "round": m.round,
                "loss": round(m.loss, 4),
                "tokens_per_s": round(m.tokens_per_s, 1),
                "wait_share": round(m.wait_share, 4),
            }
            for m in self.all()
        }
