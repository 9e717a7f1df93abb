"""A user's own text file: read, checked, and its end kept for validation."""

from __future__ import annotations

from pathlib import Path

from caudal.domain.errors import DataError


def read_text(path: str) -> str:
    """The whole file as text. Raises DataError where it is missing, a folder, empty, or not UTF-8 text."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise DataError(
            "there is no such file",
            where=str(file),
            why="the run's `data` names it",
            remedy="check the path, or use `builtin:tinyworld`",
        ) from None
    except IsADirectoryError:
        raise DataError(
            "this is a folder, not a text file", where=str(file), remedy="name one text file in it"
        ) from None
    except OSError as error:
        raise DataError(
            "the file cannot be read",
            where=str(file),
            why=error.strerror or str(error),
            remedy="make it readable for the user that runs Caudal",
        ) from None
    return _decoded(raw, str(file))


def _decoded(raw: bytes, where: str) -> str:
    zero = raw.find(b"\0")
    if zero >= 0:
        raise DataError(
            "the file is binary, not text",
            where=where,
            why=f"byte {zero} is zero",
            remedy="convert it to plain UTF-8 text first",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "the file is not UTF-8 text",
            where=where,
            why=f"byte {error.start} is {raw[error.start]:#04x}",
            remedy="convert it, for example with `iconv -t UTF-8`",
        ) from None
    if not text.strip():
        raise DataError("the file is empty", where=where, remedy="put text into it")
    return text


def split(text: str, validation_fraction: float) -> tuple[str, str]:
    """(training, validation): the validation is the text's end, as nanoGPT splits it."""
    at = int(len(text) * (1 - validation_fraction))
    return text[:at], text[at:]
