"""`caudal plan` as a person and as a script sees it, with wrong files too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from caudal.cli.plan import dollars, verb
from caudal.cli.spark import sparkline
from caudal.domain.errors import CaudalError, Impossible, NotFound, SpecError, UsageError
from caudal.spec.demand import load_demand

pytest.importorskip("highspy")

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"

TINY = """
type: demand
name: tiny
first: 2027-01
months: 3
scenarios: [{name: only, probability: 1}]
services: [{name: assistant, mean_chips: 8, survives: 0, chips: [{chip: H100}]}]
offers:
  - {name: hour, provider: aws, kind: on_demand, chip: H100, price_usd_per_chip_hour: 6.88}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(verb, list(arguments), standalone_mode=False)


def test_a_plan_for_people_and_its_page(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    told = run("-f", str(EXAMPLES / "small.yaml"), "--html", str(page), "--gap", "0.02")
    assert told.exit_code == 0, told.exception
    assert "aws-h100-year*" in told.output and "breaks even when used" in told.output
    html = page.read_text()
    assert html.startswith("<!doctype html>") and "<svg" in html
    assert "http" not in html and "<script" not in html


def test_json_is_all_that_a_script_reads(tmp_path: Path) -> None:
    file = tmp_path / "demand.yaml"
    file.write_text(TINY)
    command = [sys.executable, "-m", "caudal.cli", "plan", "-f", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["usd"] == pytest.approx(8 * 6.88 * 24 * 90) and told["signatures"] == []
    assert [m["month"] for m in told["months"]] == ["2027-01", "2027-02", "2027-03"]


def test_what_cannot_be_met_exits_4(tmp_path: Path) -> None:
    file = tmp_path / "demand.yaml"
    file.write_text(TINY.replace("6.88", "6.88, max_chips: 5"))
    told = run("-f", str(file))
    assert isinstance(told.exception, Impossible) and told.exception.exit_code == 4
    text = str(told.exception)
    assert "short of 3 chips" in text and "3 more chips of offer hour (from 5 to 8)" in text


def test_a_quote_is_judged() -> None:
    arguments = ["compare", str(EXAMPLES / "quote.yaml"), "-f", str(EXAMPLES / "small.yaml"), "--gap", "0.02"]
    told = run(*arguments, "--json")
    assert told.exit_code == 0, told.exception
    assert json.loads(told.output)["verdict"] in ("sign", "leave", "indifferent")
    assert run(*arguments).output.startswith("azure-h200-spring: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("months: 3", "months: 0"), "months: expected 1 to 120, found 0"),
        (("2027-01", "January"), "first: expected a month such as 2027-03"),
        (("probability: 1", "probability: 0.4"), "the probabilities add up to 0.4, not to 1"),
        (("chip: H100}]", "chip: H1OO}]"), "no offer has the chip 'H1OO'; did you mean 'H100'?"),
        (("mean_chips: 8", "mean_chips: -8"), "mean_chips: expected a number above 0, found -8"),
        (("6.88", "-1"), "expected dollars"),
        (("on_demand", "on demand"), "did you mean 'on_demand'?"),
        (("type: demand", "type: fleet"), "type: expected demand"),
        (("survives: 0", "survives: 2"), "survives: expected a share from 0 to 1"),
        (
            ("months: 3", "months: 3\nload: [{name: a, share: 0.5, load: 1}]"),
            "the shares add up to 0.5, not to 1",
        ),
        (("name: tiny", "nmae: tiny"), "did you mean 'name'?"),
    ],
)
def test_wrong_files_are_told_with_their_line(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    file = tmp_path / "demand.yaml"
    file.write_text(TINY.replace(*change))
    with pytest.raises(SpecError) as error:
        load_demand(file)
    assert said in str(error.value) and f"{file}:" in str(error.value)


def test_no_file() -> None:
    kinds: dict[type[CaudalError], tuple[str, ...]] = {
        UsageError: (),
        NotFound: ("-f", "/nowhere/demand.yaml"),
    }
    for kind, arguments in kinds.items():
        assert isinstance(run(*arguments).exception, kind)


def test_words() -> None:
    assert [dollars(x) for x in (950, 1_200, 3.4e6, 38e9)] == ["$950", "$1.20 k", "$3.40 M", "$38.00 B"]
    assert sparkline([0, 1, 2, 4]) == "▁▂▄█" and sparkline([]) == "" and len(sparkline(range(100), 10)) == 10
