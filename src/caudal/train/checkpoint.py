"""The state of a run, kept so that any committed round can be had again.

A checkpoint is a content-addressed safetensors object (state and momentum), then a manifest, created last
and only if absent. Restoring takes the newest manifest whose state is whole and takes the rounds after it
again from the bytes that were broadcast: it arrives at the last committed round, at the same sha.
Knows nothing of sites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from caudal.domain.errors import AlreadyExists, NotFound
from caudal.ports import Blobs
from caudal.train import ledger
from caudal.train.interface import Flat, IdRange
from caudal.train.leases import union
from caudal.train.messages import Ranges
from caudal.train.outer import roll_forward, state_sha256


class Totals(msgspec.Struct, frozen=True):
    """What is committed up to a round: the ids as ranges, and what they amount to. `skipped` of the ids were set
    aside, not trained."""

    committed: Ranges = ()
    tokens: int = 0
    steps: int = 0
    skipped: int = 0

    def plus(self, entry: ledger.Entry) -> Totals:
        """With one more round. Raises LedgerBroken where it commits an id again."""
        aside = [IdRange(*r) for skipped in entry.skipped for r in skipped.ids]
        more = [IdRange(*r) for site in entry.sites for r in site.ids] + aside
        try:
            merged = union([IdRange(*r) for r in self.committed], more)
        except ValueError as error:
            raise ledger.broken(entry.round, str(error)) from None
        skipped = self.skipped + sum(r.size for r in aside)
        return Totals(merged, self.tokens + entry.tokens, self.steps + entry.steps, skipped)


class Manifest(msgspec.Struct, frozen=True):
    """What makes a checkpoint one. `entry` is the hash of the round's ledger entry (none for round 0)."""

    run: str
    round: int
    entry: str
    state_sha256: str
    file: str  # sha256 of the safetensors object, which is its name
    totals: Totals
    at: float


@dataclass(slots=True)
class Restored:
    """A run at its last committed round. `from_round` is the checkpoint that it was built from."""

    round: int
    state: Flat
    momentum: Flat
    last: ledger.Link | None
    totals: Totals
    from_round: int


def manifest_path(prefix: str, round_number: int) -> str:
    """Where a checkpoint's manifest lies."""
    return f"{prefix}/manifests/round-{round_number:08d}.json"


def state_path(prefix: str, file_sha256: str) -> str:
    """Where a state lies."""
    return f"{prefix}/states/{file_sha256}.safetensors"


def write(blobs: Blobs, prefix: str, state: Flat, momentum: Flat, manifest: Manifest) -> Manifest:
    """Keep a checkpoint; `manifest.file` is filled in here. Raises StorageFailed where it was not kept: then
    those before are what they were."""
    data = save({"state": state, "momentum": momentum})
    manifest = msgspec.structs.replace(manifest, file=hashlib.sha256(data).hexdigest())
    blobs.put(state_path(prefix, manifest.file), data)
    try:
        blobs.put(manifest_path(prefix, manifest.round), msgspec.json.encode(manifest), if_absent=True)
    except AlreadyExists:
        pass  # the round is committed, so whoever wrote it wrote the same state
    return manifest


def prune(blobs: Blobs, prefix: str, keep: int) -> None:
    """Delete all checkpoints but the first and the newest `keep`. The updates stay, so every round can still
    be had. Manifest first: none ever names a missing state."""
    paths = blobs.list(f"{prefix}/manifests/")
    for path in paths[:-keep]:
        if path == manifest_path(prefix, 0):
            continue
        try:
            manifest = msgspec.json.decode(blobs.get(path), type=Manifest)
        except msgspec.DecodeError:
            continue  # damaged: it names nothing that could be deleted, and restoring passes it over
        blobs.delete(path)
        blobs.delete(state_path(prefix, manifest.file))


def read(blobs: Blobs, prefix: str, path: str) -> tuple[Manifest, Flat, Flat]:
    """A checkpoint: manifest, state, momentum. Raises ValueError saying what is wrong with it."""
    try:
        manifest = msgspec.json.decode(blobs.get(path), type=Manifest)
        data = blobs.get(state_path(prefix, manifest.file))
    except msgspec.DecodeError as error:
        raise ValueError(f"the manifest cannot be read: {error}") from None
    except NotFound:
        raise ValueError("the state that it names is missing") from None
    if hashlib.sha256(data).hexdigest() != manifest.file:
        raise ValueError("its state is truncated or changed: the sha256 is another")
    try:
        tensors = load(data)
        state, momentum = tensors["state"].copy(), tensors["momentum"].copy()
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"its state cannot be read: {error}") from None
    if (
        state.dtype != np.float32
        or state.shape != momentum.shape
        or state_sha256(state) != manifest.state_sha256
    ):
        raise ValueError("its state is not the one that the manifest names")
    return manifest, state, momentum


