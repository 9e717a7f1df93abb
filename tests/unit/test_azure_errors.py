"""providers/azure: what Azure says, on the wire and through its SDK, becomes the error that a user can act on."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError

from caudal.domain.errors import (
    CaudalError,
    Failed,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
    UsageError,
)
from caudal.domain.fleet import MachineType, Offer, ProviderSpec
from caudal.providers.azure import AzureProvider
from caudal.providers.azure_fake import FakeAzure
from caudal.simulate.kernel import Kernel
from tests.support.azure import IMAGE, SITE, SUBNET, azure_provider, fake_azure, user_data

VM_PATH = "/virtualMachines/"
NO_ROLE = (
    "The client 'me' with object id 'o' does not have authorization to perform action "
    "'Microsoft.Compute/virtualMachines/write' over scope '/subscriptions/s' or the scope is invalid."
)
NO_JOIN = (
    "The client 'me' has permission to perform action 'Microsoft.Compute/virtualMachines/write' on scope 's'; "
    "however, it does not have permission to perform action(s) "
    "'Microsoft.Compute/capacityReservationGroups/deploy/action' on the linked scope(s) 'g'."
)
QUOTA = "Operation could not be completed as it results in exceeding approved standardNDSH100v5Family Cores quota."
SIZE_TEXT = "The value X provided for the VM size is not valid (vmSize)."

SAID: list[tuple[int, str, str, type[CaudalError], str]] = [
    (409, "AllocationFailed", "Allocation failed.", NoCapacity, "AllocationFailed"),
    (409, "ZonalAllocationFailed", "Allocation failed.", NoCapacity, "ZonalAllocationFailed"),
    (409, "OverconstrainedAllocationRequest", "too many conditions", NoCapacity, "Overconstrained"),
    (409, "OverconstrainedZonalAllocationRequest", "too many", NoCapacity, "Overconstrained"),
    (
        409,
        "SkuNotAvailable",
        "The requested VM size is currently not available",
        NoCapacity,
        "SkuNotAvailable",
    ),
    (409, "OperationNotAllowed", QUOTA, QuotaExceeded, "standardNDSH100v5Family"),
    (403, "QuotaExceeded", "quota", QuotaExceeded, "quota"),
    (409, "OperationNotAllowed", "The VM is being moved.", Failed, "being moved"),
    (403, "AuthorizationFailed", NO_ROLE, NotAllowed, "Microsoft.Compute/virtualMachines/write"),
    (
        403,
        "LinkedAuthorizationFailed",
        NO_JOIN,
        NotAllowed,
        "capacityReservationGroups/deploy/action is missing",
    ),
    (403, "RequestDisallowedByPolicy", "Resource was disallowed by policy.", NotAllowed, "policy"),
    (401, "ExpiredAuthenticationToken", "The access token expiry is before now.", NotAllowed, "az login"),
    (
        409,
        "MissingSubscriptionRegistration",
        "not registered to use 'Microsoft.Compute'",
        NotAllowed,
        "az provider",
    ),
    (400, "InvalidParameter", SIZE_TEXT, NotOffered, "vmSize"),
    (400, "InvalidParameter", "Custom data is not base64.", Failed, "base64"),
    (404, "PlatformImageNotFound", "The platform image is not available", NotOffered, "platform image"),
    (404, "ImageNotFound", "The Image cannot be found.", NotOffered, "Image"),
    (404, "SubscriptionNotFound", "The subscription 's' could not be found.", NotOffered, "subscription"),
    (400, "LocationNotAvailableForResourceType", "The provided location", NotOffered, "location"),
    (429, "TooManyRequests", "Too many.", Unreachable, "TooManyRequests"),
    (503, "ServiceUnavailable", "Try later.", Unreachable, "ServiceUnavailable"),
    (500, "InternalServerError", "Oh.", Unreachable, "InternalServerError"),
    (409, "RetryableError", "A retryable error occurred.", Unreachable, "RetryableError"),
]


@pytest.fixture
def fake() -> FakeAzure:
    return fake_azure()


def refuse(fake: FakeAzure, status: int, code: str = "", message: str = "", **more: Any) -> None:
    said = {"kind": "refuse", "status": status, **({"code": code, "message": message} if code else {})}
    fake.admin("fault", {**said, **more})


def refused(provider: AzureProvider, offer: Offer, lease: str = "lease-1") -> CaudalError:
    with pytest.raises(CaudalError) as caught:
        provider.acquire(lease, offer, "t")
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "hint"), SAID, ids=[f"{c}-{k.__name__}" for _, c, _, k, _ in SAID]
)
def test_what_azure_says_becomes_ours(
    fake: FakeAzure, status: int, code: str, message: str, kind: type[CaudalError], hint: str
) -> None:
    provider = azure_provider(fake, Kernel())
    offer = provider.offers()[0]
    refuse(fake, status, code, message, method="PUT", path=VM_PATH)
    error = refused(provider, offer)
    assert type(error) is kind
    assert hint in str(error)
    assert "provider az" in error.where
    assert fake.admin("state")["machines"] == []


def test_the_operation_that_fails_says_the_same_as_the_call(fake: FakeAzure) -> None:
    provider = azure_provider(fake, Kernel())
    offer = provider.offers()[0]
    limit = {"size": offer.machine_type.name, "location": SITE.region, "count": 0, "later": True}
    fake.admin("capacity", {**limit, "code": "OverconstrainedAllocationRequest"})
    provider.acquire("lease-1", offer, "t")
    until(lambda: provider.offers()[0].available == 0)
    error = refused(provider, offer, "lease-2")
    assert type(error) is NoCapacity and "OverconstrainedAllocationRequest" in error.why


def until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fields", "names", "near"),
    [
        ({"region": "swedencentrl"}, [], "did you mean 'swedencentral'?"),
        ({}, [IMAGE], ""),
        ({}, [SUBNET], ""),
        ({"image": "ubuntu"}, [], "az vm image list"),
        ({"image": ""}, [], "az vm image list"),
    ],
    ids=["region", "image", "subnet", "no urn", "no image"],
)
def test_names_that_do_not_exist(
    fake: FakeAzure, fields: dict[str, str], names: list[str], near: str
) -> None:
    offer = azure_provider(fake, Kernel()).offers()[0]
    provider = azure_provider(fake, Kernel(), **fields)
    fake.admin("missing", {"names": names})
    error = refused(provider, offer)
    assert type(error) is NotOffered
    assert near in error.remedy
    assert fake.admin("state")["machines"] == []
    assert fake.admin("state")["nics"] == []  # what was made for it is taken back


def test_a_size_that_does_not_exist_says_which_was_meant(fake: FakeAzure) -> None:
    provider = azure_provider(fake, Kernel())
    offer = provider.offers()[0]
    kind = MachineType("Standard_ND96isr_H100_v6", offer.machine_type.resources)
    error = refused(provider, replace(offer, machine_type=kind))
    assert type(error) is NotOffered
    assert error.remedy == "did you mean 'Standard_ND96isr_H100_v5'?"


def test_a_site_without_a_network_says_what_to_write(fake: FakeAzure) -> None:
    provider = azure_provider(fake, Kernel(), network="")
    error = refused(provider, provider.offers()[0])
    assert type(error) is UsageError and "subnets/NAME" in error.remedy


@pytest.mark.parametrize("kind", [CredentialUnavailableError, ClientAuthenticationError])
def test_no_credentials(fake: FakeAzure, kind: type[Exception]) -> None:
    class Nobody:
        def get_token(self, *_scopes: str, **_options: Any) -> Any:
            raise kind("no credential in the chain gave a token")

        get_token_info = get_token

    provider = azure_provider(fake, Kernel(), credential=Nobody())
    with pytest.raises(NotAllowed) as caught:
        provider.machines()
    assert "az login" in caught.value.remedy
    assert type(provider.problems()[0]) is NotAllowed


def test_credentials_and_scripts_are_in_no_log(fake: FakeAzure, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    provider = azure_provider(fake, Kernel())
    provider.acquire("lease-1", provider.offers()[0], "t")
    assert "virtualMachines" in caplog.text  # the SDK does log the call
    assert "Bearer" not in caplog.text
    assert "customData" not in caplog.text


@pytest.mark.parametrize("url", ["https://management.azure.com", "http://10.0.0.1:80", "ftp://127.0.0.1"])
def test_an_endpoint_is_of_this_machine(url: str) -> None:
    spec = ProviderSpec("az", "azure", endpoint=url, account="s", resource_group="g")
    with pytest.raises(UsageError):
        AzureProvider(spec, [SITE], [], "f", user_data, Kernel())


def test_azure_that_asks_for_peace_gets_it(fake: FakeAzure) -> None:
    clock = Kernel()
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    refuse(fake, 429, retry_after_s=30, times=1)
    with pytest.raises(Unreachable):
        provider.machines()
    calls = len(fake.admin("state")["calls"])
    clock.sleep(29)
    for ask in (provider.machines, provider.offers, lambda: provider.acquire("l", offer, "t")):
        with pytest.raises(Unreachable, match="not asked now"):
            ask()
    assert len(fake.admin("state")["calls"]) == calls
    clock.sleep(2)
    assert provider.machines() == []


def test_a_short_fault_is_ridden_out_and_a_long_one_is_not_waited_for(fake: FakeAzure) -> None:
    provider = azure_provider(fake, Kernel())
    refuse(fake, 503, times=2)
    assert provider.machines() == []
    refuse(fake, 503)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        provider.machines()
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("kind", ["slow", "silent"])
def test_no_answer_in_time_is_unreachable_and_not_waited_for_twice(fake: FakeAzure, kind: str) -> None:
    clock = Kernel()
    provider = azure_provider(fake, clock, timeout_s=0.1)
    offer = provider.offers()[0]
    fake.admin("fault", {"kind": kind, "seconds": 3.0})
    with pytest.raises(Unreachable):
        provider.machines()
    calls = len(fake.admin("state")["calls"])
    for ask in (provider.machines, lambda: provider.acquire("l", offer, "t"), lambda: provider.release("m")):
        with pytest.raises(Unreachable, match="not asked now"):
            ask()
    assert len(fake.admin("state")["calls"]) == calls
    fake.admin("calm", {})
    clock.sleep(11)
    until(lambda: answers(provider, clock))


def answers(provider: AzureProvider, clock: Kernel) -> bool:
    """Whether it answers now; the machine that runs the tests may be too busy for a tenth of a second."""
    try:
        return provider.machines() == []
    except Unreachable:
        clock.sleep(11)
        return False


@pytest.mark.parametrize("missing", ["account", "resource_group"])
def test_a_provider_without_a_subscription_or_a_group(missing: str) -> None:
    spec = ProviderSpec("az", "azure", account="s", resource_group="g")
    with pytest.raises(UsageError, match=missing):
        AzureProvider(replace(spec, **{missing: ""}), [SITE], [], "f", user_data, Kernel())


def test_nobody_at_the_port_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        spec = ProviderSpec(
            "az", "azure", endpoint=f"http://127.0.0.1:{port}", account="s", resource_group="g"
        )
        provider = AzureProvider(spec, [SITE], [], "f", user_data, Kernel())
        with pytest.raises(Unreachable):
            provider.machines()


def test_a_region_that_is_away_leaves_the_list_and_the_other_regions(fake: FakeAzure) -> None:
    sites = (SITE, replace(SITE, name="west", region="westus3"))
    provider = azure_provider(fake, Kernel(), sites=sites)
    here, there = provider.offers()
    refuse(fake, 503, region="westus3")
    assert type(refused(provider, there)) is Unreachable
    provider.acquire("lease-2", here, "t")
    assert {m.lease_id for m in provider.machines()} >= {"lease-2"}
