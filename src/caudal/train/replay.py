"""A run once more, on one machine, from its ledger: does the training that it records lead to what was broadcast?

Where an audit takes the recorded updates again, this takes the inner steps again: every site's, on the ids
that it leased, in the order of the rounds, with what it heard of the other sites added before the step where
it added it. What comes of it must be the broadcast bytes, round by round. That holds on the same kind of
processor with the same number of threads; the report names both where they differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from caudal.domain.errors import UsageError
from caudal.ports import Blobs
from caudal.train import checkpoint, ledger
from caudal.train.codec import Encoder, decode, encoded_bytes
from caudal.train.fragments import split
from caudal.train.interface import Flat, IdRange, Inner, Moments, Recalling, RunPlan
from caudal.train.outer import Outer, roll_forward, state_sha256

MakeInner = Callable[[], Inner]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """`first` is the round from which it was taken again: the newest up to the one asked for where every site
    began anew (round 1 does). `differs` is the first round that led elsewhere (0: none), of those asked for."""

    run: str
    first: int
    last: int
    compared: int
    differs: int
    state_sha256: str
    machine: str
    machines: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether the sites' machines are like this one, so that the bits have to be the same."""
        return all(machine in ("", self.machine) for machine in self.machines)


@dataclass(slots=True)
class _Site:
    """One site as it was: its inner side, residual, and what it cut in which round."""

    inner: Inner
    residual: Flat
    unsaid: Flat
    learnt: Flat
    cut: int = -1
    kept: dict[int, tuple[Moments, Flat, bool]] = field(default_factory=dict)  # as it was after these rounds
    of_gradients: bool = False  # what the residual is left of
    encoder: Encoder = field(default_factory=Encoder)


class _Replay:
    """The run at one round after the other."""

    def __init__(
        self,
        plan: RunPlan,
        state: Flat,
        momentum: Flat,
        make_inner: MakeInner,
        recalled: Collection[tuple[str, int]] = (),
    ) -> None:
        """`recalled`: which workers go back to how they were after which of their rounds."""
        self._recalled = frozenset(recalled)
        self.plan, self._make_inner = plan, make_inner
        self.outer = Outer(state, momentum, plan.fragments, plan.undecayed)
        self.before: Flat = state.copy()  # the state one round earlier
        self.update: list[Flat] = []  # what led from there to the state, by fragment
        self.epoch = 0
        self.sites: dict[str, _Site] = {}

    def round(self, entry: ledger.Entry) -> bytes:
        """Train a round; returns what would have been broadcast. The state stays: see `take`."""
        if entry.epoch != self.epoch:
            self.outer.residual[:] = 0  # a new coordinator begins without, and without moments
            self.outer.adam = None
            self.epoch = entry.epoch
        if not entry.sites:
            return bytes(entry.update_bytes)  # nobody trained: zeros
        payloads = [self._site(part, entry) for part in entry.sites]
        parts = []
        for fragment in range(len(self.plan.fragments)):
            weighted = [
                (part.tokens / entry.tokens, said[fragment])
                for part, said in zip(entry.sites, payloads, strict=True)
            ]
            if entry.gradients:
                decay = self.plan.stages[entry.stage].weight_decay
                parts.append(
                    self.outer.merge_gradients(fragment, weighted, entry.learning_rate, decay, entry.bits)
                )
                continue
            parts.append(
                self.outer.merge(fragment, weighted, entry.learning_rate, entry.momentum, entry.bits)
            )
        return b"".join(parts)

    def take(self, update: bytes, entry: ledger.Entry) -> None:
        """Go on behind a round with the bytes that were broadcast."""
        np.copyto(self.before, self.outer.state)
        if entry.sites:
            self.outer.take(update, entry.momentum, entry.bits, gradients=entry.gradients)
        else:
            state, momentum = self.outer.state, self.outer.momentum
            roll_forward(state, momentum, update, entry.momentum, entry.bits, self.outer.cuts)
        cuts = self.plan.fragments
        lengths = [encoded_bytes(stop - start, entry.bits) for start, stop in cuts]
        said = split(memoryview(update), lengths)
        self.update = [decode(p, b - a, entry.bits) for (a, b), p in zip(cuts, said, strict=True)]
        merged = {part.worker for part in entry.sites}
        for worker, site in self.sites.items():
            if worker in merged:
                site.residual, site.unsaid = site.unsaid, site.residual
            if worker in merged and (worker, entry.round) in self._recalled:
                assert isinstance(site.inner, Recalling)
                site.kept[entry.round] = site.inner.moments(), site.residual.copy(), site.of_gradients

    def _site(self, part: ledger.Contribution, entry: ledger.Entry) -> list[bytearray]:
        """One site's steps of a round, and its delta."""
        site = self.sites.get(part.worker)
        if site is None:
            size = self.plan.parameters
            site = _Site(
                self._make_inner(),
                np.zeros(size, np.float32),
                np.zeros(size, np.float32),
                np.zeros(0, np.float32),
            )
            self.sites[part.worker] = site
        if part.joined:
            site.inner.forget()
            site.residual[:] = 0
            site.cut = -1
        if part.recalled:
            assert isinstance(site.inner, Recalling)
            moments, residual, of_gradients = site.kept[part.recalled]
            site.inner.recall(moments)
            if not part.joined:
                site.residual[:], site.of_gradients = residual, of_gradients
            site.cut = -1
        late = part.applied  # before which step each fragment of the round before came in
        if not late:
            site.inner.load(self.outer.state)
        elif site.cut != entry.round - 1:
            site.inner.load(self.before)
        changes = self._changes(site, entry.round) if late else []
        ids = [IdRange(*r) for r in part.ids]
        if part.planned:  # its schedule is that of all that it was to do: any ids will do behind the last one
            of = self.plan.stages[entry.stage]
            missing = (part.planned - 1) * of.batch + 1 - sum(r.size for r in ids)
            ids.append(IdRange(of.first_id, of.first_id + missing))

        def between(step: int) -> bool:
            if part.planned and step == part.steps:
                return True
            for fragment, at in enumerate(late):
                if at == step:
                    site.inner.add(self.plan.fragments[fragment][0], changes[fragment])
            return False

        work = site.inner.gradient if entry.gradients else site.inner.run
        result = work(entry.stage, ids, part.progress, between, part.rate)
        local = result.params
        for fragment, at in enumerate(late):
            if at >= result.steps:
                start, stop = self.plan.fragments[fragment]
                local[start:stop] += changes[fragment]
                site.inner.add(start, changes[fragment])
        site.learnt, site.cut = local - self.outer.state, entry.round
        said = site.learnt
        if entry.gradients:
            assert result.gradient is not None
            said = result.gradient
        if site.of_gradients != entry.gradients:
            site.of_gradients = entry.gradients
            site.residual[:] = 0
        return [
            site.encoder.encode(
                said[start:stop], site.residual[start:stop], site.unsaid[start:stop], entry.bits
            )
            for start, stop in self.plan.fragments
        ]

    def _changes(self, site: _Site, round_number: int) -> list[Flat]:
        """What the round before changed at a site: its update, less what the site had learnt itself."""
        if site.cut != round_number - 1:
            return self.update
        cuts = self.plan.fragments
        return [u - site.learnt[start:stop] for u, (start, stop) in zip(self.update, cuts, strict=True)]


