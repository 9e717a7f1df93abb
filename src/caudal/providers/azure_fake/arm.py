"""ARM's manners: requests taken apart, answers and errors in its shape. Knows nothing of machines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""A resource's name; also safe as a folder's."""


@dataclass(frozen=True, slots=True)
class Request:
    """`parts` is the path without its empty ends, `query` the last value of each name, in lower case."""

    method: str
    parts: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Row
    base: str = ""

    @property
    def path(self) -> str:
        """The path as it came, without the query."""
        return "/" + "/".join(self.parts)

    def after(self, word: str) -> str:
        """The part behind a word of the path, whatever its case; empty where it is not there."""
        lower = [part.lower() for part in self.parts]
        place = lower.index(word.lower()) + 1 if word.lower() in lower else len(self.parts)
        return self.parts[place] if place < len(self.parts) else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with a JSON body (None: none at all)."""

    status: int
    body: Row | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        """The body's bytes."""
        return b"" if self.body is None else json.dumps(self.body).encode()


class Refused(Exception):
    """An answer that is an error, raised from wherever it was found."""

    def __init__(
        self, status: int, code: str, message: str, target: str = "", retry_after_s: str = ""
    ) -> None:
        super().__init__(code)
        self.code, self.message = code, message
        error = {"code": code, "message": message, **({"target": target} if target else {})}
        headers = {"Retry-After": retry_after_s} if retry_after_s else {}
        self.answer = Answer(status, {"error": error}, headers)


def not_found(kind: str, name: str, group: str) -> Refused:
    """ARM's sentence for a resource that is not there."""
    text = f"The Resource '{kind}/{name}' under resource group '{group}' was not found."
    return Refused(404, "ResourceNotFound", text)


def page(rows: list[Row], request: Request, size: int) -> Answer:
    """A page of a list, with the address of the next."""
    start = int(request.query.get("$skiptoken", "0") or 0)
    body: Row = {"value": rows[start : start + size]}
    if start + size < len(rows):
        kept = "&".join(f"{k}={v}" for k, v in request.query.items() if k != "$skiptoken")
        body["nextLink"] = f"{request.base}{request.path}?{kept}&$skiptoken={start + size}"
    return Answer(200, body)
