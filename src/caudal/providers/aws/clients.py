"""AWS's clients, one per region and service, and the one way in which they are called.

Credentials come from boto3's own chain (environment, profile, SSO, instance role) and stay in boto3. Waiting is bounded
everywhere, and a region that let us wait is not asked again for twice as long, so that one silent region does not
hold up the loop that looks after all of them.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from caudal.catalog.aws_types import check_region
from caudal.domain.errors import CaudalError, Unreachable, UsageError
from caudal.ports import Clock
from caudal.providers.aws.errors import translate

AGENT = "caudal"
PLACEHOLDER = "fake"  # what signs requests to a fake: real credentials never go to another address than AWS's


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, in seconds: to connect, and between bytes. `attempts` is in all, not on top. A call
    that took `slow_s` or more without an answer makes its region rest."""

    connect_s: float = 3.0
    read_s: float = 10.0
    attempts: int = 2
    slow_s: float = 1.0
    max_rest_s: float = 30.0


class Clients:
    """Calls AWS. `account` is a profile's name of boto3's own configuration; empty: the default chain. `endpoint`
    is a URL of this machine, where a fake listens; empty: AWS."""

    def __init__(self, name: str, account: str, endpoint: str, clock: Clock, patience: Patience) -> None:
        self._name = name
        self._account = account
        self._endpoint = _own(endpoint)
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()  # sessions are not made for threads, the clients that they make are
        self._session: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._rest_until: dict[str, float] = {}

    def call(self, region: str, operation: str, service: str = "ec2", **parameters: Any) -> dict[str, Any]:
        """One call, `describe_instances`. Raises the domain error of what went wrong."""
        where = f"provider {self._name}, {region}"
        self._rested(region, where)
        began = self._clock.now()
        try:
            client = self._client(service, region)
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except CaudalError:
            raise
        except Exception as error:
            raised = translate(error, where, "".join(w.capitalize() for w in operation.split("_")))
            if isinstance(raised, Unreachable):
                self._rest(region, began)
            raise raised from None  # its chain may hold the request, which is signed
        self._rest_until.pop(region, None)
        return answer

    def pages(
        self, region: str, operation: str, service: str = "ec2", **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """All pages of a list, each a call."""
        token: dict[str, Any] = {}
        while True:
            page = self.call(region, operation, service, **parameters, **token)
            yield page
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def unrepeated(self) -> Clients:
        """The same, for calls that must not be made twice: whatever becomes of the answer, there is one request,
        and it is waited for longer."""
        patience = replace(self._patience, attempts=1, read_s=max(60.0, self._patience.read_s))
        return Clients(self._name, self._account, self._endpoint, self._clock, patience)

    def _client(self, service: str, region: str) -> Any:
        with self._lock:
            key = (service, region)
            if key not in self._clients:
                self._clients[key] = self._make(service, region)
            return self._clients[key]

    def _make(self, service: str, region: str) -> Any:
        try:
            import boto3  # noqa: PLC0415 - an extra, needed by whoever has machines at AWS
            from botocore.config import Config  # noqa: PLC0415 - as above
        except ImportError as error:
            raise UsageError(
                "AWS's SDK is not installed", why=str(error), remedy="pip install 'caudal[aws]'"
            ) from error
        check_region(region)
        if self._session is None:
            self._session = self._session_of(boto3)
        patience = self._patience
        config = Config(
            connect_timeout=patience.connect_s,
            read_timeout=patience.read_s,
            retries={"total_max_attempts": patience.attempts, "mode": "standard"},
            user_agent_extra=AGENT,
            max_pool_connections=20,
            proxies={} if self._endpoint else None,
        )
        options: dict[str, Any] = {"region_name": region, "config": config}
        if self._endpoint:
            options |= {
                "endpoint_url": self._endpoint,
                "aws_access_key_id": PLACEHOLDER,
                "aws_secret_access_key": PLACEHOLDER,
            }
        return self._session.client(service, **options)

    def _session_of(self, boto3: Any) -> Any:
        if not self._endpoint:
            return boto3.session.Session(profile_name=self._account or None)
        import botocore.session  # noqa: PLC0415 - as boto3

        # A fake needs no profile, and must not fail for one that the environment names and nobody has.
        bare = botocore.session.Session(session_vars={"profile": (None, [], None, None)})
        return boto3.session.Session(botocore_session=bare)

    def _rested(self, region: str, where: str) -> None:
        wait_s = self._rest_until.get(region, 0.0) - self._clock.now()
        if wait_s > 0:
            raise Unreachable(
                "it did not answer in time", where=where, why=f"it is asked again in {wait_s:.0f} s"
            )

    def _rest(self, region: str, began: float) -> None:
        now = self._clock.now()
        if now - began >= self._patience.slow_s:
            self._rest_until[region] = now + min(2 * (now - began), self._patience.max_rest_s)


def _own(endpoint: str) -> str:
    """The endpoint, if it is this machine's. Raises UsageError."""
    if not endpoint:
        return ""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    try:
        ours = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        ours = False
    if parts.scheme not in ("http", "https") or not ours:
        raise UsageError(
            f"endpoint {endpoint!r} is not an address of this machine",
            remedy="leave `endpoint` away for AWS itself; `fake`, or a URL on 127.0.0.1, is for fakes",
        )
    return endpoint