def beginning(links: Sequence[ledger.Link], wanted: int) -> int:
    """The newest round up to `wanted` before which nothing has to be known but the state: a coordinator began
    with it, and so did every site that trained from there on."""
    for first in range(min(wanted, len(links)), 1, -1):
        entry, before = links[first - 1].entry, links[first - 2].entry
        seen: set[str] = set()
        fresh = entry.epoch != before.epoch
        for link in links[first - 1 :]:
            for part in link.entry.sites:
                late = link.entry.round == first and any(part.applied)
                known = not part.recalled or part.recalled >= first
                fresh = fresh and (part.worker in seen or part.joined) and known and not late
                seen.add(part.worker)
            if not fresh:
                break
        if fresh:
            return first
    return 1


def recalled_of(links: Sequence[ledger.Link]) -> set[tuple[str, int]]:
    """Which workers go back to how they were after which of their rounds."""
    return {(p.worker, p.recalled) for link in links for p in link.entry.sites if p.recalled}


def replay(
    blobs: Blobs, prefix: str, plan: RunPlan, make_inner: MakeInner, wanted: int, machine: Callable[[], str]
) -> ReplayReport:
    """Take a run's rounds again and compare those from `wanted` on. `machine` is asked when all is computed: what it
    says depends on what was loaded for that. Raises UsageError where there is no such
    round, LedgerBroken where the record itself does not add up."""
    links = ledger.read_from(blobs, prefix, None)
    if not 1 <= wanted <= len(links):
        raise UsageError(
            f"round {wanted} is not one of the run's",
            why=f"{len(links)} rounds are committed",
            remedy="name a round with --from, from 1 on",
        )
    first = beginning(links, wanted)
    state, momentum = checkpoint.at_round(blobs, prefix, links, first - 1)
    again = _Replay(plan, state, momentum, make_inner, recalled_of(links[first - 1 :]))
    differs = 0
    for link in links[first - 1 :]:
        entry = link.entry
        said = again.round(entry)
        there = checkpoint.update_of(blobs, prefix, entry)
        same = hashlib.sha256(said).hexdigest() == entry.update_sha256
        if not same and not differs and entry.round >= wanted:
            differs = entry.round
        again.take(there, entry)
        if differs:
            break
    machines = {part.machine for link in links[first - 1 :] for part in link.entry.sites}
    last = differs or len(links)
    return ReplayReport(
        plan.run,
        first,
        last,
        last - wanted + 1,
        differs,
        state_sha256(again.outer.state),
        machine(),
        tuple(sorted(machines)),
    )
