"""One round's arithmetic: is a delta sound, what do all of them make, what is written down of it. Pure."""

from __future__ import annotations

import math
from typing import Any

from caudal.catalog.accelerators import peak_flops_per_s
from caudal.train.codec import blocks, encoded_bytes, magnitude
from caudal.train.interface import RunPlan, Stage
from caudal.train.leases import size
from caudal.train.ledger import FIRST, Contribution, Entry, Link, Skipped
from caudal.train.messages import Delta
from caudal.train.outer import Outer, roll_forward
from caudal.train.protocol.turns import Lease, Turn
from caudal.train.schedule import fresh_factor, learning_rate

MOST_STEPS = 1 << 20
"""No round is longer."""
NOT_FINITE = "it is not finite"


def inspect(delta: Delta, payload: bytes, lease: Lease, bits: int, plan: RunPlan) -> str:
    """What is wrong with one fragment of a delta, against what was leased: its place and length, its tokens,
    finite numbers. Empty: nothing. Adds to the lease's `large`."""
    if not 0 <= delta.fragment < len(plan.fragments) or delta.bits != bits:
        return (
            f"it carries fragment {delta.fragment} of {len(plan.fragments)} in {delta.bits} bits, not {bits}"
        )
    start, stop = plan.fragments[delta.fragment]
    if len(payload) != encoded_bytes(stop - start, bits):
        return f"fragment {delta.fragment} has {len(payload)} bytes, not {encoded_bytes(stop - start, bits)}"
    if delta.tokens != lease.tokens or not 1 <= delta.steps <= lease.steps or delta.seconds < 0:
        return f"{delta.tokens} tokens in {delta.steps} steps are not what was leased"
    if delta.planned and not delta.steps < delta.planned <= MOST_STEPS:
        return f"it was cut short after {delta.steps} of {delta.planned} steps"
    if not 0 <= delta.recalled < delta.round:
        return f"it goes on from its part of round {delta.recalled}, which cannot be"
    if len(delta.applied) not in (0, len(plan.fragments)) or delta.waited_s < 0:
        return "what it says of its round does not add up"
    large = magnitude(payload, stop - start, bits)
    if delta.loss is None or not (math.isfinite(large) and math.isfinite(delta.loss)):
        return NOT_FINITE
    lease.large += large
    return ""


def size_of(lease: Lease, plan: RunPlan) -> float:
    """The root mean square of the largest numbers of a whole delta's blocks."""
    return math.sqrt(lease.large / sum(blocks(stop - start) for start, stop in plan.fragments))


def early(outer: Outer, turn: Turn, plan: RunPlan) -> None:
    """Merge the fragments that are here from all who hold a lease, whatever else is still to come."""
    leases = turn.leases()
    here = set.intersection(*(set(lease.parts) for lease in leases))
    for fragment in sorted(here - set(turn.merged)):
        _merge(outer, turn, fragment, leases, plan)


def finish(outer: Outer, turn: Turn, plan: RunPlan) -> list[bytearray]:
    """Merge what is not merged yet, change the state, and return the update's fragments."""
    assert not turn.waiting
    leases = turn.leases()
    if not leases:
        return _nothing(outer, turn)
    for fragment in range(len(outer.cuts)):
        if fragment not in turn.merged:
            _merge(outer, turn, fragment, leases, plan)
    parts = [turn.merged[fragment] for fragment in range(len(outer.cuts))]
    tempo = turn.tempo
    outer.take(b"".join(parts), tempo.momentum, tempo.bits, gradients=tempo.gradients)
    return parts


def _nothing(outer: Outer, turn: Turn) -> list[bytearray]:
    """The update of a round that nobody trained: zeros, so that it is committed and applied as any other."""
    parts = [bytearray(encoded_bytes(stop - start, turn.tempo.bits)) for start, stop in outer.cuts]
    roll_forward(
        outer.state, outer.momentum, b"".join(parts), turn.tempo.momentum, turn.tempo.bits, outer.cuts
    )
    return parts


def step_rate(outer: Outer, turn: Turn, leases: list[Lease], stage: Stage) -> float:
    """The learning rate of the coordinator's step for the mean gradient: the stage's in the middle of what sites were
    leased. Without moments, and behind the run's first round, it rises as a site's own would."""
    sizes = [size(lease.ids) for lease in leases]
    middles = [sum(lease.progress) / 2 * count for lease, count in zip(leases, sizes, strict=True)]
    steps = outer.adam.steps if outer.adam else 0
    rises = turn.number - 1 > steps  # moments as old as the run were never lost
    return learning_rate(stage, sum(middles) / sum(sizes)) * (fresh_factor(steps) if rises else 1.0)


def _merge(outer: Outer, turn: Turn, fragment: int, leases: list[Lease], plan: RunPlan) -> None:
    """Weighted by tokens, in the order of the slots."""
    tokens = sum(lease.tokens for lease in leases)
    weighted = [(lease.tokens / tokens, lease.parts[fragment]) for lease in leases]
    tempo = turn.tempo
    if tempo.gradients:
        stage = plan.stages[turn.stage]
        turn.rate = step_rate(outer, turn, leases, stage)
        decay = stage.weight_decay
        turn.merged[fragment] = outer.merge_gradients(fragment, weighted, turn.rate, decay, tempo.bits)
        return
    turn.merged[fragment] = outer.merge(fragment, weighted, tempo.learning_rate, tempo.momentum, tempo.bits)


