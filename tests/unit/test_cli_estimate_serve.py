"""`caudal estimate serve` and `run` through the real entry point: answers, tables, curves, pages, exit codes."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from caudal.cli import main

PUBLISHED = Path(__file__).parents[2] / "bench" / "data" / "published"
GOLDEN = Path(__file__).parents[1] / "golden"
SERVE = ("estimate", "serve", "--model", "llama-3-70b", "--chip", "H100", "--tp", "4", "--precision", "fp8")
RUN = ("estimate", "run", "--model", "llama-3-8b", "--tokens", "1T", "--chip", "H100", "--chips", "64")


def run(*args: str) -> int:
    try:
        result = main(list(args))
        return result if isinstance(result, int) else 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masked(text: str) -> str:
    """The words, whatever the figures."""
    text = re.sub(r"[▁▂▃▄▅▆▇█]+", "~", text)
    text = re.sub(r" +", " ", re.sub(r"[+-]?\d[\d.,]*(e[+-]?\d+)?%?", "#", text))
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("estimate-serve", (*SERVE, "--qps", "5", "--explain")),
        ("estimate-serve-max", (*SERVE, "--max")),
        ("estimate-run", (*RUN, "--price", "2", "--grid-g-per-kwh", "350", "--explain")),
    ],
)
def test_the_words_of_an_answer(name: str, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Golden, but for the figures and the order of items. To renew: write what is printed into the file."""
    assert run(*args) == 0
    said = masked(capsys.readouterr().out)
    wanted = (GOLDEN / f"{name}.txt").read_text()
    assert sorted(said.splitlines()) == sorted(wanted.splitlines())


def test_json_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SERVE, "--concurrency", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == "estimate-serve/1" and found["tp"] == 4 and found["concurrency"] == 16
    assert sum(found["items_ms"].values()) == pytest.approx(found["tpot_ms"]["value"])
    assert run(*RUN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == "estimate-run/1" and found["usd"] is None
    assert found["days"]["value"] == pytest.approx(found["chip_hours"]["value"] / 64 / 24)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((*SERVE, "--chip", "H1000"), 3, "did you mean"), ((*SERVE, "--model", "lama-3-70b"), 3, "did you mean"),
        ((*SERVE, "--model", "405b"), 4, "--tp"),
        ((*SERVE, "--qps", "1", "--max"), 2, "more than one load"),
        ((*SERVE, "--qps", "-1"), 2, "--qps"), ((*SERVE, "--tp", "0"), 2, "--tp"),
        ((*SERVE, "--precision", "fp7"), 2, "fp7"),
        ((*SERVE, "--curve", "no-such.csv"), 3, "no file"), (("estimate", "serve"), 2, "no model"),
        ((*RUN, "--tokens", "many"), 2, "no number of tokens"), ((*RUN, "--tokens", "0"), 2, "0 tokens"),
        ((*RUN, "--chip", "H10"), 3, "did you mean"), ((*RUN, "--model", "405b", "--chips", "8"), 4, "GiB"),
        ((*RUN, "--pue", "0.5"), 2, "--pue"), ((*RUN, "--price", "-2"), 2, "--price"), (("estimate", "run"), 2, "no model"),
    ],
)  # fmt: skip
def test_exit_codes(args: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == code
    assert says in capsys.readouterr().err


def test_the_open_points_as_a_table(tmp_path: Path) -> None:
    source, out = PUBLISHED / "serving_points.csv", tmp_path / "out.csv"
    assert run("estimate", "serve", "--points", str(source), "--out", str(out)) == 0
    rows, asked = rows_of(out), rows_of(source)
    assert [r["id"] for r in rows] == [r["id"] for r in asked]
    assert tuple(rows[0]) == (
        "id", "out_tokens_per_s_total", "out_tokens_per_s_total_lo", "out_tokens_per_s_total_hi", "ttft_ms", "ttft_ms_lo",
        "ttft_ms_hi", "tpot_ms", "tpot_ms_lo", "tpot_ms_hi", "reason",
    )  # fmt: skip
    for given, made in zip(asked, rows, strict=True):
        for name in ("out_tokens_per_s_total", "ttft_ms", "tpot_ms"):
            assert made[name] or not given[name], (given["id"], name)


def test_the_open_runs_as_a_table_and_measured_columns_are_not_read(tmp_path: Path) -> None:
    for table, question, measured in (
        ("serving_points", "serve", {"out_tokens_per_s_total", "in_tokens_per_s_total", "out_tokens_per_s_per_chip",
                                     "ttft_ms",
                                     "tpot_ms", "ttft_stat", "tpot_stat", "e2e_latency_s"}),
        ("whole_runs", "run", {"chip_hours", "mfu_reported_pct", "tflops_per_chip_reported", "step_time_s", "mwh_stated",
                               "cost_usd_stated", "days", "interruptions_total", "interruptions_unplanned", "goodput_pct"}),
    ):  # fmt: skip
        source = PUBLISHED / f"{table}.csv"
        asked = rows_of(source)
        names = [name for name in asked[0] if name not in measured]
        with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asked)
        assert (
            run("estimate", question, "--points", str(tmp_path / "in.csv"), "--out", str(tmp_path / "a.csv"))
            == 0
        )
        assert run("estimate", question, "--points", str(source), "--out", str(tmp_path / "b.csv")) == 0
        assert rows_of(tmp_path / "a.csv") == rows_of(tmp_path / "b.csv")


