"""Who coordinates a run: numbered objects, each created only if absent. The newest is the one that may commit.

An epoch object says where its coordinator listens. Being the newest is checked before a commit as a courtesy;
what decides is the ledger's own create-if-absent, where a fenced coordinator finds the round taken.
"""

from __future__ import annotations

import msgspec

from caudal.domain.errors import AlreadyExists, NotFound, StorageFailed
from caudal.ports import Blobs


class Epoch(msgspec.Struct, frozen=True):
    """One coordinator's term. `address` is host:port."""

    epoch: int
    address: str
    site: str
    gang: str
    at: float


def epoch_path(prefix: str, epoch: int) -> str:
    """Where an epoch's object lies."""
    return f"{prefix}/epoch-{epoch:06d}.json"


def read(blobs: Blobs, prefix: str, epoch: int) -> Epoch | None:
    """One epoch; None where it was not claimed. Raises StorageFailed where the object is damaged."""
    path = epoch_path(prefix, epoch)
    try:
        return msgspec.json.decode(blobs.get(path), type=Epoch)
    except NotFound:
        return None
    except msgspec.DecodeError as error:
        raise StorageFailed(
            "the object of an epoch is damaged", where=path, why=str(error), remedy="remove the object"
        ) from None


def newest(blobs: Blobs, prefix: str, known: Epoch | None = None) -> Epoch | None:
    """The newest epoch, looked for from `known` on. Asks for one object more than there are new epochs: a
    listing would return the whole ledger."""
    while True:
        later = read(blobs, prefix, known.epoch + 1 if known else 1)
        if later is None:
            return known
        known = later


def claim(blobs: Blobs, prefix: str, *, address: str, site: str, gang: str, at: float) -> Epoch:
    """Become the coordinator: create the epoch after the newest."""
    last = newest(blobs, prefix)
    while True:
        mine = Epoch(last.epoch + 1 if last else 1, address, site, gang, at)
        try:
            blobs.put(epoch_path(prefix, mine.epoch), msgspec.json.encode(mine), if_absent=True)
            return mine
        except AlreadyExists:
            last = newest(blobs, prefix, last)
            # An answer that was lost and asked for again finds its own object: that is a claim too.
            if last == mine:
                return mine
