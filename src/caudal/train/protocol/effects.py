"""What the state machines ask of their shells. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caudal.train.checkpoint import Manifest
from caudal.train.interface import Flat, IdRange
from caudal.train.ledger import Entry
from caudal.train.messages import Message


@dataclass(frozen=True, slots=True)
class Send:
    """Put a frame on a connection (coordinator: by number; a site has one: 0)."""

    connection: int
    message: Message
    payload: bytes | bytearray | memoryview = b""


@dataclass(frozen=True, slots=True)
class Close:
    """End a connection, after what was sent on it."""

    connection: int
    why: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Fill in the update's hash, make the round durable, then answer with `committed` and the whole entry.
    The next round is under way meanwhile; it is not merged before."""

    entry: Entry
    update: bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Write a checkpoint, behind the commits that were asked for before. The arrays are the shell's own."""

    state: Flat
    momentum: Flat
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the run's curve."""

    seq: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Trained:
    """Every id is committed and the final state is evaluated: publish it."""

    values: Mapping[str, float]
    heldout: Mapping[str, Any]


CoordinatorEffect = Send | Close | Commit | Keep | Measured | Say | Trained


@dataclass(frozen=True, slots=True)
class Load:
    """Have the inner side take over this state. The array is the shell's own."""

    state: Flat
    round: int


@dataclass(frozen=True, slots=True)
class Shift:
    """Add `change` to the inner side's parameters from `start` on, before its next step; `computed` then says
    before which. `key` is (round, fragment)."""

    key: tuple[int, int]
    start: int
    change: Flat


@dataclass(frozen=True, slots=True)
class Forget:
    """Have the inner side begin again without moments; a `Load` follows."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Have the inner side go back to the moments that it had before its first work of a round behind `after`; where it
    began none, they are those that it has. A `Load` follows."""

    after: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Our part of a round was merged: the moments from behind it may be kept for a process that comes after this one."""

    round: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Take inner steps, or (`gradient`) one with its gradient; answer with `computed`, and before which step each
    `Shift` meanwhile was applied. It is of `round`; none before `unsettled` will be gone back to."""

    lease: str
    stage: int
    ids: tuple[IdRange, ...]
    progress: tuple[float, float]
    rate: float = 1.0
    gradient: bool = False
    round: int = 0
    unsettled: int = 0


@dataclass(frozen=True, slots=True)
class StopCompute:
    """Have the inner steps under way end soon; they still answer, as stopped."""


@dataclass(frozen=True, slots=True)
class CutShort:
    """Have the inner steps under way end after at least one: what they did counts. They answer as stopped."""


@dataclass(frozen=True, slots=True)
class Assess:
    """Evaluate `state`, which is that of `round`, load `back` again, and answer with `assessed`. The arrays are
    the shell's own."""

    round: int
    heldout: bool
    state: Flat
    back: Flat


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Leave this connection and ask to join again."""

    why: str
    after_s: float = 0.0
    final: bool = field(default=False)  # do not come back: what this site is does not fit the run


@dataclass(frozen=True, slots=True)
class Done:
    """The run is finished: end."""


SiteEffect = (
    Send
    | Load
    | Shift
    | Forget
    | Recall
    | Remember
    | Compute
    | StopCompute
    | CutShort
    | Assess
    | Rejoin
    | Done
)
