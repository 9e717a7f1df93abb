"""Who may join a run: the same program, the same plan, one live site per slot. Pure."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

import caudal
from caudal.train.interface import RunPlan
from caudal.train.messages import PROTOCOL, Hello, Refused
from caudal.train.protocol import rules
from caudal.train.protocol.members import Member


def plan_sha256(plan: RunPlan) -> str:
    """The plan in one word: equal where shape, data, stages, seed and outer optimiser are."""
    return hashlib.sha256(msgspec.json.encode(plan, order="deterministic")).hexdigest()


def prove(token: str, role: str, *nonces: str) -> str:
    """What shows that one holds the run's token, without saying it."""
    return hmac.new(token.encode(), "|".join((role, *nonces)).encode(), hashlib.sha256).hexdigest()


def proven(proof: str, token: str, role: str, *nonces: str) -> bool:
    """Whether the other side holds the same token."""
    return hmac.compare_digest(proof.encode(), prove(token, role, *nonces).encode())


def refusal(hello: Hello, plan: RunPlan, generation: int) -> Refused | None:
    """Why this site cannot take part, naming both sides; None where it can."""
    compared = (
        ("protocol", hello.protocol, PROTOCOL),
        ("version", hello.version, caudal.__version__),
        ("run", hello.run, plan.run),
        ("generation", hello.generation, generation),
        ("parameters", hello.parameters, plan.parameters),
        ("plan", hello.plan, plan_sha256(plan)),
    )
    for what, theirs, ours in compared:
        if theirs != ours:
            text = f"the {what} at {hello.site} is {theirs}, at the coordinator {ours}"
            return Refused("mismatch", text, retry_after_s=-1.0)
    return None


def duplicate(hello: Hello, live: Member | None) -> Refused | None:
    """Why a slot's second member is refused: an older incarnation that was replaced and has come back."""
    if live is None or live.hello.incarnation <= hello.incarnation:
        return None
    text = f"incarnation {hello.incarnation} of {hello.worker} was replaced by {live.hello.incarnation}"
    return Refused("replaced", text, retry_after_s=-1.0)


class Strikes:
    """Bad deltas in a row, by slot; after rules.STRIKES of them a slot is kept out for a while."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}

    def add(self, worker: str, now: float) -> None:
        """One more."""
        count, _ = self._counts.get(worker, (0, 0.0))
        self._counts[worker] = (count + 1, now + rules.QUARANTINE_S)

    def clear(self, worker: str) -> None:
        """A good one."""
        self._counts.pop(worker, None)

    def refusal(self, worker: str, now: float) -> Refused | None:
        """What a slot is told that is kept out."""
        count, until = self._counts.get(worker, (0, 0.0))
        if count < rules.STRIKES or now >= until:
            return None
        return Refused("quarantined", f"{count} bad deltas in a row", retry_after_s=until - now)
