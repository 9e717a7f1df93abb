"""What coordinator and sites say to each other: the headers of frames. Numbers travel as the payload.

Every header is JSON, typed by its `type` field and checked while it is read; unknown fields of a newer
version are ignored. Deltas and updates travel in fragments: every frame carries one, and says of which round.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from caudal.domain.errors import Failed

PROTOCOL = 5
"""Raised when an older program could not take part any more."""

Ranges = tuple[tuple[int, int], ...]

MAX_PARTS = 256
MAX_WORD = 80
Word = Annotated[str, Meta(max_length=MAX_WORD)]
Parts = Annotated[dict[Word, Word], Meta(max_length=MAX_PARTS)]
"""What a plan is made of, by name, short enough to be said: `model.layers` → `4`."""


class BadMessage(Failed):
    """A frame or header that does not follow the protocol; the connection is closed."""

    code = "bad_message"


class _Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """What all headers share."""


class _Part(msgspec.Struct, frozen=True):
    """What is inside a header."""


class Challenge(_Message, frozen=True):
    """Coordinator → site, first: prove that you hold the run's token."""

    nonce: str
    protocol: int = PROTOCOL


class Held(_Part, frozen=True):
    """Work that a site took on before its connection or its coordinator was lost: it asks to go on with it."""

    round: int
    stage: int
    ids: Ranges
    progress: tuple[float, float]
    inner_steps: int
    waits: bool
    rate: float = 1.0
    gradient: bool = False


class Hello(_Message, frozen=True):
    """Site → coordinator: who asks to join. `worker` is the slot (there is one live site per slot; the
    higher `incarnation` wins), `plan` the sha256 of the plan it would train, `parts` what that is made of, so that
    a refusal can say what differs. `proof` answers the challenge.
    `round` and `state_sha256` name the state that it holds already (-1: none), `held` its unmerged work, in
    the order of its rounds. `device` is what the `device_count` accelerators that it computes on call themselves
    (empty: none, or not known), `precision` what they compute in."""

    run: str
    generation: int
    site: str
    worker: str
    incarnation: int
    plan: str
    parameters: int
    version: str
    nonce: str
    proof: str
    protocol: int = PROTOCOL
    round: int = -1
    state_sha256: str = ""
    held: tuple[Held, ...] = ()
    machine: str = ""
    parts: Parts = {}
    device: Word = ""
    device_count: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    precision: Word = ""


class Refused(_Message, frozen=True):
    """Coordinator → site: not admitted, or thrown out. `retry_after_s` < 0: do not come back as you are."""

    reason: str
    text: str
    retry_after_s: float = 1.0


class Welcome(_Message, frozen=True):
    """Coordinator → site, with the state after `round` in float32, or with nothing where the site holds it
    already (`keep`). `adopted` are the leases under which it goes on with what it holds, in order; what is
    not among them is void. `proof` shows that the coordinator holds the token too."""

    epoch: int
    round: int
    state_sha256: str
    proof: str
    keep: bool = False
    adopted: tuple[str, ...] = ()


class Ready(_Message, frozen=True):
    """Site → coordinator: my state is the one after `round`, and I compute nothing."""

    epoch: int
    round: int


class Round(_Message, frozen=True):
    """Coordinator → site: train these ids. `waits`: begin when round - 1 is applied; else as soon as the
    round before is computed (its delta is cut when round - 1 is applied). `progress` is of the stage;
    `rate` is what its learning rate is multiplied by. `evaluate`: evaluate the state first. `gradient`: send
    the gradient of the round's one step instead of what was learnt."""

    epoch: int
    round: int
    lease: str
    stage: int
    ids: Ranges
    progress: tuple[float, float]
    inner_steps: int
    waits: bool = True
    evaluate: bool = False
    bits: int = 8
    rate: float = 1.0
    gradient: bool = False


class Hurry(_Message, frozen=True):
    """Coordinator → site: end this round's steps after the one under way. What was trained counts; the ids
    behind it go back."""

    epoch: int
    round: int


class Delta(_Message, frozen=True):
    """Site → coordinator, with one fragment of what it learnt, encoded. All fragments of a delta say the
    same of it: `loss` in nats per predicted token (JSON has no word for a number that is none, so that is
    None), `seconds` of computing, `waited_s` for updates. `applied`: before which of these steps each
    fragment of the round before was applied (empty: all before the first). `fresh`: the site's moments and
    residual began with this round; `recalled`: the moments, and the residual of a site that is not `fresh`, were those
    of after that round, of which its part was merged (0: of its part before). `planned`: it was cut
    short, and was to be so many steps; then it is of the first `steps` batches of the ids that were leased (0: of all of
    them)."""

    epoch: int
    round: int
    lease: str
    tokens: int
    loss: float | None
    steps: int
    seconds: float
    fragment: int = 0
    bits: int = 8
    waited_s: float = 0.0
    applied: tuple[int, ...] = ()
    fresh: bool = False
    planned: int = 0
    recalled: int = 0


class Update(_Message, frozen=True):
    """Coordinator → all, with one fragment of the encoded step from round - 1 to `round`. `merged` are the
    leases that are in it. `state_sha256` is empty in rounds where it was not computed (see
    docs/explanation/training.md)."""

    epoch: int
    round: int
    merged: tuple[str, ...]
    state_sha256: str
    fragment: int = 0
    bits: int = 8


class Revoked(_Message, frozen=True):
    """Coordinator → site: none of your leases counts any more; begin again from the state after `round`."""

    epoch: int
    round: int


class Evaluate(_Message, frozen=True):
    """Coordinator → site: evaluate the state after `round`, with the held-out questions."""

    epoch: int
    round: int


class Evaluated(_Message, frozen=True):
    """Site → coordinator: `values` has at least `val_loss`; `heldout` only where it was asked for."""

    epoch: int
    round: int
    values: dict[str, float]
    heldout: dict[str, Any] | None = None


class Ping(_Message, frozen=True):
    """Either way: I am here."""


class Finished(_Message, frozen=True):
    """Coordinator → site: the run is finished and published."""


Message = (
    Challenge
    | Hello
    | Refused
    | Welcome
    | Ready
    | Round
    | Hurry
    | Delta
    | Update
    | Revoked
    | Evaluate
    | Evaluated
    | Ping
    | Finished
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """The header's bytes."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """The header, checked. Raises BadMessage."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:  # a ValidationError is one too
        raise BadMessage("a header that cannot be read", why=str(error)) from None
