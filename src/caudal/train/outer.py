"""The outer optimiser: merges what sites send, takes a step, and says it in int8 or int4. Of deltas it is Nesterov's,
of gradients (in the synchronous part) AdamW's.

What changes the state is the *decoded update*, at the coordinator as at every site, so all copies are
bit-identical. The momentum is a function of the decoded updates alone: with u the update,

    v' = (mu v + u) / (1 + mu)        which makes u = mu v' + lr delta, exactly Nesterov's step,

so whoever holds state and momentum of a committed round and the bytes that were broadcast since holds
everything. What the bytes could not say is kept in a residual and said later; a new epoch starts with none.
Knows nothing of rounds or sites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caudal.train.adam import Adam
from caudal.train.codec import PIECE, Encoder, Payload, coded, encoded_bytes, pieces
from caudal.train.fragments import Cuts, split
from caudal.train.interface import Flat


def state_sha256(state: Flat) -> str:
    """The name of a state: sha256 over its float32 numbers, little endian."""
    return hashlib.sha256(np.ascontiguousarray(state, dtype="<f4").data).hexdigest()


def apply_update(part: Flat, update: Payload, bits: int = 8) -> None:
    """What every site does with a fragment of an update: part += decoded."""
    source, work = coded(update, len(part), bits), np.empty(PIECE, np.float32)
    for numbers, rows in pieces(len(part)):
        part[numbers] += source.piece(numbers, rows, work)


def roll_forward(state: Flat, momentum: Flat, update: Payload, mu: float, bits: int, cuts: Cuts) -> None:
    """Take a committed round again from its bytes: state and momentum, in place. Raises ValueError where the
    bytes are not such a round's."""
    lengths = [encoded_bytes(stop - start, bits) for start, stop in cuts]
    work = np.empty(PIECE, np.float32)
    for (start, stop), payload in zip(cuts, split(memoryview(update), lengths), strict=True):
        source = coded(payload, stop - start, bits)
        for numbers, rows in pieces(stop - start):
            u = source.piece(numbers, rows, work)
            _advance(state[start:stop][numbers], momentum[start:stop][numbers], u, np.float32(mu))


def _advance(state: Flat, momentum: Flat, u: Flat, mu: np.float32) -> None:
    """One piece of a round. The order of the operations is part of the protocol: it decides the last bit."""
    state += u
    if not mu:
        momentum[:] = u
        return
    momentum *= mu
    momentum += u
    momentum *= np.float32(1) / (np.float32(1) + mu)


class Outer:
    """State, momentum and residual of a run, at its coordinator. A round is merged fragment by fragment, as
    they arrive, and taken as a whole or not at all."""

    def __init__(self, state: Flat, momentum: Flat, cuts: Cuts, undecayed: Cuts = ()) -> None:
        """`undecayed`: where weights do not decay, of steps that are made of gradients."""
        assert state.dtype == momentum.dtype == np.float32 and state.shape == momentum.shape
        assert cuts[0][0] == 0 and cuts[-1][1] == len(state)
        self.state = state
        self.momentum = momentum
        self.cuts = cuts
        self.residual: Flat = np.zeros_like(state)
        self._unsaid: Flat = np.zeros_like(state)  # the residual, if what is merged is taken
        self.adam: Adam | None = None  # while sites send gradients
        self._undecayed = undecayed
        self._decays: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._encoder = Encoder()
        self._works = [np.empty(PIECE, np.float32) for _ in range(2)]

    def merge(
        self,
        fragment: int,
        deltas: Sequence[tuple[float, Payload]],
        learning_rate: float,
        mu: float,
        bits: int = 8,
    ) -> bytearray:
        """Merge one fragment's (weight, encoded delta), in the order given, weights summing to 1; returns the
        update to broadcast. Changes nothing that counts: it may be merged again, of other deltas."""
        start, stop = self.cuts[fragment]
        mu32 = np.float32(mu)
        # u = mu v' + lr delta = mu² v + (1 + mu) lr delta: what multiplies a delta goes into its scales
        factor = np.float32(learning_rate) * (np.float32(1) + mu32)
        parts = [coded(p, stop - start, bits).scaled(factor * np.float32(w)) for w, p in deltas]
        buffer, into = self._encoder.start(stop - start, bits)
        momentum, residual = self.momentum[start:stop], self.residual[start:stop]
        unsaid = self._unsaid[start:stop]
        for numbers, rows in pieces(stop - start):
            wanted = parts[0].piece(numbers, rows, self._works[0])
            for part in parts[1:]:
                wanted += part.piece(numbers, rows, self._works[1])
            if mu32:
                wanted += np.multiply(momentum[numbers], mu32 * mu32, out=self._works[1][: len(wanted)])
            wanted += residual[numbers]
            said = self._encoder.piece(wanted, into, numbers, rows)
            np.subtract(wanted, said, out=unsaid[numbers])
        return buffer

    def merge_gradients(
        self,
        fragment: int,
        gradients: Sequence[tuple[float, Payload]],
        rate: float,
        weight_decay: float,
        bits: int = 8,
    ) -> bytearray:
        """As `merge`, of one fragment's (weight, encoded gradient): a step of AdamW at this learning rate for their
        mean."""
        adam = self.adam or self._begin_adam()
        start, stop = self.cuts[fragment]
        parts = [coded(p, stop - start, bits).scaled(np.float32(w)) for w, p in gradients]
        buffer, into = self._encoder.start(stop - start, bits)
        shrink = np.float32(rate * weight_decay)
        for numbers, rows in pieces(stop - start):
            at = slice(start + numbers.start, start + numbers.stop)
            mean = parts[0].piece(numbers, rows, self._works[0])
            for part in parts[1:]:
                mean += part.piece(numbers, rows, self._works[1])
            wanted = adam.piece(at, mean, rate)
            decayed = np.multiply(self.state[at], shrink, out=self._works[1][: len(wanted)])
            decayed *= self._decays[at]
            wanted -= decayed
            wanted += self.residual[at]
            said = self._encoder.piece(wanted, into, numbers, rows)
            np.subtract(wanted, said, out=self._unsaid[at])
        return buffer

    def _begin_adam(self) -> Adam:
        self.adam = Adam(len(self.state))
        self._decays = np.ones(len(self.state), np.bool_)
        for start, stop in self._undecayed:
            self._decays[start:stop] = False
        return self.adam

    def take(self, update: Payload, mu: float, bits: int = 8, *, gradients: bool = False) -> None:
        """Take the step that was merged last, all its fragments one after the other. AdamW's moments end with the
        first that is not of gradients."""
        if gradients and self.adam is not None:
            self.adam.take()
        else:
            self.adam = None
        roll_forward(self.state, self.momentum, update, mu, bits, self.cuts)
        self.residual, self._unsaid = self._unsaid, self.residual
