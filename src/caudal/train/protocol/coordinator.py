"""The coordinator of a run as a state machine: events and time in, effects out.

    waiting → round (leases are out, one round ahead) → round ... → final → asking (held-out score) → trained

Ids count as trained by a commit only. A round is broadcast while the keeper makes it durable, and the next
is not merged before, so at most one round that sites have seen can be lost. A site that is lost, late or wrong
gives its leases back and the round goes on with the others; one that comes back with unfinished work goes on
with it if nobody else has it. Who joins is sent the state at once and every update after it, and gets its
first lease at a round's boundary. Does no I/O and reads no clock; knows nothing of sockets, files or torch.
"""

from __future__ import annotations

from msgspec import structs

from caudal.train.checkpoint import Restored
from caudal.train.interface import IdRange
from caudal.train.leases import Pool, size
from caudal.train.ledger import Entry, Link
from caudal.train.messages import (
    Delta,
    Evaluate,
    Evaluated,
    Hello,
    Hurry,
    Message,
    Ready,
    Refused,
    Revoked,
    Update,
    Welcome,
)
from caudal.train.outer import Outer, state_sha256
from caudal.train.protocol import door, intake, merge, rules
from caudal.train.protocol.book import AHEAD, Book
from caudal.train.protocol.effects import Close, Commit, CoordinatorEffect, Keep, Measured, Say, Send, Trained
from caudal.train.protocol.evaluation import Evaluations
from caudal.train.protocol.gather import Gather
from caudal.train.protocol.ladder import Ladder
from caudal.train.protocol.lateness import late, may_hurry
from caudal.train.protocol.members import Member, Members, MemberState, Phase
from caudal.train.protocol.recent import Recent, Said, again
from caudal.train.protocol.scribe import Scribe
from caudal.train.protocol.terms import Terms
from caudal.train.protocol.turns import Lease, Turn

BUSY, IDLE, LATE, LOADING = MemberState.BUSY, MemberState.IDLE, MemberState.LATE, MemberState.LOADING


