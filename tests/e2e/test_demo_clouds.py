"""The demonstration of examples/two-clouds, as `make demo-clouds` runs it: two Ray clusters, an outage, its healing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ray_site

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(ray_site.unusable()), reason=ray_site.unusable()),
]

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_spans_two_clouds_survives_the_outage_of_one_and_leaves_nothing() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CAUDAL_HOME", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "two-clouds" / "demo.py")],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for seen in ("OUTAGE", "the run goes on at gavle alone", "placed again", "both clouds list no machine"):
        assert seen in done.stdout
    left = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if any("two-clouds" in word for word in p.info["cmdline"] or ())
    ]
    assert left == []
