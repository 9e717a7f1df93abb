"""Usage is exact: whatever dies, is lost, comes twice or late, control ends with what journals had on the disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from caudal.domain.key import UsageHour
from caudal.gateway.usage_file import SUFFIX
from caudal.gateway.usage_journal import UsageJournal
from caudal.gateway.usage_lines import body_of, payload_of
from caudal.store.state import open_store
from tests.support.usage import MemoryControl, journal, kill, rows_of, sums_of, used

Batch = tuple[str, int]

GATEWAYS = st.integers(0, 2)


class Counting(RuleBasedStateMachine):
    """Three gateways that share a folder, and a control with its database. The model is a set of batches: those
    that were flushed to a file and are still in it, or have reached control."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="usage-"))
        self.control = MemoryControl()
        self.database = f"sqlite:///{self.folder / 'state.db'}"
        self.control.store = open_store(self.database)
        self.fate = "kept"
        self.on_the_way: list[bytes] = []
        self.flushed: dict[Batch, tuple[UsageHour, ...]] = {}
        self.lost: set[Batch] = set()
        self.arrived: set[Batch] = set()
        self.counted = 0
        self.gateways = [journal(self.usage, self.send) for _ in range(3)]

    @property
    def usage(self) -> Path:
        return self.folder / "usage"

    def send(self, body: bytes) -> bool:
        """The network between a gateway and control."""
        if self.fate in ("kept", "answer lost", "kept twice"):
            self.arrive(body)
        if self.fate == "kept twice":
            self.arrive(body)
        if self.fate == "late":
            self.on_the_way.append(body)
        return self.fate in ("kept", "kept twice")

    def arrive(self, body: bytes) -> None:
        self.control.keep(body)
        self.arrived |= {(source, seq) for source, seq, _ in rows_of(body)}

    def lines(self, one: UsageJournal) -> list[bytes]:
        return one._own.path.read_bytes().splitlines(keepends=True) if one._own is not None else []

    @rule(who=GATEWAYS, key=st.sampled_from("ab"), hour=st.integers(0, 1), tokens=st.integers(0, 5))
    def answer(self, who: int, key: str, hour: int, tokens: int) -> None:
        self.gateways[who].record(key, "m", 3600.0 * hour, used(tokens), 200)

    @rule(who=GATEWAYS)
    def flush(self, who: int) -> None:
        one = self.gateways[who]
        assert one.flush()
        body, _, damaged = body_of(self.lines(one))
        assert not damaged
        for source, seq, rows in rows_of(body):
            assert self.flushed.setdefault((source, seq), rows) == rows  # a number never means two batches

    @rule(who=GATEWAYS, fate=st.sampled_from(["kept", "kept twice", "answer lost", "away", "late"]))
    def post(self, who: int, fate: str) -> None:
        self.fate = fate
        self.gateways[who].post()

    @rule(which=st.integers(0, 20))
    def what_was_late_arrives(self, which: int) -> None:
        if self.on_the_way:
            self.arrive(self.on_the_way[which % len(self.on_the_way)])

    @rule(who=GATEWAYS)
    def look_for_orphans(self, who: int) -> None:
        self.gateways[who].adopt()

    @rule(who=GATEWAYS, kept=st.none() | st.floats(0, 1))
    def kill_and_restart(self, who: int, kept: float | None) -> None:
        """kill -9; with `kept` the end of its file did not reach the disk, from anywhere on."""
        one = self.gateways[who]
        path, lines = (one._own.path, self.lines(one)) if one._own is not None else (None, [])
        kill(one)
        if path is not None and kept is not None:
            data = b"".join(lines)
            left = data[: int(len(data) * kept)]
            path.write_bytes(left)
            body, _, _ = body_of(lines)
            still, _, _ = body_of(line for line in left.splitlines(keepends=True) if payload_of(line))
            there = {(source, seq) for source, seq, _ in rows_of(still)}
            self.lost |= {(source, seq) for source, seq, _ in rows_of(body)} - there
        self.gateways[who] = journal(self.usage, self.send)

    @rule(who=GATEWAYS)
    def end_in_order(self, who: int) -> None:
        self.flush(who)
        self.gateways[who].close()
        self.gateways[who] = journal(self.usage, self.send)

    @rule()
    def control_restarts(self) -> None:
        self.control.store.close()
        self.control.store = open_store(self.database)

    @invariant()
    def nothing_is_counted_twice_or_made_up(self) -> None:
        expected = sums_of(row for batch in self.arrived for row in self.flushed[batch])
        assert self.control.sums() == expected

    def teardown(self) -> None:
        """Liveness: once control answers, one gateway is enough to bring it everything that is on the disk."""
        try:
            for who in range(3):
                self.flush(who)
                kill(self.gateways[who])
            self.fate = "kept"
            last = journal(self.usage, self.send)
            last.adopt()
            assert last.post()
            for body in self.on_the_way:
                self.arrive(body)
            kept = {b for b in self.flushed if b not in self.lost or b in self.arrived}
            assert self.control.sums() == sums_of(row for batch in kept for row in self.flushed[batch])
            assert not list(self.usage.glob("*" + SUFFIX))
        finally:
            self.control.store.close()
            shutil.rmtree(self.folder)


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