def entry(
    turn: Turn,
    plan: RunPlan,
    update_bytes: int,
    *,
    epoch: int,
    previous: Link | None,
    state_sha256: str,
    at: float,
) -> Entry:
    """What the ledger keeps of a round. The update's hash is filled in by who writes it (`Commit`)."""
    leases = turn.leases()
    tokens = sum(lease.tokens for lease in leases)
    parts = tuple(_contribution(lease, lease.tokens / tokens) for lease in leases)
    return Entry(
        run=plan.run,
        round=turn.number,
        epoch=epoch,
        previous=previous.hash if previous else FIRST,
        stage=turn.stage,
        inner_steps=turn.tempo.inner_steps,
        learning_rate=turn.rate if turn.tempo.gradients else turn.tempo.learning_rate,
        gradients=turn.tempo.gradients,
        momentum=turn.tempo.momentum,
        sites=parts,
        tokens=tokens,
        steps=sum(p.steps for p in parts),
        loss=sum((p.loss * p.weight for p in parts), 0.0),
        update_sha256="",
        update_bytes=update_bytes,
        state_sha256=state_sha256,
        at=at,
        bits=turn.tempo.bits,
        fragments=plan.fragments,
        skipped=tuple(
            Skipped(tuple((r.start, r.stop) for r in a.ids), a.why, a.workers, a.tries) for a in turn.skipped
        ),
    )


def _contribution(lease: Lease, weight: float) -> Contribution:
    delta = lease.delta
    assert delta is not None and delta.loss is not None
    return Contribution(
        site=lease.member.hello.site,
        worker=lease.worker,
        ids=tuple((r.start, r.stop) for r in lease.ids),
        tokens=delta.tokens,
        steps=delta.steps,
        loss=delta.loss,
        seconds=delta.seconds,
        weight=weight,
        joined=delta.fresh,
        progress=lease.progress,
        applied=delta.applied,
        machine=lease.member.hello.machine[:64],
        rate=lease.rate,
        planned=delta.planned,
        recalled=delta.recalled,
    )


def waiting(turn: Turn) -> tuple[float, float]:
    """Of a round's sites: the least share of their time that one waited, and after what part of the round the
    update before it was applied (the latest of all)."""
    deltas = [lease.delta for lease in turn.leases() if lease.delta is not None]
    shares = [d.waited_s / max(1e-9, d.waited_s + d.seconds) for d in deltas]
    backs = [max(d.applied, default=0) / d.steps for d in deltas]
    return min(shares, default=0.0), max(backs, default=0.0)


def flops_per_token(plan: RunPlan, stage: int) -> float:
    """Of forward and backward pass: 6 for each parameter, and attention's 12 x layers x width x the length of a
    sample, where the model's shape is known."""
    attention = 0 if plan.model else 12 * plan.shape.layers * plan.shape.width
    return 6.0 * plan.parameters + attention * plan.stages[stage].sample_tokens


def mfu(turn: Turn, plan: RunPlan, tokens_per_s: float) -> float | None:
    """What part of their peak all devices of a round's sites spent on the model; None where the peak of one of
    them is not known."""
    peaks = []
    for said in (lease.member.hello for lease in turn.leases()):
        peaks.append((peak_flops_per_s(said.device, said.precision) or 0.0) * said.device_count)
    if not peaks or not all(peaks):
        return None
    return flops_per_token(plan, turn.stage) * tokens_per_s / sum(peaks)


def curve_row(turn: Turn, entry: Entry, plan: RunPlan, tokens: int, tokens_per_s: float) -> dict[str, Any]:
    """What the run's curve shows of a round; `tokens` are all that are committed, `delta_bytes` what all sites
    sent for it, `wire_bytes` deltas and updates; `flops_per_s` 6 for each parameter and token, 4
    where the parameter is frozen, without attention; `mfu` is there where the devices' peaks are known only."""
    share, _ = waiting(turn)
    used = mfu(turn, plan, tokens_per_s)
    return {
        "round": entry.round,
        "stage": plan.stages[entry.stage].name,
        "loss": entry.loss,
        "tokens": tokens,
        "tokens_per_s": round(tokens_per_s, 1),
        "inner_steps": entry.inner_steps,
        "sites": len(entry.sites),
        "update_bytes": entry.update_bytes,
        "delta_bytes": entry.update_bytes * len(entry.sites),
        "wire_bytes": 2 * entry.update_bytes * len(entry.sites),
        "flops_per_s": round((6.0 * plan.parameters + 4.0 * plan.frozen) * tokens_per_s),
        "wait_share": round(share, 4),
        "seconds": round(max((p.seconds for p in entry.sites), default=0.0), 4),
        **({} if used is None else {"mfu": round(used, 4)}),
        **({"skipped": sum(b - a for s in entry.skipped for a, b in s.ids)} if entry.skipped else {}),
    }
