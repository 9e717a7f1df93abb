"""A site of a run as a state machine: frames and results in, effects out.

    joining → (welcome) → idle ⇄ computing

Holds the outer state, bit-identical to the coordinator's, and the residual of its own encoding. Does no
I/O; knows nothing of sockets, epochs' objects or torch. The inner side is asked by effects.
"""

from __future__ import annotations

import math

import numpy as np

from caudal.train.codec import Encoder, encoded_bytes
from caudal.train.interface import Flat, IdRange, InnerResult
from caudal.train.messages import (
    Delta,
    Evaluate,
    Evaluated,
    Finished,
    Message,
    Ping,
    Ready,
    Refused,
    Round,
    Update,
    Welcome,
)
from caudal.train.outer import apply_update, state_sha256
from caudal.train.protocol.effects import (
    Assess,
    Compute,
    Done,
    Load,
    Rejoin,
    Send,
    SiteEffect,
    StopCompute,
)


class Site:
    """One connection's worth of a site: a rejoin makes a new one. Inner steps and evaluations answer once,
    in the order in which they were asked for."""

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters
        self.epoch = 0
        self.round = -1  # of the state; -1: none yet
        self.state: Flat = np.zeros(parameters, np.float32)
        self.residual: Flat = np.zeros(parameters, np.float32)
        self.computing: Round | None = None
        self.loss = 0.0
        self._assessing = 0
        self._said: tuple[str, Flat] | None = None  # the lease, and the residual if it is merged
        self._spare: Flat = np.zeros(parameters, np.float32)
        self._encoder = Encoder(parameters)
        self._waiting: list[tuple[Update, bytes]] = []
        self._over = False

    def message(self, message: Message, payload: bytes) -> list[SiteEffect]:
        """The coordinator says something."""
        if self._over or isinstance(message, Ping):
            return []
        if isinstance(message, Finished):
            self._over = True
            return [Done()]
        if isinstance(message, Refused):
            return self._refused(message)
        if isinstance(message, Welcome):
            return self._welcome(message, payload)
        if self.round < 0 or not isinstance(message, Update | Round | Evaluate):
            return self._rejoin(f"{type(message).__name__} was not expected")
        if message.epoch != self.epoch:
            return self._rejoin(f"a message of epoch {message.epoch} in epoch {self.epoch}")
        if isinstance(message, Update):
            return self._update(message, payload)
        if isinstance(message, Round):
            return self._round(message)
        if message.round != self.round:
            return self._rejoin(f"asked to evaluate round {message.round} with the state of {self.round}")
        self._assessing += 1
        return [Assess(self.round, heldout=True)]

    def leave(self) -> None:
        """The connection is over: what still comes from the inner side concerns nobody."""
        self._over = True

    def computed(self, result: InnerResult) -> list[SiteEffect]:
        """The inner steps ended, or were stopped."""
        order, self.computing = self.computing, None
        if self._over:
            return []
        assert order is not None
        out: list[SiteEffect] = []
        if not result.stopped and not self._waiting:
            self.loss = result.loss
            with np.errstate(invalid="ignore", over="ignore"):
                learnt = result.params - self.state
            payload = self._encoder.encode(learnt, self.residual, self._spare)
            self._said = (order.lease, self._spare)
            delta = Delta(
                self.epoch,
                order.round,
                order.lease,
                result.tokens,
                float(result.loss) if math.isfinite(result.loss) else None,
                result.steps,
                result.seconds,
                0,
                self.parameters,
            )
            out.append(Send(0, delta, payload))
        waiting, self._waiting = self._waiting, []
        for update, bytes_ in waiting:
            out += self._update(update, bytes_)
        return out

    def assessed(
        self, round_number: int, values: dict[str, float], heldout: dict[str, object] | None
    ) -> list[SiteEffect]:
        """An evaluation ended."""
        if self._over:
            return []
        self._assessing -= 1
        known = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        return [Send(0, Evaluated(self.epoch, round_number, known, heldout))]

    def _welcome(self, message: Welcome, payload: bytes) -> list[SiteEffect]:
        if self.round >= 0:
            return []  # heard twice
        if len(payload) != 4 * self.parameters:
            return self._rejoin(f"a state of {len(payload)} bytes for {self.parameters} parameters")
        self.state = np.frombuffer(payload, "<f4").astype(np.float32)
        if state_sha256(self.state) != message.state_sha256:
            return self._rejoin("the state is not the one that it is said to be")
        self.epoch, self.round = message.epoch, message.round
        return [Load(self.state, self.round), Send(0, Ready(self.epoch, self.round))]

    def _update(self, message: Update, payload: bytes) -> list[SiteEffect]:
        """Apply a round; while inner steps run, they are stopped first: their lease is no longer ours."""
        if self.computing is not None:
            if message.round <= self.round + len(self._waiting):
                return []
            self._waiting.append((message, payload))
            return [StopCompute()]
        if message.round <= self.round:
            return []  # heard twice
        if message.round != self.round + 1 or len(payload) != encoded_bytes(self.parameters):
            return self._rejoin(f"the update of round {message.round} does not fit the state of {self.round}")
        apply_update(self.state, payload)
        self.round = message.round
        if message.state_sha256 and state_sha256(self.state) != message.state_sha256:
            return self._rejoin(f"the state after round {self.round} is not the coordinator's")
        if self._said is not None and self._said[0] in message.merged:
            self.residual, self._spare = self._said[1], self.residual
        self._said = None
        return [Load(self.state, self.round), Send(0, Ready(self.epoch, self.round))]

    def _round(self, message: Round) -> list[SiteEffect]:
        if message.round <= self.round or (self.computing and message.lease == self.computing.lease):
            return []  # heard twice, or revoked meanwhile
        if self._said is not None and self._said[0] == message.lease:
            return []  # heard twice: the delta is on its way
        if message.round != self.round + 1 or self.computing is not None:
            return self._rejoin(f"a lease for round {message.round} with the state of {self.round}")
        out: list[SiteEffect] = []
        if self._said is not None:
            # Our delta was lost with its round: this is the same round again, from the same state.
            self._said = None
            out.append(Load(self.state, self.round))
        if message.evaluate:
            self._assessing += 1
            out.append(Assess(self.round, heldout=False))
        self.computing = message
        ids = tuple(IdRange(*r) for r in message.ids)
        return [*out, Compute(message.lease, message.stage, ids, message.progress)]

    def _refused(self, message: Refused) -> list[SiteEffect]:
        self._over = True
        fresh = message.reason == "bad_delta"
        return [Rejoin(message.text, max(0.0, message.retry_after_s), fresh, final=message.retry_after_s < 0)]

    def _rejoin(self, why: str) -> list[SiteEffect]:
        self._over = True
        return [Rejoin(why)]