HEAD = "id,model,chip,chips,tp,isl,osl"
GOOD = "good,Llama-3-8B,H100,1,1,1000,300"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + f"{HEAD}\n{GOOD}\n".encode(), f"{HEAD}\r\n{GOOD}\r\n".encode("utf-16"),
        f"{HEAD},source\n{GOOD},M\xfcnchen\n".encode("latin-1"), f"{HEAD}\n{GOOD}\n".replace(",", ";").encode(),
        f"{HEAD}\n{GOOD}\nbad,Llama-3-8B,H100,1,1,1000,300,7,8\nless,Llama-3-8B\n".encode(),
    ],
    ids=["mark", "utf-16", "latin-1", "semicolons", "broken rows"],
)  # fmt: skip
def test_tables_in_any_encoding(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(data)
    assert (
        run("estimate", "serve", "--points", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))
        == 0
    )
    row, *others = rows_of(tmp_path / "out.csv")
    assert row["id"] == "good" and float(row["tpot_ms"]) > 0
    assert all(other["reason"] and not other["tpot_ms"] for other in others)


def test_replicas_for_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curve.csv").write_text(
        "hour,qps\n" + "\n".join(f"{h},{5 + 3 * (h % 12)}" for h in range(24))
    )
    curve = ("--curve", str(tmp_path / "curve.csv"), "--slo-tpot-ms", "30", "--providers", "3")
    assert run(*SERVE, *curve, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak_qps"] == 38 and len(found["needed"]) == 24
    assert found["replicas_per_provider"] * 2 >= found["peak_replicas"]
    assert run(*SERVE, *curve) == 0
    assert "replicas a provider" in capsys.readouterr().out
    assert run(*SERVE, *curve[:2], "--slo-tpot-ms", "1") == 4
    assert "breaks the SLO" in capsys.readouterr().err
    for text, says in (
        ("hour\n1\n", "none of the columns qps"),
        ("qps\n-3\n", "row 1"),
        ("hour,qps\n1,\n", "no qps"),
    ):
        (tmp_path / "curve.csv").write_text(text)
        assert run(*SERVE, *curve) == 2
        assert says in capsys.readouterr().err


class Page(HTMLParser):
    """What a page asks the network for, and its drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.outside: list[str] = []
        self.box = (0.0, 0.0, 0.0, 0.0)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.tags.append(tag)
        told = {name: value or "" for name, value in attrs}
        if tag == "svg":
            left, top, wide, high = map(float, told["viewbox"].split())
            self.box = (left, top, left + wide, top + high)
        if tag in ("rect", "circle", "text"):
            x, y = float(told.get("x") or told["cx"]), float(told.get("y") or told["cy"])
            x, y = x + float(told.get("width", 0)), y + float(told.get("height", 0))
            left, top, right, bottom = self.box
            if not (left <= x <= right and top <= y <= bottom):
                self.outside.append(f"{tag} {x} {y} {self.box}")
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]


def test_pages_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        (*RUN, "--price", "2"),
        ("estimate", "train", "--model", "8b", "--chip", "H100", "--chips", "8"),
    ):
        assert run(*args, "--html", str(tmp_path / "page.html")) == 0
        page = Page()
        page.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert "script" not in page.tags and not page.fetched and page.tags.count("svg") == 2
        assert page.outside == [] and {"rect", "text"} <= set(page.tags)
    assert run(*RUN, "--html", str(tmp_path / "no" / "page.html")) == 2
    assert "cannot be written" in capsys.readouterr().err
