"""Where a curve is sent: every point once and in order, also over two goes; what is not there is said."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from caudal.domain.errors import UsageError
from caudal.telemetry.trackers import Tracker, open_tracker

POINTS = [
    (seq, 1000.0 + seq, {"tokens": 100 * seq, "loss": 5.0 - seq, "stage": "read", "val_loss": None})
    for seq in range(1, 4)
]


def feed(tracker: Tracker) -> None:
    for seq, at, values in POINTS:
        if seq > tracker.last:
            tracker.add(seq, at, values)
    tracker.close()


def test_json_lines_go_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curve.jsonl"
    feed(open_tracker("starter", f"jsonl={path}"))
    whole = path.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [(r["run"], r["seq"], r["at"], r["loss"]) for r in rows] == [
        ("starter", seq, at, values["loss"]) for seq, at, values in POINTS
    ]
    for cut in (len(whole), len(whole) - 1, len(whole) - 30, 7, 0):
        path.write_bytes(whole[:cut])
        feed(open_tracker("starter", f"jsonl={path}"))
        assert path.read_bytes() == whole


def test_tensorboard_reads_what_was_sent(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = open_tracker("starter", f"tensorboard={tmp_path}")
    first.add(*POINTS[0])
    first.close()
    feed(open_tracker("starter", f"tensorboard={tmp_path}"))  # the first is not sent again
    events = accumulator.EventAccumulator(str(tmp_path / "starter"), size_guidance={"tensors": 0})
    events.Reload()
    import numpy as np

    drawn = events.Tensors("loss")
    values = [
        float(np.frombuffer(e.tensor_proto.tensor_content or b"", "<f4")[0])
        if e.tensor_proto.tensor_content
        else e.tensor_proto.float_val[0]
        for e in drawn
    ]
    assert [(e.step, e.wall_time) for e in drawn] == [(100, 1001.0), (200, 1002.0), (300, 1003.0)]
    assert values == [4.0, 3.0, 2.0]
    assert "stage" not in events.Tags()["tensors"] and "val_loss" not in events.Tags()["tensors"]


def test_weights_and_biases_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = open_tracker("starter", "wandb=caudal-tests")
    assert tracker.last == -1
    feed(tracker)
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-starter.wandb")
    until = time.monotonic() + 30.0  # its own process writes it
    while b"loss" not in kept.read_bytes():
        assert time.monotonic() < until, kept.read_bytes()
        time.sleep(0.1)


@pytest.mark.parametrize("to", ["jsonl", "jsonl=", "=x", "carrier-pigeon=home", ""])
def test_what_is_no_destination(to: str) -> None:
    with pytest.raises(UsageError, match="KIND=DESTINATION") as error:
        open_tracker("starter", to)
    assert "jsonl, tensorboard, wandb" in str(error.value)
