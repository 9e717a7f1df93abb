"""Proof, from the objects alone, that a run trained every sample exactly once and arrived where it says.

Needs no torch and no process of the run. Knows nothing of what the samples are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from caudal.domain.errors import NotFound
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.train import checkpoint, ledger
from caudal.train.interface import Flat, IdRange
from caudal.train.leases import complement, size
from caudal.train.messages import Ranges
from caudal.train.outer import state_sha256


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was proven. `ids` ids are each in exactly one commit; while the run goes on, those of
    `ids_total` that are not are `missing` (ranges); a finished run has none (else the audit fails).

    `skipped` of the ids were set aside, in `skips`: no site could train them.

    `states_checked` counts the states whose recorded hash was reached again by taking the rounds from the
    first checkpoint on; in between, the chain pins what was broadcast.
    """

    run: str
    rounds: int
    epochs: int
    sites: tuple[str, ...]
    ids_total: int
    ids: int
    missing: tuple[IdRange, ...]
    tokens: int
    steps: int
    states_checked: int
    checkpoints_checked: int
    state_sha256: str
    finished: bool
    skipped: int = 0
    skips: tuple[ledger.Skipped, ...] = ()

    def lines(self) -> list[str]:
        """The proof in sentences, for people."""
        lines = [
            f"the chain of {self.rounds} commits is whole ({self.epochs} coordinator terms, sites: "
            f"{', '.join(self.sites) or 'none yet'})",
            f"{self.ids} of {self.ids_total} sample ids: each in exactly one commit ({self.tokens:,} tokens)",
            f"{self.states_checked} recorded states reached again from the recorded updates; "
            f"{self.checkpoints_checked} checkpoints whole",
        ]
        if self.skipped:
            lines.append(f"{self.skipped} of them were set aside, not trained: no site could train them")
            lines += [
                f"  {_ranges(s.ids)}: {s.why} ({s.tries} tries by {', '.join(s.workers)})" for s in self.skips
            ]
        if self.finished:
            lines.append(f"finished; the published state is {self.state_sha256[:16]}")
        elif self.missing:
            lines.append(f"not finished: {size(self.missing)} ids are still to be trained")
        return lines


def _ranges(ids: Ranges) -> str:
    return "ids " + ", ".join(str(a) if b == a + 1 else f"{a}..{b - 1}" for a, b in ids)


class RunRecord(msgspec.Struct, frozen=True):
    """`plan.json`: what a run set out to do, written once by its first coordinator. `spec` is what was asked
    for, from which a replay builds the model again."""

    run: str
    parameters: int
    total_ids: int
    plan_sha256: str
    spec: TrainSpec | None = None


def plan_path(prefix: str) -> str:
    """Where the run's record lies."""
    return f"{prefix}/plan.json"


def result_path(prefix: str) -> str:
    """Where a finished run says so."""
    return f"{prefix}/result.json"


@dataclass(slots=True)
class _Checkpoints:
    """The states' hashes by round, and the first checkpoint itself: round, state, momentum."""

    sha256: dict[int, str]
    first: tuple[int, Flat, Flat] | None


def prefix_of(blobs: Blobs, run: str) -> str:
    """Where the newest generation of a run lies."""
    generations = {path.split("/")[2] for path in blobs.list(f"runs/{run}/") if path.count("/") > 2}
    numbers = [int(g[1:]) for g in generations if g[:1] == "g" and g[1:].isdigit()]
    return f"runs/{run}/g{max(numbers, default=1)}"


def audit_run(blobs: Blobs, run: str) -> AuditReport:
    """Audit the newest generation of a run. Raises as `audit`."""
    return audit(blobs, prefix_of(blobs, run))


def audit(blobs: Blobs, prefix: str) -> AuditReport:
    """Check a whole run. Raises LedgerBroken naming the first round that does not add up, and NotFound
    where there is no run."""
    prefix = prefix.rstrip("/")
    record = read_record(blobs, prefix)
    links = ledger.read_from(blobs, prefix, None)
    _no_stray_entries(blobs, prefix, len(links))
    totals = checkpoint.Totals()
    for link in links:
        if link.entry.run != record.run:
            raise ledger.broken(link.entry.round, f"it belongs to run {link.entry.run!r}")
        totals = totals.plus(link.entry)
        _within(link.entry, record.total_ids)
    kept = _checkpoints(blobs, prefix, links)
    sha256, states = _replay(blobs, prefix, links, kept, record.parameters)
    ranges = tuple(IdRange(*r) for r in totals.committed)
    finished = _finished(blobs, prefix, len(links), sha256)
    missing = complement(ranges, record.total_ids)
    if finished and missing:
        raise ledger.broken(
            len(links), f"the run says it is finished; id {missing[0].start} was never trained"
        )
    return AuditReport(
        run=record.run,
        rounds=len(links),
        epochs=links[-1].entry.epoch if links else 0,
        sites=tuple(sorted({part.site for link in links for part in link.entry.sites})),
        ids_total=record.total_ids,
        ids=size(ranges),
        missing=missing,
        tokens=totals.tokens,
        steps=totals.steps,
        states_checked=states,
        checkpoints_checked=len(kept.sha256),
        state_sha256=sha256,
        finished=finished,
        skipped=totals.skipped,
        skips=tuple(skipped for link in links for skipped in link.entry.skipped),
    )


