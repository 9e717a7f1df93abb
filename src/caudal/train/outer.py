"""The outer optimiser: merges the sites' deltas, takes a Nesterov step, and says it in int8.

What changes the state is the *decoded update*, at the coordinator as at every site, so all copies are
bit-identical. The momentum is a function of the decoded updates alone: with u the update,

    v' = (mu v + u) / (1 + mu)        which makes u = mu v' + lr delta, exactly Nesterov's step,

so whoever holds state and momentum of a committed round and the bytes that were broadcast since holds
everything. What int8 could not say is kept in a residual and said later; a new epoch starts with none.
Knows nothing of rounds or sites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from caudal.train.codec import PIECE, Encoder, decode_piece, pieces, views
from caudal.train.interface import Flat

Payload = bytes | bytearray | memoryview


def state_sha256(state: Flat) -> str:
    """The name of a state: sha256 over its float32 numbers, little endian."""
    return hashlib.sha256(np.ascontiguousarray(state, dtype="<f4").data).hexdigest()


def apply_update(state: Flat, update: Payload) -> None:
    """What every site does with an update: state += decoded."""
    scales, q = views(update, len(state))
    work = np.empty(PIECE, np.float32)
    for numbers, rows in pieces(len(state)):
        state[numbers] += decode_piece(scales[rows], q[numbers], work)


def roll_forward(state: Flat, momentum: Flat, update: Payload, mu: float) -> None:
    """Take a committed round again from its bytes: state and momentum, in place."""
    scales, q = views(update, len(state))
    work = np.empty(PIECE, np.float32)
    for numbers, rows in pieces(len(state)):
        u = decode_piece(scales[rows], q[numbers], work)
        _advance(state[numbers], momentum[numbers], u, np.float32(mu))


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
    """State, momentum and residual of a run, at its coordinator."""

    def __init__(self, state: Flat, momentum: Flat) -> None:
        assert state.dtype == momentum.dtype == np.float32 and state.shape == momentum.shape
        self.state = state
        self.momentum = momentum
        self.residual: Flat = np.zeros_like(state)
        self._encoder = Encoder(len(state))
        self._works = [np.empty(PIECE, np.float32) for _ in range(2)]

    def step(self, deltas: Sequence[tuple[float, Payload]], learning_rate: float, mu: float) -> bytearray:
        """Merge (weight, encoded delta), in the order given, weights summing to 1; change the state;
        return the update to broadcast."""
        size = len(self.state)
        lr, mu32 = np.float32(learning_rate), np.float32(mu)
        # u = mu v' + lr delta = mu² v + (1 + mu) lr delta: what multiplies a delta goes into its scales
        factor = lr * (np.float32(1) + mu32)
        decoded = []
        for weight, payload in deltas:
            scales, q = views(payload, size)
            decoded.append((scales * (factor * np.float32(weight)), q))
        buffer, scales_out, q_out = self._encoder.start()
        for numbers, rows in pieces(size):
            scales, q = decoded[0]
            wanted = decode_piece(scales[rows], q[numbers], self._works[0])
            for scales, q in decoded[1:]:
                wanted += decode_piece(scales[rows], q[numbers], self._works[1])
            if mu32:
                wanted += np.multiply(self.momentum[numbers], mu32 * mu32, out=self._works[1][: len(wanted)])
            residual = self.residual[numbers]
            wanted += residual
            said = self._encoder.piece(wanted, scales_out[rows], q_out[numbers])
            np.subtract(wanted, said, out=residual)
            _advance(self.state[numbers], self.momentum[numbers], said, mu32)
        return buffer
