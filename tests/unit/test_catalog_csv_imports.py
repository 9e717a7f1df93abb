"""SkyPilot's and gpuhunt's catalogues: good rows, wrong rows, encodings, columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest

from caudal.catalog.imports.base import Imported
from caudal.catalog.imports.gpuhunt import read_gpuhunt
from caudal.catalog.imports.skypilot import read_skypilot
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market
from tests.support.price_lists import GPUHUNT, SKYPILOT

Reader = Callable[..., Imported]
BOTH = [(read_skypilot, SKYPILOT), (read_gpuhunt, GPUHUNT)]


def pieces(text: str, encoding: str = "utf-8", size: int = 7) -> Iterator[bytes]:
    data = text.encode(encoding)
    return (data[at : at + size] for at in range(0, len(data), size))


def test_skypilot() -> None:
    found = read_skypilot(pieces(SKYPILOT), "aws", "2026-11-28")
    told = {(r.machine_type, r.market): r for r in found.rows}
    assert len(found.rows) == 5 and found.problem_count == 0
    h100 = told["p5.48xlarge", Market.ON_DEMAND]
    assert (h100.provider, h100.region, h100.chips, h100.chip) == ("aws", "us-east-1", 8, "H100-80GB")
    assert (h100.price_usd_per_hour, h100.memory_bytes, h100.as_of) == (
        Decimal("55.04"),
        2048 << 30,
        "2026-11-28",
    )
    assert told["p5.48xlarge", Market.SPOT].price_usd_per_hour == Decimal("20.78")  # the cheaper zone
    assert told["p4d.24xlarge", Market.ON_DEMAND].chip == "A100-40GB"  # what SkyPilot calls A100
    assert ("p4d.24xlarge", Market.SPOT) not in told
    assert told["trn1.32xlarge", Market.SPOT].chip == "Trainium1"
    assert found.skipped == {"without chips (see --all)": 1, "no machine, only a chip's price": 1}


def test_gpuhunt() -> None:
    found = read_gpuhunt(pieces(GPUHUNT), "nebius", "2026-11-28")
    told = {r.machine_type: r for r in found.rows}
    assert found.problem_count == 0 and found.skipped == {"without chips (see --all)": 1}
    assert (told["BM.GPU.H100.8"].chip, told["BM.GPU.H100.8"].vcpus) == ("H100-80GB", 112)
    assert told["gpu-8x-a100"].chip == "A100-40GB"  # by the memory of one
    assert (told["gpu-8x-a100-80"].chip, told["gpu-8x-a100-80"].market) == ("A100-80GB", Market.SPOT)


@pytest.mark.parametrize(("reader", "text"), BOTH)
def test_everything_has_machines_without_chips(reader: Reader, text: str) -> None:
    plain = [r for r in reader(pieces(text), "x", everything=True).rows if not r.chips]
    assert plain and all(r.chip == "" and r.price_usd_per_hour for r in plain)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize(("reader", "text"), BOTH)
def test_marks_of_encodings(reader: Reader, text: str, encoding: str) -> None:
    if encoding == "utf-16-le":
        text = "\ufeff" + text
    assert reader(pieces(text, encoding), "x").rows == reader(pieces(text.lstrip("\ufeff")), "x").rows


@pytest.mark.parametrize(("reader", "text"), BOTH)
def test_line_ends_blank_lines_and_more_columns(reader: Reader, text: str) -> None:
    lines = text.splitlines()
    wide = "\r\n".join([f"{lines[0]},flags", *(f"{line}," for line in lines[1:]), "", "  "])
    assert reader(pieces(wide), "x").rows == reader(pieces(text), "x").rows


@pytest.mark.parametrize(("reader", "text"), BOTH)
def test_a_byte_of_another_encoding_costs_no_row(reader: Reader, text: str) -> None:
    data = text.encode().replace(b"us-east-1", b"s\xe3o-paulo").replace(b"eu-north1", b"s\xe3o-paulo")
    found = reader(iter([data]), "x")
    assert len(found.rows) == len(reader(pieces(text), "x").rows)
    assert any("\ufffd" in r.region for r in found.rows)


@pytest.mark.parametrize(("reader", "text"), BOTH)
def test_missing_columns_are_named_and_nothing_is_taken(reader: Reader, text: str) -> None:
    name = "Region" if reader is read_skypilot else "location"
    with pytest.raises(UsageError, match=name) as caught:
        reader(pieces(text.replace(name, "place", 1)), "x")
    assert "--from" in caught.value.remedy


@pytest.mark.parametrize(("reader", "other"), [(read_skypilot, GPUHUNT), (read_gpuhunt, SKYPILOT)])
def test_the_other_catalogue_is_refused(reader: Reader, other: str) -> None:
    with pytest.raises(UsageError, match="no column"):
        reader(pieces(other), "x")


@pytest.mark.parametrize("reader", [read_skypilot, read_gpuhunt])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(reader: Reader, text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        reader(pieces(text), "x")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("p5.48xlarge,H100,eight,192,2048,,55.04,,us-east-1,a", "AcceleratorCount"),
        ("p5.48xlarge,H100,8.5,192,2048,,55.04,,us-east-1,a", "whole"),
        ("p5.48xlarge,H100,-8,192,2048,,55.04,,us-east-1,a", "out of range"),
        ("p5.48xlarge,H100,8,192,2048,,-55.04,,us-east-1,a", "no price"),
        ("p5.48xlarge,H100,8,192,2048,,1e99,,us-east-1,a", "more than any machine costs"),
        ("p5.48xlarge,H100,8,192,2048,,55.04,,,a", "no Region"),
        ("p5.48xlarge,H100,8,192,inf,,55.04,,us-east-1,a", "MemoryGiB"),
        ("p5.48xlarge,H100,8", "columns"),
        ('p5.48xlarge,H100,8,192,2048,"' + "x" * 200_000 + '",55.04,,us-east-1,a', "CSV"),
    ],
)
def test_wrong_rows_of_skypilots(row: str, said: str) -> None:
    found = read_skypilot(pieces(SKYPILOT + row + "\n", size=4096), "aws")
    assert len(found.rows) == 5
    assert found.problem_count == 1 and said in found.problems[0].text
    assert found.problems[0].line == len(SKYPILOT.splitlines()) + 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,eu,eighty,1,1,nvidia,1,H100,80,False,", "no price"),
        ("x,eu,8,1,1,nvidia,1,H100,80,perhaps,", "spot"),
        (",eu,8,1,1,nvidia,1,H100,80,False,", "instance_name"),
        ("x,,8,1,1,nvidia,1,H100,80,False,", "location"),
        ("x,eu,8,1,1,nvidia,many,H100,80,False,", "gpu_count"),
        ("x,eu,8,1,1", "columns"),
    ],
)
def test_wrong_rows_of_gpuhunts(row: str, said: str) -> None:
    found = read_gpuhunt(pieces(f"{GPUHUNT}{row}\n"), "x")
    assert len(found.rows) == 3 and found.problem_count == 1
    assert said in found.problems[0].text and found.problems[0].line == len(GPUHUNT.splitlines()) + 1


def test_shares_of_a_chip_and_rows_without_a_price_are_counted() -> None:
    more = "nv6,A10,0.167,6,55,,0.454,,eastus,\nnv36,A10,1,36,440,,,,eastus,\n"
    skipped = read_skypilot(pieces(SKYPILOT + more), "azure").skipped
    assert skipped["a share of a chip"] == 1 and skipped["at no price"] == 1
