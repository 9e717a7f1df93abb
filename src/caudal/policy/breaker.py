"""Whether a replica may be asked: a circuit breaker, closed, open or half-open. Pure: its owner says what
happened and when.

A replica that cannot be reached, hangs up or answers 503 is left alone for a while, twice as long each time
that it fails again; then one request tries it, and only when that is answered do others follow. One that
answers nonsense is asked last for a moment, and left alone like the others when it does so again and again.
"""

from __future__ import annotations

BACK_OFF_S = 1.0
"""The first pause: a replica that is started again answers after about half a second (llama.cpp)."""

BACK_OFF_MAX_S = 30.0
SHAKY_S = 2.0
MAX_IN_A_ROW = 3
MAX_RATE = 0.5
RATE_OVER = 20.0
"""How many of the last answers the rate of errors is taken over, roughly (an exponential mean)."""


class Breaker:
    """`until` is 0 while it is closed; until then it is open, and after then half-open. `trial` says that the one
    request of a half-open breaker is on its way. `shaky_until`: asked only where no other is left."""

    __slots__ = ("_back_off_s", "_error_rate", "_in_a_row", "_seen", "shaky_until", "trial", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.trial = False
        self.shaky_until = 0.0
        self._in_a_row = 0
        self._seen = 0
        self._error_rate = 0.0
        self._back_off_s = BACK_OFF_S

    def state(self, now: float) -> str:
        """closed, open or half_open."""
        if not self.until:
            return "closed"
        return "open" if self.until > now else "half_open"

    def admits(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return not self.until or (self.until <= now and not self.trial)

    def begin(self, now: float) -> bool:
        """A request is sent; whether it is the trial of a half-open breaker."""
        if self.until and self.until <= now and not self.trial:
            self.trial = True
            return True
        return False

    def answered(self, trial: bool) -> None:
        """A good answer came, at least its first byte. One to a request from before it opened closes nothing."""
        if self.until and not trial:
            return
        self._seen = seen = self._seen + 1
        if self._error_rate:
            weight = 1.0 / (seen if seen < RATE_OVER else RATE_OVER)
            self._error_rate += weight * (0.0 - self._error_rate)
        self._in_a_row = 0
        if trial:
            self.until, self.trial = 0.0, False
            self._back_off_s = BACK_OFF_S
            self._error_rate, self._seen = 0.0, 0

    def failed(self, now: float, trial: bool, *, hard: bool) -> None:
        """A request failed. `hard`: it could not be answered at all. What fails while it is open had been sent
        before, and says nothing new."""
        if self.until and not trial:
            return
        self._count(1.0)
        self._in_a_row += 1
        self.shaky_until = now + SHAKY_S
        often = self._seen >= RATE_OVER and self._error_rate >= MAX_RATE
        if trial:
            self._back_off_s = min(BACK_OFF_MAX_S, 2.0 * self._back_off_s)
        if trial or hard or often or self._in_a_row >= MAX_IN_A_ROW:
            self.until, self.trial = now + self._back_off_s, False

    def gave_up(self) -> None:
        """The trial ended with nothing learnt, because its client left: the next request is the trial."""
        self.trial = False

    def _count(self, error: float) -> None:
        self._seen += 1
        weight = 1.0 / min(self._seen, RATE_OVER)
        self._error_rate += weight * (error - self._error_rate)
