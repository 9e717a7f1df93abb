"""What the page makes of the API's values, and of the gateway's stream."""

from __future__ import annotations

from caudal.console.talk import message_of, piece_of
from caudal.console.watch import chart_options, progress_line, site_rows


def point(seq: int, **values: float) -> dict[str, object]:
    return {"seq": seq, "at": float(seq), "values": values}


def test_progress_in_words() -> None:
    progress = {"phase": "training", "stage": "chat", "round": 7, "loss": 1.23456, "tokens_per_s": 12345.6}
    assert progress_line(progress) == "training · chat · round 7 · loss 1.235 · 12,346 tokens/s"
    assert progress_line({}) == "starting"
    assert progress_line({"phase": "finished", "heldout": {"correct": 3, "of": 9}}).endswith("held-out 3/9")


def test_sites_in_rows() -> None:
    progress = {
        "sites": {"south": {"state": "computing"}, "north": {"state": "waiting", "loss": 2.0, "round": 4}}
    }
    rows = site_rows(progress)
    assert [r["site"] for r in rows] == ["north", "south"]
    assert rows[0]["loss"] == "2.000"
    assert rows[1]["loss"] == ""


def test_chart_keeps_evaluations_and_thins_the_rest() -> None:
    points = [point(i, round=i, loss=1.0) for i in range(5000)]
    points.append(point(5000, round=5000, loss=1.0, val_loss=0.9))
    series = chart_options(points, most=100)["series"]
    assert 90 <= len(series[0]["data"]) <= 110
    assert series[1]["data"] == [[5000, 0.9]]


def test_pieces_of_an_answer() -> None:
    assert piece_of('{"choices":[{"delta":{"content":"hi"}}]}') == "hi"
    assert piece_of('{"choices":[{"delta":{"role":"assistant"}}]}') == ""
    assert piece_of('{"choices":[],"usage":{}}') == ""
    assert piece_of('{"error":{"message":"gone"}}') == "[gone]"


def test_messages_of_errors() -> None:
    assert message_of(b'{"error":{"message":"no such model"}}') == "no such model"
    assert message_of(b"<html>") == "<html>"
