"""A site of a run as a state machine: frames, results and time in, effects out.

It holds up to two rounds of work, each of them: queued → computing → computed → cut (its delta is on its way)
→ merged. While a delta and the update that it becomes part of travel, the inner steps of the next round go on;
when a fragment of the update arrives, the inner side is shifted by (update - own delta), so that its
parameters are the new outer state plus what it learnt since its delta was cut, and nothing twice.

The outer state is bit-identical to the coordinator's. Work survives the connection and the coordinator: a
site offers it to the next one. Does no I/O and reads no clock; knows nothing of sockets, epochs' objects or
torch.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import structs

from caudal.train.codec import Encoder, decode, encoded_bytes
from caudal.train.interface import Flat, IdRange, InnerResult, RunPlan
from caudal.train.messages import (
    Evaluate,
    Evaluated,
    Finished,
    Held,
    Hurry,
    Message,
    Ping,
    Ready,
    Refused,
    Revoked,
    Round,
    Update,
    Welcome,
)
from caudal.train.outer import state_sha256
from caudal.train.protocol.effects import (
    Assess,
    Compute,
    CutShort,
    Done,
    Forget,
    Load,
    Recall,
    Rejoin,
    Remember,
    Send,
    Shift,
    SiteEffect,
    StopCompute,
)
from caudal.train.protocol.work import Applied, Work


class Site:
    """One site for the life of its process. Inner steps and evaluations answer once, in the order in which
    they were asked for; `now` are seconds of a steady clock."""

    def __init__(self, plan: RunPlan, recalls: bool = False) -> None:
        """`recalls`: the inner side can go back to moments that it had."""
        self._recalls = recalls
        self.parameters = plan.parameters
        self.cuts, self._stages = plan.fragments, plan.stages
        self.epoch = 0  # 0: nobody coordinates
        self.round = -1  # of the state; -1: none yet
        self.state: Flat = np.zeros(self.parameters, np.float32)
        self.residual: Flat = np.zeros(self.parameters, np.float32)
        self._of_gradients = False  # what the residual is left of
        self.works: list[Work] = []
        self.loss = 0.0
        self._unsaid: Flat = np.zeros(self.parameters, np.float32)  # the residual, if what was cut is merged
        self._before: Flat = np.zeros(self.parameters, np.float32)  # the state before the update that arrives
        self._local: Flat = np.zeros(
            self.parameters, np.float32
        )  # the inner side's parameters, while it takes no steps
        self._arrived: set[int] = set()  # fragments of round + 1
        self._computing: Work | None = None
        self._shifts: dict[tuple[int, int], tuple[int, Flat]] = {}  # asked for, and not yet known where
        self._shares = True  # whether the update that arrives is of a round that we take part in, if at all
        self._hurried = False  # the steps under way are cut short
        self._lost = False  # our work does not count: begin again from the state
        self._spoilt = False  # and our moments do not, either
        self._fresh = True
        self._known = 0  # the round of our last part that was merged, since the moments began
        self._known_epoch = 0
        self._inherited = False  # the moments are, and no residual came with them
        self._recalled = 0  # what the next work has to say of that
        self._idle_since = 0.0
        self._encoder = Encoder()
        self._over = False

    @property
    def computing(self) -> bool:
        """Whether inner steps are under way."""
        return self._computing is not None

    def inherit(self, round_number: int) -> None:
        """The inner side has the moments of a process before this one, from behind its part of that round."""
        self._known = self._recalled = round_number
        self._known_epoch, self._inherited = -1, True

    def begin_with(self, state: Flat, round_number: int) -> None:
        """The state after a committed round, found in a store before anybody was asked. Owns the array."""
        assert self.round < 0 and state.shape == (self.parameters,)
        self.state, self.round = state, round_number

    # ---- the connection -----------------------------------------------------------------------------------

    def offer(self) -> tuple[int, str, tuple[Held, ...]]:
        """What a `Hello` says of this site: the round of its state, the state's hash, its unmerged work."""
        self.epoch = 0
        if self.round < 0:
            return -1, "", ()
        if self._arrived:
            # Half an update came. What it did to the inner side cannot be undone to the last bit.
            self.state, self._before = self._before, self.state
            self._arrived.clear()
            self._lost = True
        if self._lost:
            return self.round, state_sha256(self.state), ()
        return self.round, state_sha256(self.state), tuple(work.held() for work in self.works)

    def message(self, message: Message, payload: bytes, now: float) -> list[SiteEffect]:
        """The coordinator says something."""
        if self._over or isinstance(message, Ping):
            return []
        if isinstance(message, Finished):
            self._over = True
            return [Done()]
        if isinstance(message, Refused):
            return self._refused(message)
        if isinstance(message, Welcome):
            return self._welcome(message, payload, now)
        if self.epoch == 0 or not isinstance(message, Update | Round | Hurry | Revoked | Evaluate):
            return self._rejoin(f"{type(message).__name__} was not expected")
        if message.epoch != self.epoch:
            return self._rejoin(f"a message of epoch {message.epoch} in epoch {self.epoch}")
        if isinstance(message, Update):
            return self._update(message, payload, now)
        if isinstance(message, Round):
            return self._round(message, now)
        if isinstance(message, Hurry):
            return self._hurry(message)
        if message.round != self.round or self._arrived:
            return self._rejoin(f"a word on round {message.round} with the state of {self.round}")
        if isinstance(message, Revoked):
            self._lost = True
            return self._begin_again(now)
        return [self._assess(heldout=True)]

    def _welcome(self, message: Welcome, payload: bytes, now: float) -> list[SiteEffect]:
        if self.epoch:
            return []  # heard twice
        if message.keep:
            if (message.round, message.state_sha256) != (self.round, state_sha256(self.state)):
                return self._rejoin("asked to keep a state that it does not hold")
            self.epoch = message.epoch
            if message.adopted and not self._lost:
                return self._adopted(message.adopted, now)
            # idle, with nothing lost: the moments stay what they are
            self._lost = self._lost or bool(self.works)
            return self._begin_again(now)
        if len(payload) != 4 * self.parameters:
            return self._rejoin(f"a state of {len(payload)} bytes for {self.parameters} parameters")
        state = np.frombuffer(payload, "<f4").astype(np.float32)
        if state_sha256(state) != message.state_sha256:
            return self._rejoin("the state is not the one that it is said to be")
        if self._known == self.round and self._known_epoch not in (-1, message.epoch):
            self._spoilt = True  # a round that nothing followed may never have been committed
        self.state, self.epoch, self.round = state, message.epoch, message.round
        self._lost = True
        return self._begin_again(now)

    def _refused(self, message: Refused) -> list[SiteEffect]:
        out: list[SiteEffect] = []
        if message.reason == "bad_delta":  # whatever made it is in the moments too
            self._lost = self._spoilt = True
            if self.computing:
                out.append(StopCompute())
        self.epoch = 0
        return [*out, Rejoin(message.text, max(0.0, message.retry_after_s), final=message.retry_after_s < 0)]

    def _adopted(self, leases: tuple[str, ...], now: float) -> list[SiteEffect]:
        """The coordinator goes on with our work, under names of its own."""
        if len(leases) != len(self.works):
            return self._rejoin(f"{len(leases)} leases adopted of {len(self.works)}")
        out: list[SiteEffect] = []
        for lease, work in zip(leases, self.works, strict=True):
            work.order = structs.replace(work.order, lease=lease, epoch=self.epoch)
            if work.learnt is not None:
                out += work.frames()
        return out + self._advance(now)

    # ---- rounds -------------------------------------------------------------------------------------------

    def _round(self, message: Round, now: float) -> list[SiteEffect]:
        newest = self.works[-1].order.round if self.works else self.round
        if message.round <= newest or self._lost:
            return []  # heard twice, or void already
        if message.round > self.round + 2 or (message.waits and message.round != newest + 1):
            return self._rejoin(f"a lease for round {message.round} with the state of {self.round}")
        self.works.append(Work(message))
        return self._advance(now)

    def _hurry(self, message: Hurry) -> list[SiteEffect]:
        work = self._computing
        if work is None or work.order.round != message.round or self._hurried or self._lost:
            return []
        self._hurried = True
        return [CutShort()]

    def computed(self, result: InnerResult, applied: Applied, now: float) -> list[SiteEffect]:
        """The inner steps ended, or were stopped; `applied` says where the shifts meanwhile came in."""
        work, self._computing = self._computing, None
        assert work is not None
        self._idle_since = now
        self._local = result.params
        shifts, self._shifts = self._shifts, {}
        if result.stopped and self._hurried and result.steps > 0 and not self._lost:
            work.shorten(result.steps, self._stages[work.order.stage].batch)
        elif result.stopped:
            self._lost = True
        self._hurried = False
        if self._lost:
            return self._begin_again(now)
        for key, (start, change) in shifts.items():
            if key not in applied:
                # the inner side adds it behind its last step, as we do here
                self._local[start : start + len(change)] += change
        work.applied = {key: applied.get(key, result.steps) for key in shifts}
        work.result = result
        self.loss = result.loss
        return self._advance(now)

    def _advance(self, now: float) -> list[SiteEffect]:
        """Cut what can be cut, begin what can be begun."""
        out: list[SiteEffect] = []
        if self._lost or self._over:
            return out
        for at, work in enumerate(self.works):
            if work.result is not None and work.learnt is None:
                if work.order.round != self.round + 1 or self._arrived:
                    break
                self._cut(work)
                if self.epoch:
                    out += work.frames()
            if not work.started:
                behind = work.order.round - 1 - self.round  # updates that are still to come
                all_cut = all(w.learnt is not None for w in self.works[:at])
                if self.computing or not all_cut or behind > (0 if work.order.waits else 1):
                    break
                out += self._begin(work, now)
        return out

    def _begin(self, work: Work, now: float) -> list[SiteEffect]:
        order = work.order
        work.started, work.fresh, self._fresh = True, self._fresh, False
        work.recalled, self._recalled = self._recalled, 0
        work.waited_s = max(0.0, now - self._idle_since)
        self._computing = work
        ids = tuple(IdRange(*r) for r in order.ids)
        told = (order.lease, order.stage, ids, order.progress, order.rate, order.gradient, order.round)
        compute = Compute(*told, unsettled=self.works[0].order.round)
        return [self._assess(heldout=False), compute] if order.evaluate else [compute]

    def _cut(self, work: Work) -> None:
        """Take what was learnt since the last cut, or the gradient, and encode it."""
        assert work.result is not None
        residual = self.residual
        if work.order.gradient != self._of_gradients:
            residual = np.zeros_like(residual)  # those were other numbers' errors
        with np.errstate(invalid="ignore", over="ignore"):
            work.learnt = self._local - self.state
        said = work.result.gradient if work.order.gradient else work.learnt
        assert said is not None
        work.payloads = [
            self._encoder.encode(said[a:b], residual[a:b], self._unsaid[a:b], work.order.bits)
            for a, b in self.cuts
        ]

    def _update(self, message: Update, payload: bytes, now: float) -> list[SiteEffect]:
        """Apply one fragment of a round, to the state and to the inner side."""
        if message.round <= self.round or message.fragment in self._arrived:
            return []  # heard twice
        at_fault = message.round != self.round + 1 or not 0 <= message.fragment < len(self.cuts)
        start, stop = (0, 0) if at_fault else self.cuts[message.fragment]
        if at_fault or len(payload) != encoded_bytes(stop - start, message.bits):
            return self._rejoin(f"the update of round {message.round} does not fit the state of {self.round}")
        mine = self.works[0] if self.works and self.works[0].order.round == message.round else None
        if not self._arrived:
            np.copyto(self._before, self.state)
        if mine is not None and mine.order.lease not in message.merged:
            self._lost = True
        self._arrived.add(message.fragment)
        change = decode(payload, stop - start, message.bits)
        self.state[start:stop] += change
        out: list[SiteEffect] = []
        if not self._lost:
            if mine is not None:
                assert mine.learnt is not None, "merged before it was cut"
                change -= mine.learnt[start:stop]
            out.append(self._shift((message.round, message.fragment), start, change))
        elif self.computing:
            out.append(StopCompute())
        if len(self._arrived) < len(self.cuts):
            return out
        return out + self._whole(message, mine, now)

    def _shift(self, key: tuple[int, int], start: int, change: Flat) -> SiteEffect:
        if self._computing is not None:
            self._shifts[key] = (start, change)
        else:
            self._local[start : start + len(change)] += change
            for work in self.works:
                if work.result is not None and work.learnt is None:
                    work.applied[key] = work.result.steps
        return Shift(key, start, change)

    def _whole(self, message: Update, mine: Work | None, now: float) -> list[SiteEffect]:
        """All fragments of a round are applied."""
        self._arrived.clear()
        self.round = message.round
        if message.state_sha256 and state_sha256(self.state) != message.state_sha256:
            self._lost = self._spoilt = True
            self.round = -1
            return self._rejoin(f"the state after round {message.round} is not the coordinator's")
        if self._lost:
            return self._begin_again(now)
        if mine is not None:
            self.residual, self._unsaid = self._unsaid, self.residual
            self._of_gradients = mine.order.gradient
            self._known, self._known_epoch, self._inherited = mine.order.round, mine.order.epoch, False
            self.works.pop(0)
        out: list[SiteEffect] = []
        if mine is not None and self._recalls:
            out.append(Remember(self._known, self._known_epoch))
        if not any(work.started for work in self.works):
            # nothing was learnt since the cut: exactly the state, not almost
            out.append(self._load())
        if not self.works and self.epoch:
            out.append(Send(0, Ready(self.epoch, self.round)))
        return out + self._advance(now)

    def _load(self) -> SiteEffect:
        np.copyto(self._local, self.state)
        return Load(self.state.copy(), self.round)

    def _begin_again(self, now: float) -> list[SiteEffect]:
        """Give up what was learnt and go on from the state, once the inner side stands still. Where nothing
        was lost the moments stay."""
        if self._lost:
            self.works.clear()
            if self.computing:
                return [StopCompute()]
            if self._arrived:
                return []
        out: list[SiteEffect] = []
        if self._lost:
            self._shifts.clear()
            self._lost = False
            out.append(self._go_back())
        self._idle_since = now
        out.append(self._load())
        if self.epoch:
            out.append(Send(0, Ready(self.epoch, self.round)))
        return out

    def _go_back(self) -> SiteEffect:
        """Moments and residual are what they were after our last part that was merged: nothing that was lost is in
        them. Where there is none they begin anew."""
        if self._recalls and self._known and not self._spoilt:
            self._recalled, self._fresh = self._known, self._inherited
            return Recall(self._known)
        self.residual[:] = 0
        self._fresh, self._spoilt, self._known, self._recalled = True, False, 0, 0
        return Forget()

    # ---- evaluation ---------------------------------------------------------------------------------------

    def _assess(self, *, heldout: bool) -> SiteEffect:
        """Evaluate the outer state (the one before, while an update arrives), then go on where it was."""
        state = self._before if self._arrived else self.state
        return Assess(self.round, heldout, state.copy(), self._local.copy())

    def assessed(
        self, round_number: int, values: dict[str, float], heldout: dict[str, object] | None
    ) -> list[SiteEffect]:
        """An evaluation ended."""
        if self._over or not self.epoch:
            return []
        known = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        return [Send(0, Evaluated(self.epoch, round_number, known, heldout))]

    def _rejoin(self, why: str) -> list[SiteEffect]:
        self.epoch = 0
        return [Rejoin(why)]
