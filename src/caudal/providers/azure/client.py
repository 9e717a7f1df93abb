"""Azure's SDK behind the few calls that we make, as plain dictionaries in ARM's own words.

Long-running operations are started and never waited for. Every call has a time limit and few repeats; where Azure
asks to be left alone for a while (Retry-After), no call is made until then. Knows nothing of leases.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline.policies import (
    ContentDecodePolicy,
    CustomHookPolicy,
    HeadersPolicy,
    ProxyPolicy,
    RequestIdPolicy,
    RetryPolicy,
    UserAgentPolicy,
)
from azure.core.rest import HttpRequest
from azure.identity import DefaultAzureCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy, ARMHttpLoggingPolicy
from azure.mgmt.network import NetworkManagementClient

from caudal.domain.errors import CaudalError, Unreachable, UsageError
from caudal.ports import Clock
from caudal.providers.azure.errors import from_azure, retry_after_s

SCOPE = "https://management.azure.com/.default"
TIMEOUT_S = 10.0
LONGEST_QUIET_S = 300.0
QUIET_AFTER_SILENCE_S = 10.0
"""After a call that got no answer in time none is made for this long: else every look would hang for the whole limit,
and whoever looks does nothing else meanwhile."""

RETRIES = 2
OPERATIONS_VERSION = "2024-07-01"

Row = dict[str, Any]
T = TypeVar("T")


class Arm:
    """One subscription and resource group. `endpoint` empty is Azure; else a fake of this machine. `credential` is
    for tests; without it the SDK's own chain is asked, or the fake gets a token that means nothing."""

    def __init__(
        self,
        subscription: str,
        group: str,
        endpoint: str,
        clock: Clock,
        *,
        name: str = "azure",
        credential: Any = None,
        timeout_s: float = TIMEOUT_S,
        known: tuple[str, ...] = (),
    ) -> None:
        self.subscription, self.group, self.endpoint = subscription, group, endpoint.rstrip("/")
        self.fake = bool(endpoint)
        self._clock = clock
        self._name = name
        self._known = known
        self._quiet_until = 0.0
        options: dict[str, Any] = {"connection_timeout": min(timeout_s, 5.0), "read_timeout": timeout_s}
        if self.fake:
            _only_this_machine(endpoint)
            options |= {"base_url": self.endpoint, "credential_scopes": [SCOPE]}
            credential = credential or FakeCredential()
        else:
            credential = credential or DefaultAzureCredential()
        options["policies"] = _policies(
            _LoopbackToken if self.fake else ARMChallengeAuthenticationPolicy, credential
        )
        self._compute: Any = ComputeManagementClient(credential, subscription, **options)
        self._network: Any = NetworkManagementClient(credential, subscription, **options)

    def vms(self) -> list[Row]:
        """The resource group's virtual machines, all pages."""
        return self._rows("list machines", lambda: self._compute.virtual_machines.list(self.group))

    def statuses(self) -> list[Row]:
        """What state all machines of the subscription are in: rows with `properties.instanceView`, all pages."""
        listed = lambda: self._compute.virtual_machines.list_all(status_only="true")  # noqa: E731
        return self._rows("list states", listed)

    def instance_view(self, name: str) -> Row | None:
        """One machine's instance view; None where it is not there."""
        ask = lambda: self._compute.virtual_machines.instance_view(self.group, name).as_dict()  # noqa: E731
        return self._or_none(f"look at {name}", ask)

    def vm(self, name: str) -> Row | None:
        """One machine; None where it is not there."""
        ask = lambda: self._compute.virtual_machines.get(self.group, name).as_dict()  # noqa: E731
        return self._or_none(f"look at {name}", ask)

    def create_vm(self, name: str, body: Row) -> str:
        """Ask for a machine if there is none of that name. Returns the operation's address (empty: it was there)."""
        seen: list[str] = []

        def note(response: Any) -> None:
            seen.append(response.http_response.headers.get("Azure-AsyncOperation", ""))

        def ask() -> str:
            try:
                self._compute.virtual_machines.begin_create_or_update(
                    self.group,
                    name,
                    body,
                    polling=False,
                    headers={"If-None-Match": "*"},
                    raw_response_hook=note,
                )
            except HttpResponseError as error:
                if error.status_code == 412:  # it is there: an earlier call took effect
                    return ""
                raise
            return next((url for url in seen if url), "")

        return self.call(f"create {name}", ask)

    def delete_vm(self, name: str, *, force: bool = False) -> None:
        """Ask for its end; one that is not there is fine."""
        self._begin(
            f"delete {name}",
            lambda: self._compute.virtual_machines.begin_delete(
                self.group, name, force_deletion=force or None, polling=False
            ),
        )

    def operation(self, url: str) -> Row | None:
        """How a long-running operation stands: `status`, and `error` where it failed. None where it is forgotten, or
        where the address is not one of the service that we asked."""
        base = self.endpoint or "https://management.azure.com"
        if not url.startswith(f"{base}/"):
            return None

        def ask() -> Row | None:
            response = self._compute.send_request(HttpRequest("GET", url))
            if response.status_code == 404:
                return None
            response.raise_for_status()
            found = response.json()
            return found if isinstance(found, dict) else {}

        return self.call("look at an operation", ask)

    def nics(self) -> list[Row]:
        """The resource group's network interfaces."""
        return self._rows("list interfaces", lambda: self._network.network_interfaces.list(self.group))

    def create_nic(self, name: str, body: Row) -> None:
        """Ask for an interface; the same name twice is one."""
        self._begin(
            f"create {name}",
            lambda: self._network.network_interfaces.begin_create_or_update(
                self.group, name, body, polling=False
            ),
        )

    def delete_nic(self, name: str) -> None:
        """Ask for its end; one that is not there is fine."""
        self._begin(
            f"delete {name}",
            lambda: self._network.network_interfaces.begin_delete(self.group, name, polling=False),
        )

    def disks(self) -> list[Row]:
        """The resource group's disks."""
        return self._rows("list disks", lambda: self._compute.disks.list_by_resource_group(self.group))

    def delete_disk(self, name: str) -> None:
        """Ask for its end; one that is not there is fine."""
        self._begin(
            f"delete {name}", lambda: self._compute.disks.begin_delete(self.group, name, polling=False)
        )

    def skus(self, region: str) -> list[Row]:
        """The sizes of a region with their restrictions for this subscription."""
        only = f"location eq '{region}'"
        rows = self._rows("list sizes", lambda: self._compute.resource_skus.list(filter=only))
        return [row for row in rows if row.get("resourceType") == "virtualMachines"]

    def usages(self, region: str) -> list[Row]:
        """What of the region's quotas is used."""
        return self._rows("list quotas", lambda: self._compute.usage.list(region))

    def reservations(self, group_id: str) -> list[Row]:
        """The capacity reservations of a group (by its ARM id), each with its instance view."""
        group, name = _group_and_name(group_id)
        port = self._compute.capacity_reservations
        listed = self._rows("list reservations", lambda: port.list_by_capacity_reservation_group(group, name))

        def with_view(one: str) -> Row:
            row: Row = port.get(group, name, one, expand="instanceView").as_dict()
            return row

        look = "look at a reservation"
        return [self.call(look, partial(with_view, str(row["name"]))) for row in listed]

    def call(self, what: str, ask: Callable[[], T]) -> T:
        """Ask, and turn what goes wrong into our errors. Raises CaudalError only."""
        where = f"provider {self._name}: {what}"
        left_s = self._quiet_until - self._clock.now()
        if left_s > 0:
            why = f"it asked to be left alone, or gave no answer in time; it is asked again in {left_s:.0f} s"
            raise Unreachable("Azure is not asked now", where=where, why=why)
        try:
            return ask()
        except AzureError as error:
            pause_s = retry_after_s(error)
            if isinstance(error, ServiceRequestTimeoutError | ServiceResponseTimeoutError):
                pause_s = QUIET_AFTER_SILENCE_S
            if pause_s is not None:
                self._quiet_until = self._clock.now() + min(pause_s, LONGEST_QUIET_S)
            raise from_azure(error, where, self._known) from error

    def _rows(self, what: str, listed: Callable[[], Any]) -> list[Row]:
        return self.call(what, lambda: [row.as_dict() for row in listed()])

    def _or_none(self, what: str, ask: Callable[[], Row]) -> Row | None:
        def or_none() -> Row | None:
            try:
                return ask()
            except ResourceNotFoundError as error:
                code = error.error.code if error.error else ""
                if code in ("ResourceNotFound", "NotFound", "", None):
                    return None
                raise  # not the thing is missing, but the group or the subscription

        return self.call(what, or_none)

    def _begin(self, what: str, ask: Callable[[], Any]) -> None:
        def begin() -> None:
            try:
                ask()
            except ResourceNotFoundError as error:
                if error.error and error.error.code not in ("ResourceNotFound", "NotFound"):
                    raise

        self.call(what, begin)


