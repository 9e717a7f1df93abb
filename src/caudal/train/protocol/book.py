"""The coordinator's book of leases: the rounds that are out, who holds which ids of them, and the pool of the rest.

Every id is free, leased to one site, or committed. Up to two rounds are out at once: the one that is being
computed, and the next, leased ahead. Does no I/O; knows nothing of messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caudal.train.interface import IdRange, RunPlan, Stage
from caudal.train.leases import Pool, clip, first, size
from caudal.train.messages import Held
from caudal.train.protocol import rules
from caudal.train.protocol.members import Member
from caudal.train.protocol.rules import Tempo
from caudal.train.protocol.suspects import Aside, Suspects
from caudal.train.protocol.turns import Lease, Turn
from caudal.train.schedule import learning_rate

AHEAD = 2
"""Rounds that may be out: a site goes on so far without hearing from its coordinator."""


class Book:
    """Mutable; one owner. `turns[0]` is the round after the state's, `turns[1]` the one after that."""

    def __init__(self, plan: RunPlan, pool: Pool, epoch: int) -> None:
        self.plan, self.pool, self.epoch = plan, pool, epoch
        self.turns: list[Turn] = []
        self.suspects = Suspects.of(plan)
        self._aside: dict[str, Aside] = {}  # not yet in a commit, by the name of the lease that holds them
        self._leases = 0

    def open(self, number: int, tempo: Tempo, members: Sequence[Member], now: float) -> Turn:
        """A new round, behind those that are out: ids for all of them, as many as each can train in the time.
        There must be free ids."""
        stage = next(i for i, s in enumerate(self.plan.stages) if self.pool.free_in(s.first_id, s.end_id))
        turn = Turn(number, stage, tempo, self.plan.outer.quorum)
        self.turns.append(turn)
        self._share(turn, members, now)
        # what is left of a stage may not be enough for so many sites
        turn.quorum = min(turn.quorum, len(turn.waiting))
        return turn

    def cooled(self) -> float:
        """The learning rate of the next ids over the highest of their stage; 1 before that is reached."""
        for stage in self.plan.stages:
            free = self.pool.free_in(stage.first_id, stage.end_id)
            if free and stage.learning_rate:  # of a script's own loop it is not known
                progress = max(1 - free / stage.ids, stage.warmup_fraction)
                return learning_rate(stage, progress) / stage.learning_rate
        return 1.0

    def add(self, turn: Turn, member: Member, now: float) -> Lease | None:
        """A share of a round for one who joined meanwhile; None where its stage has no ids left."""
        self._share(turn, [member], now)
        return turn.waiting.get(member.name)

    def _share(self, turn: Turn, members: Sequence[Member], now: float) -> None:
        stage = self.plan.stages[turn.stage]
        speeds = {lease.worker: lease.member.seconds_per_id for lease in turn.leases()}
        speeds.update({m.name: m.seconds_per_id for m in members})
        wanted = rules.ids_by_speed(turn.tempo.inner_steps, stage.batch, speeds)
        free = self.pool.free_in(stage.first_id, stage.end_id)
        shares = rules.share_out({m.name: wanted[m.name] for m in members}, free, stage.batch)
        begun = stage.ids - free
        others = [size(lease.ids) for lease in turn.leases()]
        taken = self._take_ids(turn, stage, members, shares)
        counts = [size(ids) for _, _, ids in taken]
        progress = (begun / stage.ids, min(1.0, (begun + sum(counts)) / stage.ids))
        scaled = self.plan.outer.scale_rate and not turn.tempo.gradients
        rate = rules.rate_of([*others, *counts]) if scaled else 1.0
        for member, name, ids in taken:
            self._enter(turn, member, name, ids, progress, rate, now)
        turn.merged.clear()

    def _take_ids(
        self, turn: Turn, stage: Stage, members: Sequence[Member], shares: Mapping[str, int]
    ) -> list[tuple[Member, str, tuple[IdRange, ...]]]:
        """Lease each member's share; ids that are under suspicion a few at a time, and to who has not tried them
        first."""
        tried = self.suspects.tried(clip(self.pool.free, stage.first_id, stage.end_id))
        taken = []
        for member in sorted(members, key=lambda m: m.name in tried):
            free = clip(self.pool.free, stage.first_id, stage.end_id)
            count = self.suspects.count(free, shares[member.name])
            if not count:
                continue
            name = self._name(turn)
            taken.append((member, name, self.pool.lease(name, count, stage.first_id, stage.end_id)))
        return [row for row in taken if row[2]]

    def _name(self, turn: Turn) -> str:
        self._leases += 1
        return f"{self.epoch}.{turn.number}.{self._leases}"

    def _enter(
        self,
        turn: Turn,
        member: Member,
        name: str,
        ids: tuple[IdRange, ...],
        progress: tuple[float, float],
        rate: float,
        now: float,
    ) -> None:
        stage, count = self.plan.stages[turn.stage], size(ids)
        steps, tokens = -(-count // stage.batch), count * stage.sample_tokens
        turn.waiting[member.name] = Lease(name, member, ids, steps, tokens, progress, now, rate)

    def adopt(
        self, member: Member, held: Sequence[Held], after: int, tempo: Tempo, now: float
    ) -> tuple[str, ...]:
        """Go on with what a site took on under an earlier connection or coordinator: all of it or nothing
        (then empty). `after` is the round of the state, `tempo` what a round would be now."""
        taken: list[tuple[Turn, str]] = []
        for at, work in enumerate(held):
            turn = self._turn_for(work, at, after, tempo)
            name = self._take(turn, member, work, now) if turn is not None else ""
            if turn is None or not name:
                for before, _ in taken:
                    self.revoke(before, member.name)
                self.drop_empty()
                return ()
            taken.append((turn, name))
        return tuple(name for _, name in taken)

    def _turn_for(self, work: Held, at: int, after: int, tempo: Tempo) -> Turn | None:
        """The round that the work belongs to, opened where nobody has yet; None where it does not fit."""
        stages = self.plan.stages
        if not (0 <= work.stage < len(stages) and work.round == after + 1 + at and at < AHEAD):
            return None
        if not 1 <= work.inner_steps <= stages[work.stage].ids:
            return None
        if at == len(self.turns):
            if work.gradient and (self.plan.outer.sync != "gradients" or work.inner_steps > 1):
                return None
            outer = (1.0, 0.0) if work.gradient else (tempo.learning_rate, tempo.momentum)
            bits = self.plan.outer.sync_bits if work.gradient else self.plan.outer.bits
            like = Tempo(work.inner_steps, *outer, work.waits, bits, gradients=work.gradient)
            self.turns.append(Turn(work.round, work.stage, like, self.plan.outer.quorum))
        turn = self.turns[at]
        same = (turn.stage, turn.tempo.inner_steps) == (work.stage, work.inner_steps)
        same = same and turn.tempo.gradients == work.gradient
        return turn if same and turn.tempo.waits == work.waits else None

    def _take(self, turn: Turn, member: Member, work: Held, now: float) -> str:
        """The name of the lease under which the work goes on; empty where its ids are no longer free."""
        ids = tuple(IdRange(*r) for r in work.ids)
        there = turn.lease_of(member.name)
        if there is not None:
            kept = size(ids) // self.plan.stages[turn.stage].batch
            if there.ids != ids and ids and first(there.ids, size(ids)) == ids and not there.parts:
                self.shorten(turn, there, kept)  # it was cut short before its delta was on its way
            if there.ids != ids:
                return ""
            there.member = member
            return there.name
        stage = self.plan.stages[turn.stage]
        name = self._name(turn)
        if not ids or not all(stage.first_id <= r.start < r.stop <= stage.end_id for r in ids):
            return ""
        if not self.pool.lease_exactly(name, ids):
            return ""
        self._enter(turn, member, name, ids, work.progress, work.rate, now)
        turn.merged.clear()
        return name

    def shorten(self, turn: Turn, lease: Lease, steps: int) -> None:
        """A lease's holder ended after so many of its steps: the ids behind them are free again."""
        stage = self.plan.stages[turn.stage]
        lease.ids = self.pool.shorten(lease.name, steps * stage.batch)
        lease.steps, lease.tokens = steps, size(lease.ids) * stage.sample_tokens
        turn.merged.clear()

    def revoke(self, turn: Turn, worker: str) -> bool:
        """A lease whose delta did not come ends: its ids are free again."""
        lease = turn.revoke(worker)
        if lease is not None:
            self.pool.give_back(lease.name)
            if lease.aside is not None:
                name = f"{lease.name} aside"
                assert self.pool.lease_exactly(name, lease.aside.ids), "they were just given back"
                self._aside[name] = lease.aside
        return lease is not None

    def failed(self, turn: Turn, lease: Lease, why: str) -> None:
        """A lease's numbers are of no use: its ids are under suspicion, and set aside when it ends if that was
        once too often."""
        batch = self.plan.stages[turn.stage].batch
        lease.aside = self.suspects.failed(lease.ids, lease.worker, batch, why)

    def last(self, number: int) -> Turn:
        """A round for ids that were set aside when no others are left to be trained: it changes nothing."""
        assert self._aside and not self.turns
        turn = Turn(number, len(self.plan.stages) - 1, Tempo(1, 0.0, 0.0, True, self.plan.outer.bits), 0)
        self.turns.append(turn)
        return turn

    def revoke_all(self, worker: str) -> None:
        """All that a slot still owes."""
        for turn in self.turns:
            self.revoke(turn, worker)

    def give_up(self, turn: Turn) -> list[Lease]:
        """A round will not be merged: its ids are free again. Returns its leases."""
        leases = turn.leases()
        for lease in leases:
            self.pool.give_back(lease.name)
        self.turns.remove(turn)
        return leases

    def drop_empty(self) -> None:
        """Rounds that nobody holds anything of, from the last."""
        while self.turns and not self.turns[-1].leases():
            self.turns.pop()

    def merged(self) -> None:
        """The first round's ids count as trained, from now on and for ever; with it are committed those that
        were set aside."""
        turn = self.turns.pop(0)
        self.suspects.trained(r for lease in turn.arrived.values() for r in lease.ids)
        turn.skipped, aside = tuple(self._aside.values()), list(self._aside)
        self._aside.clear()
        self.pool.commit([*(lease.name for lease in turn.arrived.values()), *aside])

    def owes(self, worker: str) -> bool:
        """Whether a slot has a delta to send."""
        return any(worker in turn.waiting for turn in self.turns)

    def holds(self, worker: str) -> bool:
        """Whether a slot takes part in a round that is out."""
        return any(turn.lease_of(worker) is not None for turn in self.turns)