def read_record(blobs: Blobs, prefix: str) -> RunRecord:
    """What the run set out to do. Raises NotFound where there is no run, LedgerBroken where it is damaged."""
    try:
        return msgspec.json.decode(blobs.get(plan_path(prefix)), type=RunRecord)
    except NotFound:
        raise NotFound(
            "there is no run to audit", where=prefix, remedy="`caudal status` lists the runs that there are"
        ) from None
    except msgspec.DecodeError as error:
        raise ledger.broken(0, str(error), plan_path(prefix)) from None


def _no_stray_entries(blobs: Blobs, prefix: str, rounds: int) -> None:
    """Entries behind a hole: a round in between was taken away."""
    for path in blobs.list(f"{prefix}/ledger/"):
        if path > ledger.entry_path(prefix, rounds):
            raise ledger.broken(rounds + 1, "it is missing, and later ones are there", path)


def _within(entry: ledger.Entry, total_ids: int) -> None:
    ranges = [ids for part in entry.sites for ids in part.ids]
    for start, stop in (*ranges, *(ids for skipped in entry.skipped for ids in skipped.ids)):
        if start < 0 or stop > total_ids:
            raise ledger.broken(entry.round, f"ids {start}..{stop} are not ids of the run")
    if entry.tokens != sum(p.tokens for p in entry.sites) or entry.steps != sum(p.steps for p in entry.sites):
        raise ledger.broken(entry.round, "its sums are not those of its sites")


def _checkpoints(blobs: Blobs, prefix: str, links: list[ledger.Link]) -> _Checkpoints:
    """All whole checkpoints (a damaged one is what restoring passes over, not a lie of the record), each
    compared with the entry that it was made from. Only the first is kept in memory."""
    found = _Checkpoints({}, None)
    for path in blobs.list(f"{prefix}/manifests/"):
        try:
            manifest, state, momentum = checkpoint.read(blobs, prefix, path)
        except ValueError:
            continue
        if manifest.round > len(links):
            raise ledger.broken(manifest.round, "there is a checkpoint of it, but no entry", path)
        if manifest.round:
            link = links[manifest.round - 1]
            if manifest.entry != link.hash:
                raise ledger.broken(manifest.round, "its checkpoint was made from another entry", path)
        found.sha256[manifest.round] = manifest.state_sha256
        found.first = found.first or (manifest.round, state, momentum)
    return found


def _replay(
    blobs: Blobs,
    prefix: str,
    links: list[ledger.Link],
    kept: _Checkpoints,
    parameters: int,
) -> tuple[str, int]:
    """Take the rounds again from the first checkpoint. Returns the last recorded state's hash, and how many
    recorded states were reached."""
    if kept.first is None:
        raise ledger.broken(0, "none of its checkpoints can be used", f"{prefix}/manifests/")
    first, state, momentum = kept.first
    if len(state) != parameters:
        raise ledger.broken(first, f"its checkpoint has {len(state)} parameters instead of {parameters}")
    checked = 0
    for link in links[:first]:
        _update_matches(blobs, prefix, link.entry)
    for link in links[first:]:
        checkpoint.advance(blobs, prefix, state, momentum, link.entry)
        recorded = kept.sha256.get(link.entry.round, "")
        if recorded and state_sha256(state) != recorded:
            raise ledger.broken(link.entry.round, "its checkpoint is not the state that the updates lead to")
        checked += bool(link.entry.state_sha256 or recorded)
    return state_sha256(state), checked


def _update_matches(blobs: Blobs, prefix: str, entry: ledger.Entry) -> None:
    path = ledger.update_path(prefix, entry.round, entry.update_sha256)
    try:
        data = blobs.get(path)
    except NotFound:
        raise ledger.broken(entry.round, "what was broadcast is missing", path) from None
    if hashlib.sha256(data).hexdigest() != entry.update_sha256:
        raise ledger.broken(entry.round, "what was broadcast is not what the entry names", path)


def _finished(blobs: Blobs, prefix: str, rounds: int, sha256: str) -> bool:
    path = result_path(prefix)
    try:
        result = msgspec.json.decode(blobs.get(path))
    except NotFound:
        return False
    except msgspec.DecodeError as error:
        raise ledger.broken(rounds, f"the result cannot be read: {error}", path) from None
    if result["round"] != rounds or result["state_sha256"] != sha256:
        raise ledger.broken(rounds, "the published state is not the one that the ledger leads to", path)
    return True