class FakeCredential:
    """The token that a fake on this machine wants: given, or from CAUDAL_FAKE_TOKEN, or any."""

    def __init__(self, token: str = "") -> None:
        self._token = token or os.environ.get("CAUDAL_FAKE_TOKEN", "") or "any"

    def get_token(self, *_scopes: str, **_options: Any) -> Any:
        """As azure.core's TokenCredential."""
        return AccessToken(self._token, 2**31)

    def get_token_info(self, *_scopes: str, **_options: Any) -> Any:
        """As azure.core's SupportsTokenInfo."""
        return AccessTokenInfo(self._token, 2**31)


class _LoopbackToken(ARMChallengeAuthenticationPolicy):  # type: ignore[misc]
    """The SDK sends no token over plain HTTP. To this machine it may: `_only_this_machine` has looked."""

    def on_request(self, request: Any) -> None:
        """As azure.core's policies."""
        request.context.options["enforce_https"] = False
        super().on_request(request)


class _Retries(RetryPolicy):  # type: ignore[misc]
    """Few and quick repeats. One that Azure wants later is left to the next look: the caller must not hang in it."""

    def is_retry(self, settings: Any, response: Any) -> Any:
        """As azure.core's RetryPolicy."""
        answer = response.http_response
        if answer.status_code == 429 or answer.headers.get("Retry-After"):
            return False
        return super().is_retry(settings, response)


