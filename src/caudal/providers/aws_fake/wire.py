"""EC2's query protocol: forms in, XML out. Knows nothing about what the actions do.

Forms are flat (`Filter.1.Value.2`); answers are built from dictionaries (a list becomes `<item>`s).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15"
MAX_BODY = 1 << 20
_SCOPE = re.compile(r"Credential=[^/,\s]*/\d+/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")

Form = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over the wire."""

    status: int
    body: bytes
    content_type: str = "text/xml;charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the SDK: `action` in a `region`, with its form."""

    region: str
    action: str
    form: Form = field(default_factory=dict)

    def get(self, key: str, otherwise: str = "") -> str:
        """One parameter."""
        return self.form.get(key, otherwise)

    def many(self, start: str) -> list[str]:
        """`InstanceId.1`, `InstanceId.2`, … in their order."""
        found = [(int(m[1]), v) for k, v in self.form.items() if (m := re.fullmatch(rf"{start}\.(\d+)", k))]
        return [value for _, value in sorted(found)]

    def filters(self) -> dict[str, list[str]]:
        """`Filter.N.Name` and `Filter.N.Value.M`."""
        names = {
            m[1]: value
            for key, value in self.form.items()
            if (m := re.fullmatch(r"Filter\.(\d+)\.Name", key))
        }
        return {name: self.many(rf"Filter\.{number}\.Value") for number, name in names.items()}

    def page(self, rows: list[Any], default: int = 1000) -> tuple[list[Any], str]:
        """The rows of the page that is asked for, and the token of the next; empty where it is the last."""
        start = int(self.get("NextToken", "0") or 0)
        size = int(self.get("MaxResults", str(default)) or default)
        return rows[start : start + size], str(start + size) if start + size < len(rows) else ""


class Refused(Exception):
    """An error as EC2 says it."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def answer(self) -> Answer:
        """It over the wire."""
        root = ElementTree.Element("Response")
        error = ElementTree.SubElement(ElementTree.SubElement(root, "Errors"), "Error")
        ElementTree.SubElement(error, "Code").text = self.code
        ElementTree.SubElement(error, "Message").text = self.message
        ElementTree.SubElement(root, "RequestID").text = "caudal-fake"
        return Answer(self.status, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def scope(authorization: str) -> tuple[str, str]:
    """The region and the service that a request was signed for; empty where it was not."""
    found = _SCOPE.search(authorization)
    return (found[1], found[2]) if found else ("", "")


def parse(body: bytes) -> Form:
    """A form's parameters. Raises Refused where it is none."""
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
    except ValueError as error:
        raise Refused("MalformedQueryString", "the body is not a form") from error


def xml(action: str, content: Mapping[str, Any]) -> Answer:
    """`ACTIONResponse` with that content."""
    root = ElementTree.Element(f"{{{NAMESPACE}}}{action}Response")
    ElementTree.SubElement(root, f"{{{NAMESPACE}}}requestId").text = "caudal-fake"
    fill(root, content)
    return whole(root)


def whole(root: ElementTree.Element) -> Answer:
    """A finished tree as an answer."""
    ElementTree.register_namespace("", NAMESPACE)
    return Answer(200, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def fill(parent: ElementTree.Element, content: Mapping[str, Any]) -> None:
    """Put values, dictionaries and lists below an element; None and empty text are left away."""
    for key, value in content.items():
        if value is None or value == "":
            continue
        child = ElementTree.SubElement(parent, f"{{{NAMESPACE}}}{key}")
        if isinstance(value, Mapping):
            fill(child, value)
        elif isinstance(value, list | tuple):
            _items(child, value)
        else:
            child.text = _text(value)


def replace(parent: ElementTree.Element, content: Mapping[str, Any]) -> None:
    """`fill`, in the place of what was there; None takes it away."""
    for key in content:
        for old in parent.findall(f"{{{NAMESPACE}}}{key}"):
            parent.remove(old)
    fill(parent, content)


def child(parent: ElementTree.Element, path: str) -> ElementTree.Element | None:
    """`a/b/c` below it."""
    return parent.find("/".join(f"{{{NAMESPACE}}}{part}" for part in path.split("/")))


def text(parent: ElementTree.Element, path: str) -> str:
    """The text there; empty where there is none."""
    found = child(parent, path)
    return (found.text or "") if found is not None else ""


def when(at: float) -> str:
    """A moment as EC2 writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(written: str) -> float:
    """A moment as the SDK writes it, in seconds since 1970."""
    return datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()


def _items(parent: ElementTree.Element, values: Iterable[Any]) -> None:
    for value in values:
        item = ElementTree.SubElement(parent, f"{{{NAMESPACE}}}item")
        if isinstance(value, Mapping):
            fill(item, value)
        else:
            item.text = _text(value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
