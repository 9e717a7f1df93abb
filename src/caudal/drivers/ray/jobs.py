"""Ray's Jobs API over HTTP, as far as the driver needs it. Every call returns within a bounded time.

Checked against Ray 2.60 (2026-11). What answers nothing, or nothing that makes sense, is Unreachable: it says
nothing about what runs there. Knows nothing about gangs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from caudal.domain.errors import Failed, NotAllowed, NotFound, Unreachable

JOBS_PORT = 8265
CONNECT_S = 1.0
READ_S = 1.0  # with the connection, at most 2 s until a head that is gone is known to be
SUBMIT_S = 8.0  # a head's first job takes seconds: Ray's job agent starts only then
MAX_ANSWER_BYTES = 32 << 20
NOTHING = (404,)
TOKEN_CODES = (401, 403)


def jobs_url(address: str) -> str:
    """The Jobs API of a fleet file's address: a URL as it is; of `host` or `host:port` the head's own, on Ray's port
    for it (the port of `host:port` is the head's, where nodes join)."""
    if "://" in address:
        return address.rstrip("/")
    host = address.rpartition(":")[0] or address
    return f"http://{host}:{JOBS_PORT}"


def ray_token(environment: Mapping[str, str], home: Path) -> str:
    """The cluster's token by Ray's own chain: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token. Empty where
    there is none. It is never kept or shown."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def own_token() -> str:
    """This process's, by that chain, as it is now: a token that was renewed is found."""
    return ray_token(os.environ, Path.home())


class Jobs:
    """One head's Jobs API. `address` is asked at every call: a site's head may not be there yet (then it is empty),
    or be another machine than before. `where` is what errors name."""

    def __init__(self, address: Callable[[], str], where: str, token_file: Path | None = None) -> None:
        self._address = address
        self._where = where
        self._token_file = token_file
        timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
        # Without `trust_env` no proxy of this machine's environment sees the token or the gangs' secrets.
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def version(self) -> str:
        """The head's Ray."""
        found = self._json("GET", "/api/version")
        return str(found.get("ray_version", "")) if isinstance(found, dict) else ""

    def all(self) -> list[dict[str, Any]]:
        """Every job that was submitted and not deleted."""
        found = self._json("GET", "/api/jobs/")
        if not isinstance(found, list):
            raise self._silent("its list of jobs is none")
        return [job for job in found if isinstance(job, dict) and job.get("submission_id")]

    def one(self, submission_id: str) -> dict[str, Any] | None:
        """One job; None where there is none."""
        try:
            found = self._json("GET", f"/api/jobs/{quote(submission_id, safe='')}")
        except NotFound:
            return None
        return found if isinstance(found, dict) else None

    def submit(self, body: Mapping[str, Any]) -> None:
        """Submit a job; one of that id that is there already is fine."""
        try:
            self._json("POST", "/api/jobs/", json=body, timeout=httpx.Timeout(SUBMIT_S, connect=CONNECT_S))
        except Failed as error:
            if "already exists" not in error.why:
                raise

    def stop(self, submission_id: str) -> None:
        """Ask a job's entrypoint to end. One that is over, or not there, is fine."""
        try:
            self._json("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")
        except NotFound:
            pass

    def delete(self, submission_id: str) -> None:
        """Drop a job that is over. One that is not there is fine."""
        try:
            self._json("DELETE", f"/api/jobs/{quote(submission_id, safe='')}")
        except NotFound:
            pass

    def output(self, submission_id: str) -> str:
        """What a job's entrypoint printed. Raises NotFound, Failed where its node is gone."""
        found = self._json("GET", f"/api/jobs/{quote(submission_id, safe='')}/logs")
        return str(found.get("logs", "")) if isinstance(found, dict) else ""

    def send(self, name: str, data: bytes) -> None:
        """Put a package into the head's store. The head drops it when nothing has used it for ten minutes."""
        path = f"/api/packages/gcs/{quote(name, safe='')}"
        self._call("GET", path, fine=NOTHING)  # pins it first: only what was pinned is dropped again
        self._call("PUT", path, content=data)

    def has_package(self, name: str) -> bool:
        """Whether it is there; it then stays for ten minutes more."""
        return self._call("GET", f"/api/packages/gcs/{quote(name, safe='')}", fine=NOTHING).status_code == 200

    def log_tail(self, node: str, file: str, lines: int) -> bytes:
        """The end of a file among a node's Ray logs; empty where the file or its node is gone."""
        asked: dict[str, str | int] = {"node_id": node, "filename": file, "lines": lines, "timeout": 2}
        try:
            return self._call("GET", "/api/v0/logs/file", params=asked).content
        except (NotFound, Failed) as error:
            if isinstance(error, Unreachable | NotAllowed):
                raise
            return b""

    def _json(self, method: str, path: str, **more: Any) -> Any:
        answer = self._call(method, path, **more)
        try:
            return answer.json()
        except ValueError as error:
            raise self._silent("it is not Ray that answers there") from error

    def _call(self, method: str, path: str, *, fine: tuple[int, ...] = (), **more: Any) -> httpx.Response:
        address = self._address()
        if not address:
            raise self._silent("the site has no head yet")
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with self._http.stream(method, jobs_url(address) + path, headers=headers, **more) as answer:
                _take(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._silent(str(error) or type(error).__name__) from error
        if answer.is_success or answer.status_code in fine:
            return answer
        if answer.status_code in TOKEN_CODES:
            raise NotAllowed(
                "the Ray cluster does not accept our token" if token else "the Ray cluster asks for a token",
                where=self._where,
                remedy="set RAY_AUTH_TOKEN_PATH (or ~/.ray/auth_token) to the cluster's token file",
            )
        why = answer.text.strip().splitlines()[-1][:500] if answer.text.strip() else ""
        if answer.status_code in NOTHING:
            raise NotFound(f"nothing at {path}", where=self._where, why=why)
        raise Failed(f"Ray answered {answer.status_code} to {method} {path}", where=self._where, why=why)

    def _token(self) -> str:
        if self._token_file is None:
            return own_token()
        try:
            return self._token_file.read_text().strip()
        except OSError:
            return ""

    def _silent(self, why: str) -> Unreachable:
        return Unreachable(
            "the Ray head does not answer",
            where=f"{self._where} ({self._address() or 'no address'})",
            why=why,
            remedy="check that `ray start --head` runs there and that its Jobs address is reached from here",
        )


def _take(answer: httpx.Response) -> None:
    """Read an answer to its end, if it has one. Raises httpx.DecodingError where it is larger than any of ours."""
    parts, size_bytes = [], 0
    for part in answer.iter_bytes():
        parts.append(part)
        size_bytes += len(part)
        if size_bytes > MAX_ANSWER_BYTES:
            raise httpx.DecodingError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    answer._content = b"".join(parts)