def _policies(token: Any, credential: Any) -> list[Any]:
    """The SDK's own, but two: no redirects, which ARM has none of, and no registration of resource providers, which
    is the subscription owner's to decide, and waits for minutes."""
    return [
        RequestIdPolicy(),
        HeadersPolicy(),
        UserAgentPolicy("caudal"),
        ProxyPolicy(),
        ContentDecodePolicy(),
        _Retries(retry_total=RETRIES, retry_read=0, retry_backoff_factor=0.1, retry_backoff_max=1),
        token(credential, SCOPE),
        CustomHookPolicy(),
        ARMHttpLoggingPolicy(),
    ]


def _only_this_machine(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    try:
        loopback = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    if parts.scheme not in ("http", "https") or not loopback:
        raise UsageError(
            f"endpoint {endpoint!r} is not of this machine",
            remedy="leave `endpoint` out for Azure itself, or say `endpoint: fake`",
        )


def _group_and_name(group_id: str) -> tuple[str, str]:
    parts = group_id.strip("/").split("/")
    lower = [p.lower() for p in parts]
    try:
        group = parts[lower.index("resourcegroups") + 1]
        name = parts[lower.index("capacityreservationgroups") + 1]
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"{group_id!r} is no capacity reservation group",
            remedy="the contract's `reference` is the group's ARM id: /subscriptions/.../resourceGroups/.../"
            "providers/Microsoft.Compute/capacityReservationGroups/NAME",
        ) from error
    return group, name


def permitted(ask: Callable[[], T], otherwise: T) -> T:
    """What it says, or `otherwise` where we may not ask. Other errors go on."""
    try:
        return ask()
    except CaudalError as error:
        if error.code == "not_allowed":
            return otherwise
        raise
