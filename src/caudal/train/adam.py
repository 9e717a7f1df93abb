"""AdamW over one flat vector in numpy: what the coordinator makes of the mean gradient, in rounds where sites send
gradients.

Its moments are the coordinator's alone. What changes the state is the step as it was broadcast, at the coordinator as
at every site, so nobody else needs them; a new coordinator begins without, as it does without a residual. The numbers
are those of the sites' own AdamW. Knows nothing of rounds, sites or bytes.
"""

from __future__ import annotations

import numpy as np

from caudal.train.codec import PIECE, pieces
from caudal.train.interface import Flat

BETAS = (0.9, 0.99)
EPSILON = 1e-8

_NEW = tuple(np.float32(1 - beta) for beta in BETAS)


class Adam:
    """`steps` are those that were taken."""

    def __init__(self, size: int) -> None:
        self.steps = 0
        self._first: Flat = np.zeros(size, np.float32)
        self._second: Flat = np.zeros(size, np.float32)
        self._gradient: Flat = np.zeros(size, np.float32)  # of the step that is to come
        self._works = [np.empty(PIECE, np.float32) for _ in range(2)]

    def piece(self, at: slice, gradient: Flat, rate: float) -> Flat:
        """The step for the numbers `at` of the vector, for their mean gradient (kept for `take`): what is added to
        the parameters, without the weights' decay. Scratch, valid until the next call. May be asked again, with another
        gradient: only `take` counts."""
        self._gradient[at] = gradient
        count = self.steps + 1
        length, power = np.float32(-rate / (1 - BETAS[0] ** count)), np.float32(1 / (1 - BETAS[1] ** count))
        first, second = (work[: len(gradient)] for work in self._works)
        # the moments as they will be: m + (1 - β)(g - m)
        np.square(gradient, out=second)
        second -= self._second[at]
        second *= _NEW[1]
        second += self._second[at]
        second *= power
        np.sqrt(second, out=second)
        second += np.float32(EPSILON)
        np.subtract(gradient, self._first[at], out=first)
        first *= _NEW[0]
        first += self._first[at]
        first *= length
        first /= second
        return first

    def take(self) -> None:
        """The step that was asked for last, of all the vector, was taken."""
        self.steps += 1
        for at, _ in pieces(len(self._gradient)):
            gradient, work = self._gradient[at], self._works[0][: at.stop - at.start]
            np.subtract(gradient, self._first[at], out=work)
            work *= _NEW[0]
            self._first[at] += work
            np.square(gradient, out=work)
            work -= self._second[at]
            work *= _NEW[1]
            self._second[at] += work
