"""drivers/local_log.py: whatever is printed, the bound holds and the end is there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from caudal.drivers.local_log import CappedLog, older, tail

pieces = st.lists(st.binary(max_size=40), max_size=30)


@given(pieces, st.integers(2, 64))
def test_a_log_keeps_the_end_within_its_bound(written: list[bytes], cap_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.log"
        log = CappedLog(path, cap_bytes)
        for piece in written:
            log.write(piece)
            sizes = [p.stat().st_size for p in (path, older(path)) if p.exists()]
            assert sum(sizes) <= cap_bytes
        log.close()
        half = cap_bytes // 2
        everything = b"".join(written)
        assert len(tail(path, 7)) <= 7
        last = next((piece for piece in reversed(written) if piece), b"")
        assert everything.endswith(tail(path, min(len(last), half)))
        if all(len(piece) <= half for piece in written):
            kept = tail(path, cap_bytes)
            assert everything.endswith(kept) and len(kept) >= min(len(everything), half)


@given(pieces)
def test_a_log_goes_on_where_the_one_before_it_stopped(written: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.log"
        for piece in written:
            log = CappedLog(path, 1 << 20)
            log.write(piece)
            log.close()
        assert tail(path, 1 << 20) == b"".join(written)


def test_a_full_disk_drops_text_and_stops_nobody() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.log"
        log = CappedLog(path, 1 << 10)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, log._descriptor)
        os.close(full)
        log.write(b"nobody will read this")
        log.close()
        assert tail(path, 100) == b""
