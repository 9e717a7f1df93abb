"""`caudal estimate` through the real entry point: answers, tables, exit codes, bad files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from caudal.cli import main

OPEN = Path(__file__).parents[2] / "bench" / "data" / "published" / "training_points.csv"
ANSWER = ("estimate", "train", "--chip", "H100", "--chips", "64")
LAYOUT = ("--tp", "4", "--pp", "4", "--micro-batch", "1", "--seq-len", "8192", "--global-batch", "128")


def run(*args: str) -> int:
    code = 0
    try:
        result = main(list(args))
        code = result if isinstance(result, int) else 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    return code


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_answer_has_its_figures_and_explains_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ANSWER, "--model", "llama-3-70b", *LAYOUT, "--explain") == 0
    said = capsys.readouterr().out
    for part in (
        "70.55 B on 64 H100-80GB",
        "tp 4, pp 4, dp 4",
        "80 %",
        "MFU",
        "GiB a chip",
        "pipeline bubble",
        "optimizer",
    ):
        assert part in said, part


def test_json_is_versioned_and_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            *ANSWER,
            "--model",
            "llama-3-70b",
            *LAYOUT,
            "--json",
            "--sites",
            "2",
            "--wan",
            "100Mbit/s",
            "--bits",
            "8",
        )
        == 0
    )
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["shape"] == "estimate-train/1" and found["layout"]["dp"] == 4
    assert sum(found["items_s"].values()) == pytest.approx(found["step_time_s"])
    assert sum(found["memory_items_gib"].values()) == pytest.approx(found["memory_gib_per_chip"])
    assert found["step_time_s_lo"] < found["step_time_s"] < found["step_time_s_hi"]
    assert found["across_sites"]["step_time_s"] > found["step_time_s"] and found["across_sites"]["bits"] == 8


def test_without_a_layout_the_best_are_searched_and_given_parts_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = (*ANSWER, "--model", "8b", "--global-batch", "128", "--json")
    assert run(*question) == 0
    free = json.loads(capsys.readouterr().out)
    assert run(*question, "--search", "--tp", "4", "--best", "3") == 0
    pinned = json.loads(capsys.readouterr().out)
    assert len(pinned["layouts"]) == 3 and {x["layout"]["tp"] for x in pinned["layouts"]} == {4}
    assert free["step_time_s"] <= pinned["step_time_s"] and free["tried"] > pinned["tried"]


def test_a_model_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
             "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True}
        )
    )  # fmt: skip
    assert run(*ANSWER, "--model", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == pytest.approx(1.24e9, rel=0.01)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--model", "llama-3-70b", "--tp", "8", "--pp", "1", "--recompute", "none"), 0, ""),
        (("--model", "no-such-model"), 3, "no file, model or size"),
        (("--model", "lama-3-70b"), 3, "did you mean 'Llama 3 70B'"),
        (("--model", "llama-3-70b", "--chip", "H10"), 3, "did you mean"),
        (("--model", "llama-3.1-405b", "--chips", "8"), 4, "GiB more than there is; "),
        (("--model", "llama-3-70b", "--chips", "8", "--tp", "8"), 4, "GiB a chip more than there is"),
        (("--model", "llama-3-70b", "--tp", "3"), 2, "does not divide 64"),
        (("--model", "llama-3-70b", "--tp", "-4"), 2, "--tp"),
        (("--model", "llama-3-70b", "--chips", "0"), 2, "--chips"),
        (("--model", "llama-3-70b", "--tp", "4", "--dp", "4"), 2, "not the number of devices"),
        (("--model", "llama-3-70b", "--tp", "4", "--global-batch", "7"), 2, "does not divide"),
        (("--model", "llama-3-70b", "--precision", "fp7"), 2, "fp7"),
        (("--model", "8b", "--sites", "2", "--wan", "100"), 2, "is not a rate"),
        (("--model", "8b", "--sites", "2", "--wan", "100Mb"), 2, "is not a rate"),
        (("--model", "0b"), 2, "no size of a model"),
        ((), 2, "no model"),
        (("--model", "8b", "--points", "no-such.csv"), 3, "no file"),
    ],
)
def test_exit_codes(args: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ANSWER, *args) == code
    assert says in capsys.readouterr().err


def test_a_config_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", "{}", '{"hidden_size": 1e99}'):
        (tmp_path / "config.json").write_text(text)
        assert run(*ANSWER, "--model", str(tmp_path / "config.json")) == 2
    assert "config" in capsys.readouterr().err


def test_the_open_rows_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert run("estimate", "train", "--points", str(OPEN), "--out", str(out)) == 0
    rows, asked = rows_of(out), rows_of(OPEN)
    assert [r["id"] for r in rows] == [r["id"] for r in asked]
    assert tuple(rows[0]) == (
        "id", "step_time_s", "step_time_s_lo", "step_time_s_hi", "memory_gib_per_chip", "reason"
    )  # fmt: skip
    assert sum(not r["step_time_s"] for r in rows) <= 1 and all(r["step_time_s"] or r["reason"] for r in rows)


def test_measured_columns_are_not_read(tmp_path: Path) -> None:
    measured = {
        "step_time_s", "step_time_kind", "tokens_per_s_total", "tokens_per_s_per_chip",
        "tflops_per_chip_reported", "flops_convention", "mfu_reported_pct", "memory_gib_per_chip", "notes",
    }  # fmt: skip
    asked = rows_of(OPEN)[::7]
    names = [name for name in asked[0] if name not in measured]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asked)
    assert (
        run("estimate", "train", "--points", str(tmp_path / "in.csv"), "--out", str(tmp_path / "a.csv")) == 0
    )
    assert run("estimate", "train", "--points", str(OPEN), "--out", str(tmp_path / "b.csv")) == 0
    whole = {r["id"]: r for r in rows_of(tmp_path / "b.csv")}
    assert all(whole[r["id"]] == r for r in rows_of(tmp_path / "a.csv"))


HEAD = "id,model,chip,chips,tp,pp,micro_batch,global_batch_seqs,seq_len"
GOOD = "good,Llama-3-8B,H100,8,1,1,1,64,8192"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + f"{HEAD}\n{GOOD}\n".encode(),
        f"{HEAD}\r\n{GOOD}\r\n".encode("utf-16"),
        f"{HEAD},source\n{GOOD},M\xfcnchen\n".encode("latin-1"),
        f"{HEAD}\n{GOOD}\n".replace(",", ";").encode(),
        f"\n{HEAD.upper()}\n\n{GOOD}\n\n".encode(),
        f"{HEAD}\n{GOOD}".replace(",", " , ").encode(),
    ],
    ids=["mark", "utf-16", "latin-1", "semicolons", "blank lines", "spaces"],
)
def test_tables_in_any_encoding(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(data)
    assert (
        run("estimate", "train", "--points", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))
        == 0
    )
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["id"] == "good" and float(row["step_time_s"]) > 0


def test_one_bad_row_does_not_stop_the_rest(tmp_path: Path) -> None:
    lines = [
        HEAD, GOOD, "far,Llama-3-8B,H100,8,1,1,1,64,8192,9,9,9", "short,Llama-3-8B", "chip,Llama-3-8B,X9,8,1,1,1,64,8192",
        "text,Llama-3-8B,H100,eight,1,1,1,64,8192", "minus,Llama-3-8B,H100,8,1,1,1,-64,8192",
        'quoted,"Llama-3-8B",H100,8,1,1,1,64,"8,192"', ",Llama-3-8B,H100,8,1,1,1,64,8192", GOOD,
    ]  # fmt: skip
    (tmp_path / "in.csv").write_text("\n".join(lines))
    assert (
        run("estimate", "train", "--points", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))
        == 0
    )
    rows = rows_of(tmp_path / "out.csv")
    assert [bool(r["step_time_s"]) for r in rows] == [
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert all(r["reason"] for r in rows if not r["step_time_s"])
    assert rows[7]["id"] == "row 8" and "12 cells" in rows[1]["reason"]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"hello\nworld\n", b"\x00\x01\x02", b'a,"b\n'])
def test_what_is_no_table_is_refused(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv").write_bytes(data)
    assert run("estimate", "train", "--points", str(tmp_path / "in.csv")) == 2
    assert "columns" in capsys.readouterr().err


def test_layouts_are_ranked_and_misfits_come_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv").write_text(
        "id,tp,pp,vp,micro_batch,recompute\nplain,2,1,1,1,none\npiped,4,4,5,1,none\nbroken,3,1,1,1,none\nbubbly,8,8,1,1,none\n"
    )
    flags = ("--model", "llama-3-70b", "--seq-len", "4096", "--global-batch", "64")
    assert run(*ANSWER, *flags, "--layouts", str(tmp_path / "in.csv"), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["id"] for r in rows] == ["piped", "bubbly", "plain", "broken"]
    assert "does not fit" in rows[2]["reason"] and "does not divide" in rows[3]["reason"]
    assert run(*ANSWER, *flags, "--layouts", str(tmp_path / "in.csv")) == 0
    assert "does not fit" in capsys.readouterr().out


def test_what_can_be_asked_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", "--help") == 0
    assert "train" in capsys.readouterr().out
    assert run("estimate", "nothing") == 2
