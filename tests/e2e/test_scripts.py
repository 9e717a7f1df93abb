"""Training loops of one's own over two sites: the examples, as a user starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caudal.store.blobs import open_blobs
from caudal.train.audit import audit_run

EXAMPLES = Path(__file__).parents[2] / "examples" / "script"


def start(program: str, site: str, store: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), site, store],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def ended(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()) from None
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(("program", "run"), [("train.py", "spirals"), ("trainer.py", "rows")])
def test_an_example_ends_with_the_same_model_at_both_sites(tmp_path: Path, program: str, run: str) -> None:
    store = tmp_path.as_uri()
    said = [ended(process) for process in [start(program, site, store) for site in "ab"]]
    weights = {re.search(r"weights (\S+)", text).group(1) for text in said}  # type: ignore[union-attr]
    steps = [int(re.search(r"(\d+) steps", text).group(1)) for text in said]  # type: ignore[union-attr]
    assert len(weights) == 1 and min(steps) > 0
    report = audit_run(open_blobs(store), run)
    assert report.finished and not report.missing and set(report.sites) == {"a", "b"}
    if program == "train.py":
        assert all(float(re.search(r"([\d.]+)% right", t).group(1)) > 97 for t in said)  # type: ignore[union-attr]


def test_a_killed_site_is_done_without(tmp_path: Path) -> None:
    store = tmp_path.as_uri()
    first, second = start("train.py", "a", store), start("train.py", "b", store)
    ledger = tmp_path / "runs" / "spirals" / "g1" / "ledger"
    deadline = time.monotonic() + 60
    while len(list(ledger.glob("round-*"))) < 20:
        assert time.monotonic() < deadline and first.poll() is None and second.poll() is None
        time.sleep(0.02)
    second.kill()
    second.wait()
    assert "right" in ended(first)
    report = audit_run(open_blobs(store), "spirals")
    assert report.finished and not report.missing
