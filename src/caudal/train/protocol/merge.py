"""One round's arithmetic: is a delta sound, what do all of them make, what is written down of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caudal.train.codec import encoded_bytes, magnitude
from caudal.train.interface import IdRange, RunPlan, Stage
from caudal.train.leases import size
from caudal.train.ledger import FIRST, Contribution, Entry, Link
from caudal.train.messages import Delta
from caudal.train.outer import Outer
from caudal.train.protocol.members import Arrived
from caudal.train.protocol.rules import Tempo


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a delta showed: how large its numbers are, and what is wrong with it (empty: nothing)."""

    size: float
    problem: str = ""


def inspect(delta: Delta, payload: bytes, ids: Sequence[IdRange], stage: Stage, parameters: int) -> Seen:
    """Whether a delta can be what it says: its slice and length, its tokens, finite numbers."""
    if (delta.start, delta.stop, delta.bits) != (0, parameters, 8):
        return Seen(0.0, f"it carries {delta.start}..{delta.stop} in int{delta.bits}, not the whole in int8")
    if len(payload) != encoded_bytes(parameters):
        return Seen(0.0, f"it has {len(payload)} bytes instead of {encoded_bytes(parameters)}")
    if delta.tokens != size(ids) * stage.sample_tokens or delta.steps < 1 or delta.seconds < 0:
        return Seen(0.0, f"{delta.tokens} tokens in {delta.steps} steps are not what was leased")
    large = magnitude(payload, parameters)
    if delta.loss is None or not (math.isfinite(large) and math.isfinite(delta.loss)):
        return Seen(large, "it is not finite")
    return Seen(large)


def step(outer: Outer, arrived: Sequence[Arrived], tempo: Tempo) -> bytearray:
    """Merge, weighted by tokens, in the order given; change the state; return what to broadcast."""
    tokens = sum(a.delta.tokens for a in arrived)
    weighted = [(a.delta.tokens / tokens, a.payload) for a in arrived]
    return outer.step(weighted, tempo.learning_rate, tempo.momentum)


def entry(
    arrived: Sequence[Arrived],
    tempo: Tempo,
    update_bytes: int,
    *,
    run: str,
    round_number: int,
    epoch: int,
    previous: Link | None,
    stage: int,
    state_sha256: str,
    at: float,
) -> Entry:
    """What the ledger keeps of a round. The update's hash is filled in by who writes it (`Commit`)."""
    tokens = sum(a.delta.tokens for a in arrived)
    parts = tuple(
        Contribution(
            site=a.member.hello.site,
            worker=a.member.name,
            ids=tuple((r.start, r.stop) for r in a.ids),
            tokens=a.delta.tokens,
            steps=a.delta.steps,
            loss=a.loss,
            seconds=a.delta.seconds,
            weight=a.delta.tokens / tokens,
            joined=a.member.joined,
            progress=a.member.progress,
        )
        for a in arrived
    )
    return Entry(
        run=run,
        round=round_number,
        epoch=epoch,
        previous=previous.hash if previous else FIRST,
        stage=stage,
        inner_steps=tempo.inner_steps,
        learning_rate=tempo.learning_rate,
        momentum=tempo.momentum,
        sites=parts,
        tokens=tokens,
        steps=sum(p.steps for p in parts),
        loss=sum(p.loss * p.weight for p in parts),
        update_sha256="",
        update_bytes=update_bytes,
        state_sha256=state_sha256,
        at=at,
    )


def curve_row(entry: Entry, plan: RunPlan, tokens: int, tokens_per_s: float) -> dict[str, Any]:
    """What the run's curve shows of a round; `tokens` are all that are committed."""
    return {
        "round": entry.round,
        "stage": plan.stages[entry.stage].name,
        "loss": entry.loss,
        "tokens": tokens,
        "tokens_per_s": round(tokens_per_s, 1),
        "inner_steps": entry.inner_steps,
        "sites": len(entry.sites),
        "update_bytes": entry.update_bytes,
    }
