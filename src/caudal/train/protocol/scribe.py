"""What a coordinator writes down: a round's entry, the checkpoint that stands on it, its row of the curve. Values;
who keeps them is the shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import structs

from caudal.train.checkpoint import Manifest, Restored
from caudal.train.interface import Flat, RunPlan
from caudal.train.leases import Pool
from caudal.train.ledger import Entry, Link, entry_hash, to_bytes
from caudal.train.outer import state_sha256
from caudal.train.protocol import merge, rules
from caudal.train.protocol.turns import Turn


class Scribe:
    """`at_offset` turns `now` into seconds since 1970: the wall clock is read once, so that it may jump.
    `checkpoint_every` counts rounds."""

    def __init__(
        self,
        plan: RunPlan,
        pool: Pool,
        epoch: int,
        restored: Restored,
        checkpoint_every: int,
        now: float,
        at_offset: float,
    ) -> None:
        self.plan, self._pool, self._epoch = plan, pool, epoch
        self.totals = restored.totals
        self.last: Link | None = restored.last
        self.pending: tuple[Entry, Turn] | None = None
        self.tokens_per_s = 0.0
        self._checkpoint_every = checkpoint_every
        self._at_offset = at_offset
        self._committed_at = now
        self.row: dict[str, Any] = {}
        self._busy_s = self._site_s = 0.0
        self._wire_bytes = 0

    @property
    def done(self) -> float:
        """What part of the run's tokens is trained."""
        return self.totals.tokens / self.plan.total_tokens

    def merged(self, turn: Turn, state: Flat, update_bytes: int, now: float) -> Entry:
        """The entry of a round whose ids were just committed in the pool; it is pending until it is durable."""
        entry = merge.entry(
            turn,
            self.plan,
            update_bytes,
            epoch=self._epoch,
            previous=self.last,
            state_sha256="",
            at=now + self._at_offset,
        )
        if self._hash_due(entry):
            entry = structs.replace(entry, state_sha256=state_sha256(state))
        self.pending = entry, turn
        self.totals = self.totals.plus(entry)
        return entry

    def committed(self, entry: Entry, evaluated: Mapping[str, float], now: float) -> dict[str, Any]:
        """The pending round is durable; returns its row of the curve."""
        assert self.pending is not None and entry.round == self.pending[0].round
        turn, self.pending = self.pending[1], None
        self.last = Link(entry, entry_hash(to_bytes(entry)))
        took_s = max(1e-6, now - self._committed_at)
        self.tokens_per_s = entry.tokens / took_s
        self._committed_at = now
        self._busy_s += sum(part.seconds for part in entry.sites)
        self._site_s += took_s * len(entry.sites)
        row = merge.curve_row(turn, entry, self.plan, self.totals.tokens, self.tokens_per_s)
        self._wire_bytes += row["wire_bytes"]
        self.row = {**row, "goodput": round(min(1.0, self._busy_s / max(1e-6, self._site_s)), 4), **evaluated}
        return self.row

    def report(self) -> dict[str, Any]:
        """What people watch of the last committed round."""
        watched = ("loss", "inner_steps", "wait_share", "goodput")
        known = {"mfu": self.row["mfu"]} if "mfu" in self.row else {}
        return {key: self.row.get(key) for key in watched} | known | {"wire_bytes_total": self._wire_bytes}

    def manifest(self, round_number: int, state: Flat) -> Manifest:
        """What a checkpoint of the state after the last committed round says."""
        assert self.pending is None
        return Manifest(
            run=self.plan.run,
            round=round_number,
            entry=self.last.hash if self.last else "",
            state_sha256=(self.last and self.last.entry.state_sha256) or state_sha256(state),
            file="",
            totals=self.totals,
            at=self._committed_at + self._at_offset,
        )

    def keep_due(self, entry: Entry) -> bool:
        """Whether a round's state is kept: every so many, and where a stage ends."""
        stage = self.plan.stages[entry.stage]
        trained = self._pool.committed_in(stage.first_id, stage.end_id)
        return entry.round % self._checkpoint_every == 0 or trained == stage.ids

    def _hash_due(self, entry: Entry) -> bool:
        """Whether this round's state is hashed: every round, but in the synchronous phase every few."""
        return entry.inner_steps > 1 or entry.round % rules.SYNC_SHA_EVERY == 0 or self.keep_due(entry)
