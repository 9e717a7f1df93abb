"""What `caudal estimate` reads and writes: tables as CSV in whatever encoding, and models' config.json.

Renders and decides nothing.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from caudal.catalog.architectures import architecture, names
from caudal.domain.errors import NotFound, UsageError
from caudal.domain.transformer import Transformer
from caudal.estimate.shapes import from_config, shape_of_size, size_of

LARGEST_TABLE = 64 << 20
LARGEST_CONFIG = 4 << 20
MOST_ROWS = 1_000_000
MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


def _bytes(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise UsageError(f"{path} is larger than {most >> 20} MiB", remedy="split it")
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"there is no file {path}") from error
    except PermissionError as error:
        raise UsageError(f"{path} may not be read", why=str(error)) from error


def _text(data: bytes) -> str:
    """UTF-8 (with a mark or without), UTF-16 with a mark, else Latin-1, which reads anything."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_table(path: Path, needs: Sequence[str]) -> list[dict[str, str]]:
    """Rows by column. A row with too many or too few cells says so in the column without a name.

    Raises `UsageError` where the file is no table, or has none of the columns in `needs`.
    """
    text = _text(_bytes(path, LARGEST_TABLE)).replace("\x00", "")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows: list[dict[str, str]] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                continue
            rows.append(_row(header, cells))
            if len(rows) > MOST_ROWS:
                raise UsageError(f"{path} has more than {MOST_ROWS:,} rows", remedy="split it")
    except csv.Error as error:
        raise UsageError(f"{path} is not a CSV file", why=str(error)) from error
    if not any(name in header for name in needs):
        raise UsageError(
            f"{path} has none of the columns {', '.join(needs)}",
            why=f"its first line is {first[:80]!r}" if first.strip() else "it is empty",
            remedy="the first line names the columns, as in docs/howto/estimate.md",
        )
    return rows


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}
    if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
        row[""] = f"the row has {len(cells)} cells, the header {len(header)}"
    return row


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As UTF-8 CSV."""
    write_text(path, table_text(columns, rows))


def write_text(path: Path, text: str) -> None:
    """As UTF-8. Raises `UsageError` where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{path} cannot be written", why=str(error)) from error


def model_named(text: str) -> Transformer:
    """A model from a config.json (or a directory that has one), a well-known name, or a size."""
    path = Path(text)
    if path.is_dir() and (path / "config.json").exists():
        path = path / "config.json"
    if path.is_file():
        try:
            config = msgspec.json.decode(_bytes(path, LARGEST_CONFIG))
        except msgspec.DecodeError as error:
            raise UsageError(f"{path} is not JSON", why=str(error)) from error
        if not isinstance(config, dict):
            raise UsageError(
                f"{path} is not a model's config.json", remedy="a JSON object with hidden_size, ..."
            )
        return from_config(config, path.parent.name or path.stem)
    size = size_of(text)
    if size is not None:
        return shape_of_size(size)
    known = architecture(text)
    if known is None:
        close = difflib.get_close_matches(text, names(), 1, 0.4)
        raise NotFound(
            f"there is no file, model or size {text!r}",
            remedy="a config.json, a name like llama-3-70b, or a size like 70b"
            + (f"; did you mean {close[0]!r}?" if close else ""),
        )
    return known
