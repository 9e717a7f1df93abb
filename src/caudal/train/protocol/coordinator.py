"""The coordinator of a run as a state machine: events and time in, effects out.

    waiting → round (leases are out) → round ... → final → asking (held-out score) → trained

Ids count as trained by a commit only. A round is broadcast and the next one leased while the keeper makes it
durable; the next is not merged before, so at most one round that sites have seen can be lost. A site that is
lost, late or wrong gives its lease back and the round goes on with the others. Who joins is sent the state at
once and every update after it, and gets its first lease at a round's boundary. Does no I/O and reads no
clock; knows nothing of sockets, files or torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec import structs

from caudal.train.checkpoint import Manifest, Restored
from caudal.train.interface import IdRange, RunPlan
from caudal.train.leases import Pool, size
from caudal.train.ledger import Entry, Link, entry_hash, to_bytes
from caudal.train.messages import (
    Delta,
    Evaluate,
    Evaluated,
    Hello,
    Message,
    Ready,
    Refused,
    Round,
    Update,
    Welcome,
)
from caudal.train.outer import Outer, state_sha256
from caudal.train.protocol import door, merge, rules
from caudal.train.protocol.effects import Close, Commit, CoordinatorEffect, Keep, Measured, Say, Send, Trained
from caudal.train.protocol.members import Arrived, Member, Members, MemberState, Phase

BUSY, IDLE, LATE, LOADING = MemberState.BUSY, MemberState.IDLE, MemberState.LATE, MemberState.LOADING


@dataclass(frozen=True, slots=True)
class Terms:
    """What a coordinator is told at its start. `sites` is how many are expected; `evaluate_every` counts
    rounds of `inner_steps` (a synchronous round counts by its one step), `checkpoint_every` any rounds."""

    plan: RunPlan
    generation: int
    epoch: int
    sites: int
    evaluate_every: int
    checkpoint_every: int


class Coordinator:
    """Every event takes `now`, seconds of a steady clock, and returns what to do, in order.

    `at_offset` turns `now` into seconds since 1970 for the records: the wall clock is read once, so that it
    may jump. Owns the arrays in `restored`.
    """

    def __init__(self, terms: Terms, restored: Restored, now: float, at_offset: float) -> None:
        assert len(restored.state) == terms.plan.parameters
        self.terms, self.plan = terms, terms.plan
        self.outer = Outer(restored.state, restored.momentum)
        self.round = restored.round  # applied to the state
        self.totals = restored.totals
        self.last: Link | None = restored.last
        self.pool = Pool(self.plan.total_ids, [IdRange(*r) for r in self.totals.committed])
        self.members = Members()
        self.pace = rules.Pace()
        self.phase = Phase.WAITING
        self.values: dict[str, float] = {}  # of the newest evaluation
        self._evaluated: dict[str, float] = {}  # not yet in the curve
        self.tempo = rules.tempo(self.plan.outer, self.totals.tokens, self.plan.total_tokens)
        self.stage = 0
        self.tokens_per_s = 0.0
        self._at_offset = at_offset
        self._arrived: list[Arrived] = []
        self._deadline = self._gather_until = math.inf
        self._committed_at = now
        self._leases = self._turn = 0
        self._evaluation_s = rules.FIRST_GRACE_S
        self._steps_unevaluated = 0
        self._strikes: dict[str, tuple[int, float]] = {}
        self._pending: Entry | None = None
        self._out: list[CoordinatorEffect] = []

    # ---- events -------------------------------------------------------------------------------------------

    def hello(self, connection: int, hello: Hello, proof: str, now: float) -> list[CoordinatorEffect]:
        """A site that proved it holds the token asks to join; `proof` is the coordinator's own."""
        if self.members.of(connection) is not None:
            return self._take()  # heard twice
        refusal = door.refusal(hello, self.plan, self.terms.generation) or door.duplicate(
            hello, self.members.named(hello.worker)
        )
        count, until = self._strikes.get(hello.worker, (0, 0.0))
        if refusal is None and count >= rules.STRIKES and now < until:
            refusal = Refused("quarantined", f"{count} bad deltas in a row", retry_after_s=until - now)
        if refusal is not None:
            self._say(f"{hello.worker} at {hello.site} is refused: {refusal.text}")
            self._out += [Send(connection, refusal), Close(connection, refusal.reason)]
            return self._take()
        older = self.members.named(hello.worker)
        if older is not None:
            self._drop(older, "the same slot joined again")
            self._out.append(Close(older.connection, "the same slot joined again"))
        self.members.by_connection[connection] = Member(connection, hello, LOADING, now, leased_at=now)
        welcome = Welcome(self.terms.epoch, self.round, state_sha256(self.outer.state), proof)
        self._out.append(Send(connection, welcome, self.outer.state.tobytes()))
        self._say(f"{hello.worker} at {hello.site} joins at round {self.round}")
        self._advance(now)
        return self._take()

    def message(
        self, connection: int, message: Message, payload: bytes, now: float
    ) -> list[CoordinatorEffect]:
        """A member says something. What comes from an older round, lease or epoch is passed over."""
        member = self.members.of(connection)
        if member is None:
            return self._take()
        member.heard_at = now
        if isinstance(message, Delta):
            self._on_delta(member, message, payload, now)
        elif isinstance(message, Ready) and message.epoch == self.terms.epoch:
            if message.round == self.round and member.state in (LOADING, LATE):
                member.state = IDLE
        elif isinstance(message, Evaluated) and message.epoch == self.terms.epoch:
            self._on_evaluated(member, message, now)
        self._advance(now)
        return self._take()

    def lost(self, connection: int, why: str, now: float) -> list[CoordinatorEffect]:
        """A connection ended."""
        member = self.members.of(connection)
        if member is not None:
            self._drop(member, why)
            self._advance(now)
        return self._take()

    @property
    def settled(self) -> bool:
        """Whether the state is that of a round which is durable."""
        return self._pending is None

    def committed(self, entry: Entry, now: float) -> list[CoordinatorEffect]:
        """The round is durable; `entry` is what was asked for, with the update's hash."""
        assert self._pending is not None and entry.round == self._pending.round == self.round
        self._pending = None
        self.last = Link(entry, entry_hash(to_bytes(entry)))
        self.tokens_per_s = entry.tokens / max(1e-6, now - self._committed_at)
        self._committed_at = now
        self._measure(entry)
        if self._keep_due(entry):
            self.keep()
        self._advance(now)
        return self._take()

    def tick(self, now: float) -> list[CoordinatorEffect]:
        """Time went by; to be called a few times a second."""
        for member in self.members.all():
            stuck = member.state is not IDLE and now - member.leased_at > rules.STUCK_S
            if stuck or now - member.heard_at > rules.LIVENESS_S:
                why = "no progress for too long" if stuck else "silent for too long"
                self._drop(member, why)
                self._out.append(Close(member.connection, why))
        if self.phase is Phase.ROUND and now > self._deadline and self._arrived:
            for member in self.members.in_state([BUSY]):
                self._say(f"{member.name} is late: its lease goes back")
                self.pool.give_back(member.lease)
                member.state, member.lease = LATE, ""
        self._advance(now)
        return self._take()

    def keep(self) -> None:
        """Have the last committed state kept as a checkpoint; the effect comes with the next event's."""
        assert self.settled
        manifest = Manifest(
            run=self.plan.run,
            round=self.round,
            entry=self.last.hash if self.last else "",
            state_sha256=(self.last and self.last.entry.state_sha256) or state_sha256(self.outer.state),
            file="",
            totals=self.totals,
            at=self._committed_at + self._at_offset,
        )
        self._out.append(Keep(self.outer.state.copy(), self.outer.momentum.copy(), manifest))

    # ---- what follows from them ---------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Do what the state calls for, until it calls for nothing more."""
        if self.phase is Phase.ROUND and not self.members.in_state([BUSY]):
            if self._arrived and self.settled:
                self._merge(now)
            elif not self._arrived:
                self._say(f"round {self.round + 1} is begun again: nothing of it arrived")
                self.phase = Phase.WAITING
        if self.phase in (Phase.WAITING, Phase.FINAL):
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Lease the next round's ids, once somebody is ready; or go on to the final evaluation."""
        idle = self.members.in_state([IDLE])
        if self.pool.done:
            self.phase = Phase.FINAL if self.settled else Phase.WAITING
        elif idle and self._gathered(len(idle), now):
            self.tempo = rules.tempo(self.plan.outer, self.totals.tokens, self.plan.total_tokens)
            self.stage = next(
                i for i, s in enumerate(self.plan.stages) if self.pool.free_in(s.first_id, s.end_id)
            )
            self._lease(idle, now)
        if self.phase is Phase.FINAL and idle:
            self._turn += 1
            chosen = idle[self._turn % len(idle)]
            chosen.state, chosen.leased_at = BUSY, now
            self._out.append(Send(chosen.connection, Evaluate(self.terms.epoch, self.round)))
            self._say(f"{chosen.name} answers the held-out questions")
            self.phase = Phase.ASKING

    def _gathered(self, idle: int, now: float) -> bool:
        """Whether to begin: at once, but for a new epoch's first round, which waits a little for all."""
        if self._gather_until == -math.inf or idle >= self.terms.sites:
            self._gather_until = -math.inf
        elif self._gather_until == math.inf:
            self._gather_until = now + rules.GATHER_S
        elif now >= self._gather_until:
            self._gather_until = -math.inf
        return self._gather_until == -math.inf

    def _lease(self, idle: list[Member], now: float) -> None:
        stage = self.plan.stages[self.stage]
        steps = rules.steps_by_speed(self.tempo.inner_steps, {m.name: m.seconds_per_step for m in idle})
        free = self.pool.free_in(stage.first_id, stage.end_id)
        shares = rules.share_out({m.name: steps[m.name] * stage.batch for m in idle}, free)
        done = self.pool.committed_in(stage.first_id, stage.end_id)
        progress = (done / stage.ids, min(1.0, (done + sum(shares.values())) / stage.ids))
        evaluator = self._evaluator([m for m in idle if shares[m.name]])
        for member in idle:
            if not shares[member.name]:
                continue
            self._leases += 1
            member.lease = f"{self.terms.epoch}.{self.round + 1}.{self._leases}"
            member.ids = self.pool.lease(member.lease, shares[member.name], stage.first_id, stage.end_id)
            member.steps = -(-size(member.ids) // stage.batch)
            member.progress, member.leased_at, member.state = progress, now, BUSY
            member.evaluating = member is evaluator
            order = Round(
                self.terms.epoch,
                self.round + 1,
                member.lease,
                self.stage,
                member.ids,
                progress,
                member.evaluating,
            )
            self._out.append(Send(member.connection, order))
        self._arrived = []
        self.phase = Phase.ROUND
        self._deadline = now + self.pace.grace_s(max(m.steps for m in idle))
        if evaluator is not None:
            self._deadline += 3 * self._evaluation_s

    def _evaluator(self, members: list[Member]) -> Member | None:
        """Who evaluates the state before this round, where that is due; they take turns."""
        due = self.terms.evaluate_every * self.plan.outer.inner_steps
        if self._steps_unevaluated < due:
            return None
        self._steps_unevaluated = 0
        self._turn += 1
        return members[self._turn % len(members)]

    def _on_delta(self, member: Member, delta: Delta, payload: bytes, now: float) -> None:
        current = (self.terms.epoch, self.round + 1, member.lease)
        if self.phase is not Phase.ROUND or member.state is not BUSY or not member.lease:
            return
        if (delta.epoch, delta.round, delta.lease) != current:
            return
        stage = self.plan.stages[self.stage]
        inner_steps = self.tempo.inner_steps
        seen = merge.inspect(delta, payload, member.ids, stage, self.plan.parameters)
        if not seen.problem and self.pace.too_large(seen.size, self.stage, inner_steps):
            seen = merge.Seen(seen.size, "its numbers explode, against all deltas before")
        if seen.problem:
            self._refuse_delta(member, seen.problem, now)
            return
        self._arrived.append(
            Arrived(member, member.lease, member.ids, delta, payload, seen.size, delta.loss or 0.0)
        )
        self._strikes.pop(member.name, None)
        member.state, member.lease, member.round = IDLE, "", self.round + 1
        member.loss = delta.loss or 0.0
        member.seconds_per_step = delta.seconds / delta.steps
        member.tokens_per_s = delta.tokens / max(1e-6, delta.seconds)
        if not member.evaluating:
            self.pace.took(now - member.leased_at, delta.steps)

    def _refuse_delta(self, member: Member, problem: str, now: float) -> None:
        count = self._strikes.get(member.name, (0, 0.0))[0] + 1
        self._strikes[member.name] = (count, now + rules.QUARANTINE_S)
        self._say(f"a delta of {member.name} is refused: {problem}")
        self._out += [
            Send(member.connection, Refused("bad_delta", problem)),
            Close(member.connection, "bad delta"),
        ]
        self._drop(member, f"its delta was refused: {problem}")

    def _on_evaluated(self, member: Member, message: Evaluated, now: float) -> None:
        if message.round != self.round:
            return
        self.values = dict(message.values)
        if self.phase is Phase.ASKING and member.state is BUSY and message.heldout is not None:
            member.state = IDLE
            self.phase = Phase.TRAINED
            self._out.append(Trained(message.values, message.heldout))
        elif member.evaluating:
            self._evaluation_s = now - member.leased_at
            member.leased_at = now
            self._evaluated = dict(message.values)

    def _merge(self, now: float) -> None:
        arrived = sorted(self._arrived, key=lambda a: a.member.name)
        update = merge.step(self.outer, arrived, self.tempo)
        self.round += 1
        self.pool.commit([a.lease for a in arrived])
        for part in arrived:
            self.pace.merged(part.size, self.stage, self.tempo.inner_steps)
        entry = merge.entry(
            arrived,
            self.tempo,
            len(update),
            run=self.plan.run,
            round_number=self.round,
            epoch=self.terms.epoch,
            previous=self.last,
            stage=self.stage,
            state_sha256="",
            at=now + self._at_offset,
        )
        if self._hash_due(entry):
            entry = structs.replace(entry, state_sha256=state_sha256(self.outer.state))
        for part in arrived:
            part.member.joined = False
        order = Update(
            self.terms.epoch,
            self.round,
            tuple(a.lease for a in arrived),
            entry.state_sha256,
            0,
            self.plan.parameters,
        )
        self._out += [Send(m.connection, order, update) for m in self.members.all()]
        self._out.append(Commit(entry, update))
        self._pending, self.phase = entry, Phase.WAITING
        self.totals = self.totals.plus(entry)
        self._steps_unevaluated += entry.inner_steps
        self._arrived = []

    def _hash_due(self, entry: Entry) -> bool:
        """Whether this round's state is hashed: every round, but in the synchronous phase every few."""
        return entry.inner_steps > 1 or entry.round % rules.SYNC_SHA_EVERY == 0 or self._keep_due(entry)

    def _keep_due(self, entry: Entry) -> bool:
        """Whether a round's state is kept: every so many, and where a stage ends."""
        stage = self.plan.stages[entry.stage]
        trained = self.pool.committed_in(stage.first_id, stage.end_id)
        return entry.round % self.terms.checkpoint_every == 0 or trained == stage.ids

    def _drop(self, member: Member, why: str) -> None:
        """A member is gone; its lease goes back to the pool. A delta that arrived before stays."""
        self._say(f"{member.name} at {member.hello.site} is gone: {why}")
        self.pool.give_back(member.lease)
        del self.members.by_connection[member.connection]
        if self.phase is Phase.ASKING and member.state is BUSY:
            self.phase = Phase.WAITING

    def _measure(self, entry: Entry) -> None:
        row = merge.curve_row(entry, self.plan, self.totals.tokens, self.tokens_per_s)
        self._out.append(Measured(entry.round, {**row, **self._evaluated}))  # of the state before this round
        self._evaluated = {}

    def _say(self, text: str) -> None:
        self._out.append(Say(text))

    def _take(self) -> list[CoordinatorEffect]:
        out, self._out = self._out, []
        return out
