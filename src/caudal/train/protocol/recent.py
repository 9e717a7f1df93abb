"""The rounds that were broadcast last: who has a state of one of them joins with the rounds since, not with a whole
state. Kept while they are smaller together than a state, which is what they save. Values."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from caudal.train.messages import Update
from caudal.train.protocol.effects import Send


@dataclass(slots=True)
class Said:
    """One round as it was broadcast: its messages and their payloads, one for each fragment."""

    round: int
    state_sha256: str
    parts: list[tuple[Update, bytearray]]

    @property
    def size(self) -> int:
        """Bytes of all its payloads."""
        return sum(len(payload) for _, payload in self.parts)


@dataclass(slots=True)
class Recent:
    """`most` bytes of rounds; `base` is the sha256 of the state before the first of them, where it is known."""

    most: int
    round: int
    base: str
    _said: deque[Said] = field(default_factory=deque)
    _size: int = 0

    def add(self, said: Said) -> None:
        """One more round, the one behind the last."""
        assert said.round == self.round + len(self._said) + 1
        self._said.append(said)
        self._size += said.size
        while self._size > self.most:
            oldest = self._said.popleft()
            self._size -= oldest.size
            self.round, self.base = oldest.round, oldest.state_sha256

    def since(self, round_number: int, state_sha256: str) -> Sequence[Said] | None:
        """The rounds behind that one, where the state after it is known to be this one; None where it is not."""
        at = round_number - self.round
        if not 0 <= at <= len(self._said):
            return None
        known = self.base if at == 0 else self._said[at - 1].state_sha256
        return list(self._said)[at:] if known and known == state_sha256 else None


def again(connection: int, rounds: Sequence[Said]) -> list[Send]:
    """Those rounds once more, for one site."""
    return [Send(connection, message, payload) for said in rounds for message, payload in said.parts]
