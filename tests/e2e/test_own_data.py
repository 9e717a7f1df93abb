"""A user's own dialogues, from a Parquet file to a published model that chats and a ledger that adds up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fleet import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = """
type: train
name: talks
data: "talks/*.parquet"
resources: {cpus: 0.5, memory_bytes: 700MiB}
tokenizer: {entries: 400}
model: {layers: 1, heads: 2, kv_heads: 1, width: 16, ffn_width: 32, context: 64}
stages:
  - {name: read, tokens: 8000, sample_tokens: 64, batch: 8}
  - {name: chat, kind: chat, tokens: 8000, sample_tokens: 64, batch: 8}
"""


def caudal(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One verb."""
    return subprocess.run(
        [sys.executable, "-m", "caudal.cli", "--home", str(home), *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_dialogues_become_a_model(tmp_path: Path) -> None:
    home, talks = tmp_path / "home", tmp_path / "talks"
    talks.mkdir()
    for part in range(2):
        rows = [
            {"instruction": f"What is {n}?", "output": f"{n}."} for n in range(part * 200, part * 200 + 200)
        ]
        pq.write_table(pa.Table.from_pylist(rows), talks / f"{part}.parquet")
    (tmp_path / "run.yaml").write_text(RUN)
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"type: fleet\nname: test\nsites: [{{name: north}}, {{name: south}}]\napi: {{port: {free_port()}}}\n"
    )
    up = subprocess.Popen(
        [sys.executable, "-m", "caudal.cli", "--home", str(home), "up", str(fleet)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not (home / "control.url").exists():
            assert up.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        told = caudal(home, "train", str(tmp_path / "run.yaml"))
        assert told.returncode == 0, told.stdout + told.stderr
        proven = caudal(home, "audit", "talks")
        assert proven.returncode == 0, proven.stdout + proven.stderr
    finally:
        up.terminate()
        assert up.wait(timeout=60) == 0
    (model,) = (home / "blobs" / "models" / "talks").glob("v*/tokenizer_config.json")
    assert "<|assistant|>" in json.loads(model.read_text())["chat_template"]
    data = home / "blobs" / "runs" / "talks" / "g1" / "data"
    assert json.loads((data / "manifest.json").read_text())["details"]["chat"] is True