class Coordinator:
    """Every event takes `now`, seconds of a steady clock, and returns what to do, in order.

    `at_offset` turns `now` into seconds since 1970 for the records: the wall clock is read once, so that it
    may jump. Owns the arrays in `restored`.
    """

    def __init__(self, terms: Terms, restored: Restored, now: float, at_offset: float) -> None:
        assert len(restored.state) == terms.plan.parameters
        self.terms, self.plan = terms, terms.plan
        self.outer = Outer(restored.state, restored.momentum, terms.plan.fragments, terms.plan.undecayed)
        self.round = restored.round  # applied to the state
        pool = Pool(self.plan.total_ids, [IdRange(*r) for r in restored.totals.committed])
        self.book = Book(self.plan, pool, terms.epoch)
        self.scribe = Scribe(self.plan, pool, terms.epoch, restored, terms.checkpoint_every, now, at_offset)
        self.members = Members()
        self.pace = rules.Pace()
        self.ladder = Ladder.begun(self.plan.outer, restored.last.entry if restored.last else None)
        self.phase = Phase.WAITING
        self.evaluations = Evaluations(terms.evaluate_every * self.plan.outer.inner_steps)
        self.stage = 0
        self._recent = Recent(4 * self.plan.parameters, self.round, state_sha256(self.outer.state))
        self._gather = Gather(terms.sites)
        self.strikes = door.Strikes()
        self._why = ""  # the ladder's word, not yet in the curve
        self._out: list[CoordinatorEffect] = []

    @property
    def pool(self) -> Pool:
        """Which ids are free, leased, committed."""
        return self.book.pool

    @property
    def last(self) -> Link | None:
        """The last committed round."""
        return self.scribe.last

    @property
    def settled(self) -> bool:
        """Whether the state is that of a round which is durable."""
        return self.scribe.pending is None

    # ---- events -------------------------------------------------------------------------------------------

    def hello(self, connection: int, hello: Hello, proof: str, now: float) -> list[CoordinatorEffect]:
        """A site that proved it holds the token asks to join; `proof` is the coordinator's own."""
        older = self.members.named(hello.worker)
        if self.members.of(connection) is not None:
            return self._take()  # heard twice
        refusal = (
            door.refusal(hello, self.plan, self.terms.generation)
            or door.duplicate(hello, older)
            or self.strikes.refusal(hello.worker, now)
        )
        if refusal is not None:
            self._say(f"{hello.worker} at {hello.site} is refused: {refusal.text}")
            self._out += [Send(connection, refusal), Close(connection, refusal.reason)]
            return self._take()
        if older is not None:
            self._drop(older, "the same slot joined again")
            self._out.append(Close(older.connection, "the same slot joined again"))
        member = Member(connection, hello, LOADING, now, since=now)
        self.members.by_connection[connection] = member
        self._welcome(member, proof, now)
        self._advance(now)
        return self._take()

    def _welcome(self, member: Member, proof: str, now: float) -> None:
        """The state, or the rounds since the one that the site has; and leases for the work that it brings."""
        hello, sha256 = member.hello, state_sha256(self.outer.state)
        keep = (hello.round, hello.state_sha256) == (self.round, sha256)
        missed = None if keep else self._recent.since(hello.round, hello.state_sha256)
        adopted: tuple[str, ...] = ()
        member.round = hello.round if missed else self.round
        if missed:
            known = Welcome(self.terms.epoch, hello.round, hello.state_sha256, proof, keep=True)
            self._out += [Send(member.connection, known), *again(member.connection, missed)]
            self._say(f"{member.name} at {hello.site} joins with the state of round {hello.round}")
            return
        if keep and self.phase in (Phase.WAITING, Phase.ROUND):
            tempo = self.ladder.tempo(self.scribe.done, self.book.cooled())
            adopted = self.book.adopt(member, hello.held, self.round, tempo, now)
        welcome = Welcome(self.terms.epoch, self.round, sha256, proof, keep, adopted)
        self._out.append(Send(member.connection, welcome, b"" if keep else self.outer.state.tobytes()))
        self._say(
            f"{member.name} at {hello.site} joins at round {self.round}, {len(adopted)} rounds of work with it"
        )
        if adopted:
            member.state = IDLE  # it takes part already; `_restate` says busy
            turn, new = self.book.turns[0], self.last is None or self.last.entry.epoch != self.terms.epoch
            lease = turn.lease_of(member.name)
            if new and lease is not None and may_hurry(turn, lease):
                self._hurry(turn, lease)  # a new coordinator's first commit comes soon
            self.phase = Phase.ROUND
            self._run_first(now)

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
            member.round, member.follows = max(member.round, message.round), True
            if message.round == self.round and member.state in (LOADING, LATE):
                member.state = IDLE
        elif isinstance(message, Evaluated) and message.epoch == self.terms.epoch:
            self._on_evaluated(member, message, now)
        self._advance(now)
        return self._take()

    def heard(self, connection: int, now: float) -> None:
        """Bytes came: whoever sends a long frame is not silent."""
        member = self.members.of(connection)
        if member is not None:
            member.heard_at = now

    def lost(self, connection: int, why: str, now: float) -> list[CoordinatorEffect]:
        """A connection ended."""
        member = self.members.of(connection)
        if member is not None:
            self._drop(member, why)
            self._advance(now)
        return self._take()

    def committed(self, entry: Entry, now: float) -> list[CoordinatorEffect]:
        """The round is durable; `entry` is what was asked for, with the update's hash."""
        assert entry.round == self.round
        word = {"why": self._why} if self._why else {}
        self._why = ""
        row = self.scribe.committed(entry, self.evaluations.for_curve(), now)
        self._out.append(Measured(entry.round, {**row, **word}))
        if self.scribe.keep_due(entry):
            self.keep()
        self._advance(now)
        return self._take()

    def tick(self, now: float) -> list[CoordinatorEffect]:
        """Time went by; to be called a few times a second."""
        for member in self.members.all():
            owes = self.book.owes(member.name) or member.name == self.evaluations.asked
            # who is late may have missed a word: it would be late for ever
            owes = owes or member.state in (LOADING, LATE)
            stuck = owes and now - member.since > rules.STUCK_S
            if stuck or now - member.heard_at > rules.LIVENESS_S:
                why = "no progress for too long" if stuck else "silent for too long"
                self._drop(member, why)
                self._out.append(Close(member.connection, why))
        turn = self.book.turns[0] if self.book.turns else None
        if turn is not None and now > turn.deadline and len(turn.arrived) >= turn.quorum:
            asked, lost = late(turn, now)
            for lease in asked:
                self._hurry(turn, lease)
            for lease in lost:
                self._say(f"{lease.worker} is late: its leases go back")
                self.book.revoke_all(lease.worker)
                lease.member.state = LATE
        self._advance(now)
        return self._take()

    def keep(self) -> None:
        """Have the last committed state kept as a checkpoint; the effect comes with the next event's."""
        manifest = self.scribe.manifest(self.round, self.outer.state)
        self._out.append(Keep(self.outer.state.copy(), self.outer.momentum.copy(), manifest))

    # ---- what follows from them ---------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Do what the state calls for, until it calls for nothing more."""
        if self.phase is Phase.ROUND:
            self._first_turn(now)
        if self.phase in (Phase.WAITING, Phase.ROUND):
            self._fill(now)
        if self.phase is Phase.FINAL:
            self._ask(now)
        self._restate()

    def _hurry(self, turn: Turn, lease: Lease) -> None:
        """Ask for what a site has of a round by now."""
        lease.hurried = True
        self._out.append(Send(lease.member.connection, Hurry(self.terms.epoch, turn.number)))

    def _first_turn(self, now: float) -> None:
        """Merge the first round once all who owe a delta have sent it, or give it up where nobody will."""
        turns = self.book.turns
        if turns and not turns[0].leases():
            self._give_up("nobody is left of it")
        elif turns and not turns[0].waiting:
            if len(turns[0].arrived) < turns[0].quorum:
                self._give_up(f"only {len(turns[0].arrived)} sites are left of it")
            elif self.settled and self._gathered(now):
                self._merge(turns[0], now)
        elif turns:
            merge.early(self.outer, turns[0], self.plan)
        if not turns:
            self.phase = Phase.WAITING

    def _give_up(self, why: str) -> None:
        """The rounds that are out will not be merged: all begin again from the state."""
        self._say(f"round {self.round + 1} is given up: {why}")
        for turn in list(self.book.turns):
            for lease in self.book.give_up(turn):
                if self.members.of(lease.member.connection) is lease.member:
                    lease.member.state = LATE
        for member in self.members.in_state([LATE]):
            self._out.append(Send(member.connection, Revoked(self.terms.epoch, self.round)))

    def _fill(self, now: float) -> None:
        """Lease what can be leased: the next round, and one ahead of it where sites do not wait."""
        while len(self.book.turns) < AHEAD:
            turns = self.book.turns
            ready = self.members.in_state([IDLE, BUSY])
            if self.pool.done:
                self.phase = Phase.FINAL if self.settled and not turns else self.phase
                return
            if not turns and not size(self.pool.free):  # what is left was set aside
                if self.settled:
                    self._merge(self.book.last(self.round + 1), now)
                return
            tempo = self.ladder.tempo(self.scribe.done, self.book.cooled())
            self._tell_ladder()
            first = not turns
            if first and not (ready and self._gathered(now)):
                return
            if (not first and (turns[0].tempo.waits or tempo.waits)) or not size(self.pool.free):
                return
            if len(ready) < self.plan.outer.quorum:
                return
            turn = self.book.open(self.round + 1 + len(turns), tempo, ready, now)
            turn.evaluator = self.evaluations.evaluator([lease.worker for lease in turn.leases()])
            for lease in turn.leases():
                self._out.append(Send(lease.member.connection, turn.order(lease, self.terms.epoch)))
            self.phase = Phase.ROUND
            if first:
                self._run_first(now)
        for member in self.members.in_state([IDLE]):
            turn = self.book.turns[-1]
            if not self.book.holds(member.name):
                fresh = self.book.add(turn, member, now)
                if fresh is not None:
                    self._out.append(Send(member.connection, turn.order(fresh, self.terms.epoch)))

    def _run_first(self, now: float) -> None:
        """The first round runs: it has so long."""
        turn = self.book.turns[0]
        self.stage = turn.stage
        known = [size(lease.ids) * lease.member.seconds_per_id for lease in turn.leases()]
        turn.deadline = now + self.pace.grace_s(max(known, default=0.0) if all(known) else 0.0)
        if turn.evaluator:
            turn.deadline += 3 * self.evaluations.seconds

    def _gathered(self, now: float) -> bool:
        """Whether to go on: at once, but for a new epoch's first round, which waits a little for all."""
        first_states = self.round == 0 and bool(self.members.in_state([LOADING]))
        return self._gather.over(now, len(self.members.in_state([IDLE, BUSY])), first_states)

    def _on_delta(self, member: Member, delta: Delta, payload: bytes, now: float) -> None:
        taken = intake.take(self.book, self.pace, self.plan, member, delta, payload)
        if taken is None:
            return
        turn, lease, problem = taken
        if problem:
            self._refuse_delta(member, problem, now)
            return
        self.strikes.clear(member.name)
        intake.answered(turn, lease, self.pace, now)

    def _refuse_delta(self, member: Member, problem: str, now: float) -> None:
        self.strikes.add(member.name, now)
        self._say(f"a delta of {member.name} is refused: {problem}")
        self._out += [
            Send(member.connection, Refused("bad_delta", problem)),
            Close(member.connection, "bad delta"),
        ]
        self._drop(member, f"its delta was refused: {problem}")

    def _merge(self, turn: Turn, now: float) -> None:
        parts = merge.finish(self.outer, turn, self.plan)
        self.round += 1
        for lease in turn.leases():
            self.pace.merged(lease.size, turn.stage, turn.tempo.alike)
        self.book.merged()
        update = b"".join(parts)
        entry = self.scribe.merged(turn, self.outer.state, len(update), now)
        merged = tuple(lease.name for lease in turn.leases())
        word = Update(self.terms.epoch, self.round, merged, entry.state_sha256, bits=turn.tempo.bits)
        said = [(structs.replace(word, fragment=f), part) for f, part in enumerate(parts)]
        self._recent.add(Said(self.round, entry.state_sha256, said))
        self._out += [Send(m.connection, order, part) for order, part in said for m in self.members.all()]
        self._out.append(Commit(entry, update))
        self.evaluations.stepped(entry.inner_steps)
        self.ladder.saw(turn.tempo.rung, turn.stage, self.scribe.done, *merge.waiting(turn), entry.loss)
        self.ladder.joining([self.round - m.round for m in self.members.following()])
        if self.book.turns:
            self._run_first(now)

    # ---- evaluations --------------------------------------------------------------------------------------

    def _ask(self, now: float) -> None:
        """Have one site answer the held-out questions."""
        ready = self.members.in_state([IDLE])
        if ready:
            chosen = self.evaluations.next_of(ready)
            chosen.since, self.evaluations.asked = now, chosen.name
            self._out.append(Send(chosen.connection, Evaluate(self.terms.epoch, self.round)))
            self._say(f"{chosen.name} answers the held-out questions")
            self.phase = Phase.ASKING

    def _on_evaluated(self, member: Member, message: Evaluated, now: float) -> None:
        if not self.round - AHEAD <= message.round <= self.round:
            return
        asked = self.phase is Phase.ASKING and member.name == self.evaluations.asked
        if asked and message.heldout is not None:
            self.phase, self.evaluations.asked = Phase.TRAINED, ""
            self.evaluations.heard(message.values)
            self._out.append(Trained(message.values, message.heldout))
        elif message.heldout is None:
            self.evaluations.heard(message.values, now - member.since)
            member.since = now

    # ---- members ------------------------------------------------------------------------------------------

    def _restate(self) -> None:
        """Busy is who owes a delta or an answer."""
        for member in self.members.in_state([IDLE, BUSY]):
            busy = self.book.owes(member.name) or member.name == self.evaluations.asked
            member.state = BUSY if busy else IDLE

    def _drop(self, member: Member, why: str) -> None:
        """A member is gone; its leases go back to the pool. A delta that arrived before stays."""
        self._say(f"{member.name} at {member.hello.site} is gone: {why}")
        self.book.revoke_all(member.name)
        del self.members.by_connection[member.connection]
        if self.phase is Phase.ASKING and member.name == self.evaluations.asked:
            self.phase, self.evaluations.asked = Phase.FINAL, ""

    def _tell_ladder(self) -> None:
        if self.ladder.why:
            self._say(self.ladder.why)
            self._why, self.ladder.why = self.ladder.why, ""

    def _say(self, text: str) -> None:
        self._out.append(Say(text))

    def _take(self) -> list[CoordinatorEffect]:
        out, self._out = self._out, []
        return out
