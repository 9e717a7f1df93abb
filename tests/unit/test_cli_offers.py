"""`caudal offers` as a person and as a script sees it, and `caudal offers import` with good and bad files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from datetime import date
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from caudal.cli import offers
from caudal.cli.offers import verb
from caudal.domain.errors import CaudalError, Failed, NotFound, StorageFailed, UsageError
from tests.support.price_lists import GPUHUNT, SKYPILOT, azure_item, azure_page, usual_aws

GOLDEN = Path(__file__).parents[1] / "golden" / "offers.txt"


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(offers, "_today", lambda: date(2026, 12, 24))
    monkeypatch.setenv("CAUDAL_HOME", str(tmp_path / "home"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(verb, [str(a) for a in arguments], standalone_mode=False)


def refused(*arguments: object) -> CaudalError:
    error = run(*arguments).exception
    assert isinstance(error, CaudalError), error
    return error


def offered(*arguments: object) -> list[dict[str, object]]:
    told = run(*arguments, "--json")
    assert told.exception is None, told.exception
    document = json.loads(told.stdout)
    assert document["version"] == 1
    rows: list[dict[str, object]] = document["offers"]
    return rows


def file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_list_for_people() -> None:
    parts = [
        run("--chip", "H100").stdout,
        run("--provider", "aws", "--market", "block", "--sort", "price").stdout,
        run("--chip", "H200", "--max-price", "7", "--as-demand").stdout,
        run("--chip", "MI300X", "--csv").stdout,
        run("--chip", "H100", "--region", "us-east-1", "--max-price", "6").stdout,
        run("--chip", "GB200", "--max-price", "1").stdout,
    ]
    told = "\n".join("\n".join(line.rstrip() for line in part.splitlines()) + "\n" for part in parts)
    if os.environ.get("CAUDAL_GOLDEN") == "write":
        GOLDEN.write_text(told)
    assert told == GOLDEN.read_text()


def test_json_has_price_per_chip_source_date_and_age() -> None:
    rows = offered("--chip", "H100", "--provider", "aws", "--market", "on_demand")
    row = next(r for r in rows if r["machine_type"] == "p5.48xlarge")
    assert (row["price_usd_per_hour"], row["price_usd_per_chip_hour"]) == ("55.04", "6.880000")
    assert (row["as_of"], row["old"], row["chips"]) == ("2026-09-19", True, 8)
    assert row["source"] and row["region"] == "us-east-1"
    unknown = next(r for r in rows if r["machine_type"] == "p5.4xlarge")
    assert unknown["price_usd_per_hour"] is None and unknown["network_gbit_s"] is None


def test_csv_is_csv() -> None:
    told = list(csv.DictReader(io.StringIO(run("--csv", "--all").stdout)))
    assert len(told) == len(offered("--all")) > 70


def test_machines_without_chips_only_on_request() -> None:
    assert all(row["chips"] for row in offered())
    assert any(not row["chips"] for row in offered("--all"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-price", "cheap"),
        ("--max-price", "-1"),
        ("--max-price", "nan"),
        ("--json", "--csv"),
        ("--csv", "--as-demand"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    assert isinstance(refused(*arguments), UsageError)


def test_an_unknown_chip() -> None:
    error = refused("--chip", "H1O0")
    assert isinstance(error, NotFound) and "H100" in error.remedy
    assert isinstance(run("--market", "futures").exception, click.UsageError)


def test_an_import_is_kept_and_a_later_one_replaces_it(tmp_path: Path) -> None:
    told = run("import", "--from", "aws", file(tmp_path, "us-east-1.json", usual_aws()))
    assert told.exception is None and "3 offers of 2026-11-20" in told.stdout
    row = offered("--provider", "aws", "--chip", "H100", "--market", "on_demand")[0]
    assert (row["source"], row["as_of"]) == (
        "AWS Price List (AmazonEC2)",
        "2026-11-20",
    )  # newer than what is shipped
    assert offered("--market", "reserved", "--chip", "H100")[0]["term_months"] == 36
    again = usual_aws().replace("55.0400000000", "44.0").replace('"Reserved"', '"Else"')
    run("import", "--from", "aws", file(tmp_path, "us-east-1.json", again))
    assert (
        offered("--provider", "aws", "--chip", "H100", "--market", "on_demand")[0]["price_usd_per_hour"]
        == "44"
    )
    assert offered("--market", "reserved", "--chip", "H100") == []


def test_several_files_packed_ones_too_and_their_providers(tmp_path: Path) -> None:
    one = file(tmp_path, "aws/vms.csv", SKYPILOT)
    two = tmp_path / "lambda.csv.gz"
    two.write_bytes(gzip.compress(SKYPILOT.replace("p5.48xlarge", "gpu_8x_h100").encode()))
    assert run("import", "--from", "skypilot", "--as-of", "2026-12-01", one, two).exception is None
    rows = [r for r in offered("--chip", "H100", "--market", "spot") if r["as_of"] == "2026-12-01"]
    assert {(r["provider"], r["machine_type"]) for r in rows} == {
        ("aws", "p5.48xlarge"),
        ("lambda", "gpu_8x_h100"),
    }
    assert (
        run("import", "--from", "gpuhunt", "--provider", "nebius", file(tmp_path, "v.csv", GPUHUNT)).exception
        is None
    )
    assert offered("--provider", "nebius")


def test_sources_keep_apart_and_the_date_is_the_files_own(tmp_path: Path) -> None:
    path = file(tmp_path, "page.json", azure_page([azure_item()]))
    os.utime(path, (1_795_000_000, 1_795_000_000))
    run("import", "--from", "azure", path)
    run("import", "--from", "aws", file(tmp_path, "a.json", usual_aws()))
    row = offered("--provider", "azure", "--region", "eastus")[0]
    assert (row["as_of"], row["old"]) == ("2026-11-18", False)
    names = sorted(p.name for p in (tmp_path / "home" / "catalog").iterdir())
    assert names == ["aws.csv", "azure.csv"]


def test_wrong_rows_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = file(tmp_path, "aws.csv", SKYPILOT + "x,H100,8,1,1,,cheap,,us-east-1,a\n" * 15)
    told = run("import", "--from", "skypilot", path)
    assert told.exception is None
    assert f"{path}:8: 'cheap' is no price" in told.stderr
    assert "5 more rows are wrong" in told.stderr and "15 wrong" in told.stdout
    document = json.loads(run("import", "--from", "skypilot", path, "--json").stdout)
    assert document["files"][0]["problem_count"] == 15
    assert document["files"][0]["problems"][0] == {"line": 8, "text": "'cheap' is no price"}


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    good = file(tmp_path, "aws.csv", SKYPILOT)
    run("import", "--from", "skypilot", good)
    before = offered()
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(SKYPILOT.encode())[:-20])
    for path in (
        tmp_path / "none.csv",
        tmp_path,
        cut,
        file(tmp_path, "azure.csv", GPUHUNT),
        file(tmp_path, "empty.csv", ""),
    ):
        error = refused("import", "--from", "skypilot", good, path)
        assert isinstance(error, UsageError | NotFound), error
    assert isinstance(refused("import", "--from", "skypilot", "--as-of", "soon", good), UsageError)
    nothing = file(tmp_path, "nothing.csv", SKYPILOT.splitlines()[0] + "\n")
    assert "nothing is changed" in str(refused("import", "--from", "skypilot", nothing))
    assert offered() == before


def test_a_file_of_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.cli.offers_import.MOST_BYTES", 100)
    assert "more than" in str(refused("import", "--from", "skypilot", file(tmp_path, "aws.csv", SKYPILOT)))
    monkeypatch.undo()
    monkeypatch.setenv("CAUDAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("caudal.catalog.imports.base.MOST_ROWS", 3)
    assert "more than 3 rows" in str(refused("import", "--from", "skypilot", tmp_path / "aws.csv"))


def test_a_kept_file_that_somebody_changed(tmp_path: Path) -> None:
    file(tmp_path, "home/catalog/aws.csv", "machine,price\np5,1\n")
    error = refused()
    assert isinstance(error, Failed) and "import" in error.remedy


def test_no_place_to_keep_it(tmp_path: Path) -> None:
    file(tmp_path, "home/catalog", "a file where a folder should be")
    assert isinstance(
        refused("import", "--from", "skypilot", file(tmp_path, "aws.csv", SKYPILOT)), StorageFailed
    )