def update_of(blobs: Blobs, prefix: str, entry: ledger.Entry) -> bytes:
    """What was broadcast in a round. Raises LedgerBroken where it is missing or not what the entry names."""
    path = ledger.update_path(prefix, entry.round, entry.update_sha256)
    try:
        update = blobs.get(path)
    except NotFound:
        raise ledger.broken(entry.round, "what was broadcast is missing", path) from None
    if hashlib.sha256(update).hexdigest() != entry.update_sha256:
        raise ledger.broken(entry.round, "what was broadcast is not what the entry names", path)
    return update


def advance(blobs: Blobs, prefix: str, state: Flat, momentum: Flat, entry: ledger.Entry) -> None:
    """Take a committed round again, in place. Raises LedgerBroken where its bytes or its state differ."""
    path = ledger.update_path(prefix, entry.round, entry.update_sha256)
    update = update_of(blobs, prefix, entry)
    try:
        roll_forward(state, momentum, update, entry.momentum, entry.bits, entry.fragments)
    except ValueError as error:
        raise ledger.broken(entry.round, str(error), path) from None
    if entry.state_sha256 and state_sha256(state) != entry.state_sha256:
        raise ledger.broken(entry.round, "the state after it is not the one that was recorded", path)


def restore(blobs: Blobs, prefix: str, size: int, say: Callable[[str], None]) -> Restored | None:
    """The run at its last committed round; None where nothing was ever kept. A damaged checkpoint is said
    and passed over. Raises LedgerBroken where the record itself is damaged."""
    paths = blobs.list(f"{prefix}/manifests/")
    for path in reversed(paths):
        try:
            manifest, state, momentum = read(blobs, prefix, path)
            if len(state) != size:
                raise ValueError(f"it has {len(state)} parameters, the run has {size}")
            last = _entry_of(blobs, prefix, manifest)
        except ValueError as error:
            say(f"checkpoint {path} cannot be used ({error}); taking the one before")
            continue
        links = ledger.read_from(blobs, prefix, last, manifest.round)
        totals = manifest.totals
        for link in links:
            totals = totals.plus(link.entry)
            advance(blobs, prefix, state, momentum, link.entry)
        end = links[-1] if links else last
        reached = end.entry.round if end else 0
        return Restored(reached, state, momentum, end, totals, manifest.round)
    if paths:
        raise ledger.broken(0, "none of its checkpoints can be used", f"{prefix}/manifests/")
    return None


def at_round(blobs: Blobs, prefix: str, links: Sequence[ledger.Link], round_number: int) -> tuple[Flat, Flat]:
    """State and momentum after any committed round. Raises LedgerBroken where they cannot be had."""
    for path in reversed(blobs.list(f"{prefix}/manifests/")):
        if path > manifest_path(prefix, round_number):
            continue
        try:
            manifest, state, momentum = read(blobs, prefix, path)
        except ValueError:
            continue  # a damaged checkpoint: one before it will do
        for link in links[manifest.round : round_number]:
            advance(blobs, prefix, state, momentum, link.entry)
        return state, momentum
    raise ledger.broken(round_number, "no checkpoint from before it can be used", f"{prefix}/manifests/")


def _entry_of(blobs: Blobs, prefix: str, manifest: Manifest) -> ledger.Link | None:
    """The ledger entry that the checkpoint stands on. Raises ValueError where the checkpoint names another, and
    LedgerBroken where the entry was changed: the last one has no successor that would tell."""
    if manifest.round == 0:
        return None
    link = ledger.read_entry(blobs, prefix, manifest.round)
    if link is None:
        raise ValueError(f"round {manifest.round} of the ledger is missing")
    if link.hash != manifest.entry:
        after = ledger.read_entry(blobs, prefix, manifest.round + 1)
        if after is not None and after.entry.previous == link.hash:
            raise ValueError(f"round {manifest.round} of the ledger is not the one that it was made from")
        where = ledger.entry_path(prefix, manifest.round)
        raise ledger.broken(manifest.round, "its checkpoint was made from another entry", where)
    return link
