"""The record of a run: one object per committed round, each naming the hash of the one before.

An entry is written by create-if-absent, so of two coordinators one commits a round and the other learns
that it is not the one. The ids in the entries are what was trained; nothing else counts. An entry holds all
that another program needs to take the round again: who trained which ids at which progress, how the deltas
were merged, and the hash of the update that came of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import msgspec

from caudal.domain.errors import AlreadyExists, LedgerBroken, NotFound
from caudal.ports import Blobs
from caudal.train.messages import Ranges

FIRST = "0" * 64
"""What the first entry names as the one before."""


class Contribution(msgspec.Struct, frozen=True):
    """One site's part of a round. `weight` is its share of the merge. `joined`: the first since it joined,
    so its inner optimiser and its residual started empty. `recalled`: work of its own was lost, and its optimiser started
    as it was after its part of that round; its residual too, where it has not `joined`. `progress` is what its
    schedule read. `applied`: before which step each fragment of the round before was applied (empty: all of it before
    the site went on). `planned`: it was cut short, and its schedule is that of so many steps (0: all were taken).
    `machine`: the kind of processor and its threads, where the site knows them."""

    site: str
    worker: str
    ids: Ranges
    tokens: int
    steps: int
    loss: float
    seconds: float
    weight: float
    joined: bool
    progress: tuple[float, float]
    applied: tuple[int, ...] = ()
    machine: str = ""
    rate: float = 1.0
    planned: int = 0
    recalled: int = 0


class Skipped(msgspec.Struct, frozen=True):
    """Ids that were set aside: leased `tries` times, to these workers, and useless each time (`why`). No later
    round trains them."""

    ids: Ranges
    why: str
    workers: tuple[str, ...]
    tries: int


class Entry(msgspec.Struct, frozen=True):
    """A committed round. `state_sha256` is empty in rounds where it was not computed. `update_bytes` is the
    length of the update, all its fragments one after the other; `bits` what it is encoded in, as the deltas
    were; `fragments` where each begins and ends, in numbers. `skipped` were set aside before this round: they
    stand in this commit and in no other. `gradients`: sites sent these, and AdamW's step for their mean is the update.
    A round without sites changes nothing and only says so of the last ids."""

    run: str
    round: int
    epoch: int
    previous: str
    stage: int
    inner_steps: int
    learning_rate: float  # of the outer step; of AdamW's where sites sent gradients
    momentum: float  # of the outer step
    sites: tuple[Contribution, ...]
    tokens: int
    steps: int
    loss: float
    update_sha256: str
    update_bytes: int
    state_sha256: str
    at: float
    bits: int = 8
    fragments: Ranges = ()
    skipped: tuple[Skipped, ...] = ()
    gradients: bool = False


def to_bytes(entry: Entry) -> bytes:
    """Canonical JSON: the same entry has the same bytes, and so the same hash, everywhere."""
    said = msgspec.to_builtins(entry)
    if not entry.skipped:  # nearly always: the bytes are those of an entry from before there was this field
        del said["skipped"]
    if not entry.gradients:
        del said["gradients"]
    for part in said["sites"]:
        if not part["recalled"]:
            del part["recalled"]
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def entry_hash(data: bytes) -> str:
    """What the next entry names as `previous`."""
    return hashlib.sha256(data).hexdigest()


def entry_path(prefix: str, round_number: int) -> str:
    """Where a round's entry lies."""
    return f"{prefix}/ledger/round-{round_number:08d}.json"


def update_path(prefix: str, round_number: int, sha256: str) -> str:
    """Where a round's broadcast bytes lie. The hash is in the name: a coordinator that loses the race for a
    round must not overwrite what the winner's entry points to."""
    return f"{prefix}/updates/round-{round_number:08d}-{sha256[:16]}.bin"


@dataclass(frozen=True, slots=True)
class Link:
    """An entry as it was read, with the hash that the next one has to name."""

    entry: Entry
    hash: str


def broken(round_number: int, why: str, where: str = "") -> LedgerBroken:
    """The error for a round whose record does not add up."""
    return LedgerBroken(
        f"round {round_number} of the ledger does not add up",
        where=where,
        why=why,
        remedy="compare with a copy of the run's folder; do not train on from this one",
    )


def parse(data: bytes, round_number: int, where: str = "") -> Link:
    """An entry, checked for its form. Raises LedgerBroken."""
    try:
        entry = msgspec.json.decode(data, type=Entry)
    except msgspec.DecodeError as error:
        raise broken(round_number, str(error), where) from None
    if to_bytes(entry) != data:
        raise broken(round_number, "the entry is not in its canonical form: it was changed", where)
    if entry.round != round_number:
        raise broken(round_number, f"the entry says it is round {entry.round}", where)
    return Link(entry, entry_hash(data))


def read_entry(blobs: Blobs, prefix: str, round_number: int) -> Link | None:
    """A round's entry; None where it is not committed. Raises LedgerBroken."""
    path = entry_path(prefix, round_number)
    try:
        return parse(blobs.get(path), round_number, path)
    except NotFound:
        return None


def check_link(link: Link, before: Link | None) -> None:
    """Raises LedgerBroken where the entry does not continue the one before it."""
    entry = link.entry
    previous = before.hash if before else FIRST
    if entry.previous != previous:
        raise broken(
            entry.round, f"it names {entry.previous[:12]} as the one before, which is {previous[:12]}"
        )
    if before and entry.epoch < before.entry.epoch:
        raise broken(entry.round, f"epoch {entry.epoch} committed after epoch {before.entry.epoch}")


def read_from(blobs: Blobs, prefix: str, after: Link | None, after_round: int = 0) -> list[Link]:
    """All entries behind `after_round`, in order, chained. Raises LedgerBroken, also where a round is
    missing and later ones are there."""
    links: list[Link] = []
    while True:
        link = read_entry(blobs, prefix, after_round + len(links) + 1)
        if link is None:
            return links
        check_link(link, links[-1] if links else after)
        links.append(link)


def append(blobs: Blobs, prefix: str, entry: Entry, update: bytes | bytearray) -> Entry:
    """Commit a round: first what was broadcast, then, if no other did, the entry with its hash, which is
    returned. Asking twice is asking once. Raises AlreadyExists where another coordinator committed it."""
    entry = msgspec.structs.replace(entry, update_sha256=hashlib.sha256(update).hexdigest())
    blobs.put(update_path(prefix, entry.round, entry.update_sha256), bytes(update))
    path, data = entry_path(prefix, entry.round), to_bytes(entry)
    try:
        blobs.put(path, data, if_absent=True)
    except AlreadyExists:
        if blobs.get(path) != data:
            raise
    return entry
