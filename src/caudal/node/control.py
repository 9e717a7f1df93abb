"""What a node says to the control API: it changes its join token for one of its own, then reports.

The join token works once. The node chooses a number at random before it asks and asks with the same one again, so that an
answer that was lost on the way does not lock it out, while nobody else can use the token after it.
"""

from __future__ import annotations

import json
import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

CALL_S = 5.0
MAX_ANSWER_BYTES = 1 << 16


class Refused(Exception):
    """The control API said no, for good."""


class Away(Exception):
    """It did not answer; asking again may help."""


class ControlApi:
    """The calls of one lease. Its files are below `folder`: `join` (removed once used), `nonce`, `token`, for a cluster's
    node `cluster.json` and `cluster-token`, and `ca.pem` where the API's certificate is by an authority of the fleet's own.
    """

    def __init__(self, api_url: str, lease: str, folder: Path) -> None:
        self._url = f"{api_url.rstrip('/')}/api/v1/nodes/{quote(lease, safe='')}"
        self._folder = folder
        authority = folder / "ca.pem"
        self._tls = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None

    def join(self, *, again: bool = False) -> None:
        """Have a token of our own, and know our part in the site's cluster; `again`: where its head is may be known now.
        Raises Refused, Away."""
        token = self._folder / "token"
        if token.exists() and not again:
            return
        nonce = self._folder / "nonce"
        if not nonce.exists():
            _write(nonce, secrets.token_hex(16))
        answer = self._post("join", {"nonce": nonce.read_text()}, (self._folder / "join").read_text().strip())
        if not isinstance(answer.get("token"), str):
            raise Away("the answer holds no token")
        if isinstance(answer.get("role"), str):
            _write(self._folder / "cluster-token", str(answer.get("cluster_token", "")))
            part = {"role": answer["role"], "head": str(answer.get("head", ""))}
            _write(self._folder / "cluster.json", json.dumps(part))
            if part["role"] != "head" and not part["head"]:
                _write(token, answer["token"])
                return  # the join token is needed once more
        _write(token, answer["token"])
        (self._folder / "join").unlink(missing_ok=True)

    def part(self) -> Mapping[str, str]:
        """`role` and `head` (`host:port`, or empty as long as nobody knows); empty where the site is no such cluster."""
        try:
            found: Mapping[str, str] = json.loads((self._folder / "cluster.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def report(self, status: Mapping[str, Any]) -> None:
        """Tell how this node is. Raises Refused, Away."""
        self._post("report", {"status": dict(status)}, (self._folder / "token").read_text())

    def _post(self, verb: str, body: Mapping[str, Any], token: str) -> Mapping[str, Any]:
        request = urllib.request.Request(
            f"{self._url}/{verb}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_S, context=self._tls) as answer:
                found = json.loads(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise (Refused if 400 <= error.code < 500 else Away)(f"{error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise Away(str(error)) from None
        if not isinstance(found, dict):
            raise Away("the answer is no object")
        return found


def _write(path: Path, text: str) -> None:
    """Whole or not at all, for the owner alone."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
