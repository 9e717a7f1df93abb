"""`caudal offers import`: price lists and catalogues of others, from files, into the state directory."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import click

from caudal.catalog.imports.aws import read_aws
from caudal.catalog.imports.azure import read_azure
from caudal.catalog.imports.base import Imported
from caudal.catalog.imports.gpuhunt import read_gpuhunt
from caudal.catalog.imports.skypilot import read_skypilot
from caudal.catalog.rows import CatalogRow, newest
from caudal.cli.output import console, json_option, plain, print_json
from caudal.domain.errors import CaudalError, NotFound, UsageError
from caudal.store.home import home
from caudal.store.price_files import PriceFiles

PIECE_BYTES = 1 << 20
MOST_BYTES = 32 << 30
"""Of one file, unpacked: four times EC2's whole list."""

SHOWN_PROBLEMS = 10

Pieces = Iterator[bytes]


@click.command("import")
@click.option(
    "--from", "source", required=True, type=click.Choice(["aws", "azure", "skypilot", "gpuhunt"]),
    help="Whose files they are.",
)  # fmt: skip
@click.option("--provider", help="Whose machines: for SkyPilot's and gpuhunt's files, whose names say it.")
@click.option("--as-of", help="The prices' date, where the file says none. Default: the file's own.")
@click.option("--all", "everything", is_flag=True, help="Machines without chips, too.")
@json_option
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_context
def import_(
    context: click.Context,
    source: str,
    provider: str | None,
    as_of: str | None,
    everything: bool,
    as_json: bool,
    files: tuple[Path, ...],
) -> None:
    """Keep the prices of FILES (.gz, too) instead of what was imported from there before.

    Name all files of a source at once. Rows that are wrong are named with their line, and left out.
    """
    if as_of is not None:
        _check_date(as_of)
    read: list[tuple[Path, Imported]] = []
    for file in files:
        read.append((file, _read(file, source, provider, as_of, everything)))
    rows = newest(row for _, found in read for row in found.rows)
    if not rows:
        raise UsageError(
            "none of the rows can be taken: nothing is changed",
            why="; ".join(_left_out(read)),
            remedy="is it the file of another source (--from), or are the machines without chips (--all)?",
        )
    kept = PriceFiles(home(context.find_root().obj).catalog).replace(source, rows)
    if as_json:
        print_json(_told(source, rows, read))
    else:
        _show(kept, rows, read)


def _read(file: Path, source: str, provider: str | None, as_of: str | None, everything: bool) -> Imported:
    day = as_of or _day_of(file)
    whose = (provider or _provider_of(file)).lower()
    importers: dict[str, Callable[[Pieces], Imported]] = {
        "aws": lambda pieces: read_aws(pieces, everything=everything),
        "azure": lambda pieces: read_azure(pieces, day, everything=everything),
        "skypilot": lambda pieces: read_skypilot(pieces, whose, day, everything=everything),
        "gpuhunt": lambda pieces: read_gpuhunt(pieces, whose, day, everything=everything),
    }
    try:
        return importers[source](_pieces(file))
    except CaudalError as error:
        error.where = error.where or str(file)
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"the file cannot be read: {error}", where=str(file)) from error


def _pieces(file: Path) -> Pieces:
    """The file's bytes, unpacked where it is packed by gzip, at most MOST_BYTES of them."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        left = MOST_BYTES
        while piece := stream.read(PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raise UsageError(f"it has more than {MOST_BYTES >> 30} GiB", where=str(file))
            yield piece


def _provider_of(file: Path) -> str:
    """SkyPilot has `aws/vms.csv`, or `aws.csv`; gpuhunt `aws.csv`."""
    name = file.name.partition(".")[0]
    return file.absolute().parent.name if name == "vms" else name


def _day_of(file: Path) -> str:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", where=str(file)) from error


def _check_date(text: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--as-of: {text!r} is no date", remedy="write it as 2026-11-29") from None


def _left_out(read: list[tuple[Path, Imported]]) -> list[str]:
    total: Counter[str] = Counter()
    for _, found in read:
        total += found.skipped
        total["wrong"] += found.problem_count
    return [f"{count:,} {why}" for why, count in total.most_common() if count]


def _told(source: str, rows: list[CatalogRow], read: list[tuple[Path, Imported]]) -> dict[str, object]:
    return {
        "version": 1,
        "source": source,
        "rows": len(rows),
        "files": [
            {
                "file": str(file),
                "rows": len(found.rows),
                "problems": [{"line": p.line, "text": p.text} for p in found.problems],
                "problem_count": found.problem_count,
                "skipped": dict(found.skipped),
                "notes": found.notes,
            }
            for file, found in read
        ],
    }


def _show(kept: Path, rows: list[CatalogRow], read: list[tuple[Path, Imported]]) -> None:
    out, err = console(), console(stderr=True)
    for file, found in read:
        for problem in found.problems[:SHOWN_PROBLEMS]:
            err.print(f"{plain(file)}:{problem.line}: {plain(problem.text)}", style="yellow")
        if found.problem_count > SHOWN_PROBLEMS:
            err.print(f"{plain(file)}: {found.problem_count - SHOWN_PROBLEMS:,} more rows are wrong (--json)")
        for note in found.notes:
            err.print(f"{plain(file)}: {plain(note)}", style="bold yellow")
    dates = sorted({row.as_of for row in rows})
    span = dates[0] if len(dates) == 1 else f"{dates[0] or 'unknown'} to {dates[-1]}"
    chips = sorted({row.chip for row in rows if row.chip})
    out.print(f"{len(rows):,} offers of {span or 'an unknown date'}: {plain(', '.join(chips)) or 'no chips'}")
    left = _left_out(read)
    if left:
        out.print(f"left out: {plain('; '.join(left))}", style="dim")
    out.print(f"kept in {plain(kept)}", style="dim")
