"""The command line's and the live view's way to the control API: errors come back as they were raised."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from caudal.domain.errors import CaudalError, ControlAway, Failed, NotFound, from_dict
from caudal.store.home import Home
from caudal.store.site_tls import AUTHORITY

PREFIX = "/api/v1"
ADDRESS_FILE = "control.url"
"""Below the state directory: where its control process listens; written when it starts."""


def path(*names: str) -> str:
    """The path of an API call; a name may hold any character."""
    return "".join(f"/{quote(name, safe='')}" for name in names)


def rebuild(body: Any, status: int) -> CaudalError:
    """The CaudalError that an error response describes."""
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        if status == NotFound.http_status:
            return NotFound(
                "the control process knows nothing of that name", remedy="caudal status lists all"
            )
        return Failed(f"the control process answered HTTP {status}", why=str(body)[:200])
    return from_dict(found)


def _text(file: Path) -> str:
    """What a file of the state directory says; nothing where it is not there or not ours to read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _trusted(home: Home) -> ssl.SSLContext:
    """The fleet's own authority. Raises ControlAway where its file is not there."""
    file = home.certificates / AUTHORITY
    try:
        return ssl.create_default_context(cafile=str(file))
    except OSError as error:
        raise ControlAway(
            "the certificate of the fleet's authority cannot be read",
            where=str(file),
            why=str(error),
            remedy="copy it from the state directory of the control process, or name that one with --home",
        ) from error


class Client:
    """Calls the control API of one state directory. Raises the errors that it answers; ControlAway where
    none answers."""

    def __init__(self, home: Home, timeout_s: float = 20.0) -> None:
        self._home = home
        self.url = _text(home.root / ADDRESS_FILE) or "http://127.0.0.1:8600"
        token = _text(home.token_file)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_s,
            trust_env=False,
            verify=_trusted(home) if self.url.startswith("https:") else True,
        )

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that a GET answers."""
        given = {key: value for key, value in query.items() if value is not None}
        return self._call("GET", path, params=given)

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON that a POST answers."""
        return self._call("POST", path, json={} if body is None else body)

    def answers(self) -> bool:
        """Whether a control process answers for this state directory."""
        try:
            self.get("/version")
        except CaudalError:
            return False
        return True

    def events(self, after: int, subject: str | None = None) -> Iterator[dict[str, Any]]:
        """Events as they come, for ever; ends when the control process goes."""
        query: dict[str, str | int] = {"after": after} | ({"subject": subject} if subject else {})
        try:
            with self._http.stream("GET", f"{PREFIX}/events/stream", params=query, timeout=None) as answer:
                if answer.status_code >= 400:
                    raise rebuild(answer.read().decode(errors="replace"), answer.status_code)
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.TransportError:
            return

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._http.request(method, PREFIX + path, **arguments)
        except httpx.TransportError as error:
            raise ControlAway(
                f"no control process answers at {self.url}",
                why=f"state directory {self._home.root}: {error}",
                remedy="start it with `caudal up` (runs and replicas go on without it)",
            ) from error
        try:
            body = answer.json()
        except ValueError:
            body = answer.text
        if answer.status_code >= 400:
            raise rebuild(body, answer.status_code)
        return body
