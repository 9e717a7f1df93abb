"""A run in virtual time whose network falls apart: coordinators are cut off from sites and from the object store, and
their successors take over while they still believe in themselves.

Beside the faults of `train_world`: a partition cuts a coordinator off from some of the sites (frames vanish in silence,
also on connections that are made meanwhile) and perhaps from the object store (its writes wait until it heals). On the
other side a successor may claim the next epoch. Between a coordinator's look at the newest epoch and its write lies
time, in which another one may claim it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from caudal.domain.errors import NotFound
from caudal.train import epochs, ledger
from caudal.train.protocol.effects import Commit, Keep
from tests.support.train_world import PREFIX, Boss, DictBlobs, Node, TrainWorld


class Earlier:
    """The object store as one sees it who looked for a newer epoch some time ago."""

    def __init__(self, blobs: DictBlobs, newest: int) -> None:
        self._blobs = blobs
        self._hidden = epochs.epoch_path(PREFIX, newest + 1)

    def get(self, path: str) -> bytes:
        """As then, where it is about the epoch; else as now."""
        if path == self._hidden:
            raise NotFound(path)
        return self._blobs.get(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


class PartitionWorld(TrainWorld):
    """See the module. `partitions` counts them, `rivals` those during which two coordinators lived, `refused` the
    writes of one that had a successor."""

    def __init__(self, seed: int, sites: int) -> None:
        self.partitions = self.rivals = self.refused = 0
        self._apart: dict[int, set[str]] = {}  # sites that cannot reach it, by the coordinator's epoch
        self._unstored: dict[int, float] = {}  # until when it cannot reach the store, by epoch
        super().__init__(seed, sites)
        self.at(self.random.uniform(0.5, 3.0), self.fall_apart)

    def fall_apart(self) -> None:
        """One partition, and after it the next."""
        if self.calm:
            return
        boss = self.bosses[-1]
        if boss.alive:
            self.partitions += 1
            lasts_s = self.random.uniform(0.3, 20.0)
            far = set(
                self.random.sample([n.name for n in self.nodes], self.random.randint(1, len(self.nodes)))
            )
            self._apart[boss.epoch] = far
            for wire in boss.wires.values():
                wire.silent = wire.silent or wire.node.name in far
            if self.random.random() < 0.5:
                self._unstored[boss.epoch] = self.now + lasts_s
            if self.random.random() < 0.7:
                self.at(self.random.uniform(0.1, lasts_s), partial(self.take_over, boss))
            self.at(lasts_s, lambda: self._apart.pop(boss.epoch, None))
        self.at(self.random.uniform(0.5, 10.0), self.fall_apart)

    def take_over(self, boss: Boss) -> None:
        """Those on the other side have one of their own, unless somebody has taken over already."""
        if self.bosses[-1] is boss:
            self.rivals += boss.alive
            self.new_boss()

    def join(self, node: Node) -> None:
        """A connection across the cut is made and says nothing."""
        super().join(node)
        wire = node.wire
        if wire is not None and node.name in self._apart.get(wire.boss.epoch, ()):
            wire.silent = True

    def written(self, boss: Boss, what: Commit | Keep) -> None:
        """A write lands when the store can be reached, some time after the look for a newer epoch."""
        away_s = self._unstored.get(boss.epoch, 0.0) - self.now
        if boss.alive and away_s > 0 and not self.calm:
            self.at(away_s + self.random.expovariate(5), lambda: self.written(boss, what))
        elif boss.alive and isinstance(what, Commit) and self.fault(0.5):
            if epochs.read(self.blobs, PREFIX, boss.epoch + 1) is None:
                self.at(self.random.uniform(0.0, 8.0), partial(self.land, boss, what))
            else:
                self.land(boss, what, looked=False)
        else:
            self.land(boss, what, looked=False)

    def land(self, boss: Boss, what: Commit | Keep, looked: bool = True) -> None:
        """The write itself; `looked`: there was no newer epoch when its writer looked."""
        if looked:
            boss.keeper.blobs = Earlier(self.blobs, boss.epoch)  # type: ignore[assignment]
        newest = self.bosses[-1] is boss
        lived = boss.alive
        super().written(boss, what)
        boss.keeper.blobs = self.blobs  # type: ignore[assignment]
        self.refused += lived and not boss.alive and not newest


def two_writers(world: TrainWorld) -> list[str]:
    """Everything in the record that two writers of one run would leave: an older epoch behind a newer one, in the
    order of rounds or of time; a round that was written twice or never."""
    links = ledger.read_from(world.blobs, PREFIX, None)
    kept = [(link.entry.epoch, link.entry.round) for link in links]
    found = _backwards("rounds", [e for e, _ in kept]) + _backwards("time", [e for e, _ in world.landed])
    if sorted(world.landed) != kept:
        found.append(f"{len(world.landed)} writes landed, and {len(kept)} are in the ledger")
    return found


def _backwards(order: str, seen: Sequence[int]) -> list[str]:
    return [f"epoch {b} behind {a} in the order of {order}" for a, b in itertools.pairwise(seen) if b < a]
