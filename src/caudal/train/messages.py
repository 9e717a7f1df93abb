"""What coordinator and sites say to each other: the headers of frames. Numbers travel as the payload.

Every header is JSON, typed by its `type` field and checked while it is read; unknown fields of a newer
version are ignored. Updates and deltas name the fragment of the model they carry (`start`, `stop` in
numbers): today one fragment is the whole model.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caudal.domain.errors import Failed

PROTOCOL = 1
"""Raised when an older program could not take part any more."""

Ranges = tuple[tuple[int, int], ...]


class BadMessage(Failed):
    """A frame or header that does not follow the protocol; the connection is closed."""

    code = "bad_message"


class _Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """What all headers share."""


class Challenge(_Message, frozen=True):
    """Coordinator → site, first: prove that you hold the run's token."""

    nonce: str
    protocol: int = PROTOCOL


class Hello(_Message, frozen=True):
    """Site → coordinator: who asks to join. `worker` is the slot (there is one live site per slot; the
    higher `incarnation` wins), `plan` the sha256 of the plan it would train. `proof` answers the challenge."""

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


class Refused(_Message, frozen=True):
    """Coordinator → site: not admitted, or thrown out. `retry_after_s` < 0: do not come back as you are."""

    reason: str
    text: str
    retry_after_s: float = 1.0


class Welcome(_Message, frozen=True):
    """Coordinator → site, with the state after `round` in float32. `proof` shows that the coordinator holds
    the token too."""

    epoch: int
    round: int
    state_sha256: str
    proof: str


class Ready(_Message, frozen=True):
    """Site → coordinator: my state is the one after `round`, and I compute nothing."""

    epoch: int
    round: int


class Round(_Message, frozen=True):
    """Coordinator → site: train these ids, from the state after round - 1. `progress` is of the stage.
    `evaluate`: evaluate that state first."""

    epoch: int
    round: int
    lease: str
    stage: int
    ids: Ranges
    progress: tuple[float, float]
    evaluate: bool = False


class Delta(_Message, frozen=True):
    """Site → coordinator, with what it learnt, encoded. `loss` is in nats per predicted token; JSON has no
    word for a number that is none, so that is None."""

    epoch: int
    round: int
    lease: str
    tokens: int
    loss: float | None
    steps: int
    seconds: float
    start: int
    stop: int
    fragment: int = 0
    bits: int = 8


class Update(_Message, frozen=True):
    """Coordinator → all, with the encoded step from round - 1 to `round`. `merged` are the leases that are
    in it. `state_sha256` is empty in rounds where it was not computed (see docs/explanation/training.md)."""

    epoch: int
    round: int
    merged: tuple[str, ...]
    state_sha256: str
    start: int
    stop: int
    fragment: int = 0
    bits: int = 8


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
    | Delta
    | Update
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
