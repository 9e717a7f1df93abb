"""Every kind of answer that AWS gives, as the domain error that it is, through AWS's own SDK."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

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
from caudal.domain.fleet import Market, ProviderSpec
from caudal.providers.aws.clients import Clients, Patience
from caudal.providers.aws.provider import AwsProvider
from tests.support.aws import FLEET, IMPATIENT, PROVIDER, REGION, Aws, TestClock, fresh_aws, site, user_data

DENIED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/ada is not authorized to "
    "perform: ec2:RunInstances on resource: arn:aws:ec2:us-east-1:123456789012:instance/* because no identity-based "
    "policy allows the ec2:RunInstances action. Encoded authorization failure message: c2VjcmV0"
)


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


def refused(aws: Aws, **fault: Any) -> CaudalError:
    """What `acquire` on demand raises where RunInstances fails like this."""
    provider = aws.provider()
    offer = next(o for o in provider.offers() if o.market is Market.ON_DEMAND)
    aws.admin("fault", action="RunInstances", **fault)
    with pytest.raises(CaudalError) as told:
        provider.acquire("lease-1", offer, "token-1")
    assert not provider.machines()
    return told.value


CASES: list[tuple[str, int, type[CaudalError]]] = [
    ("InsufficientInstanceCapacity", 500, NoCapacity),
    ("ReservationCapacityExceeded", 400, NoCapacity),
    ("InsufficientFreeAddressesInSubnet", 400, NoCapacity),
    ("IdempotentInstanceTerminated", 400, NoCapacity),
    ("VcpuLimitExceeded", 400, QuotaExceeded),
    ("MaxSpotInstanceCountExceeded", 400, QuotaExceeded),
    ("InstanceLimitExceeded", 400, QuotaExceeded),
    ("UnauthorizedOperation", 403, NotAllowed),
    ("AuthFailure", 401, NotAllowed),
    ("ExpiredToken", 400, NotAllowed),
    ("RequestExpired", 400, NotAllowed),
    ("InvalidClientTokenId", 403, NotAllowed),
    ("OptInRequired", 401, NotAllowed),
    ("InvalidAMIID.NotFound", 400, NotOffered),
    ("InvalidParameterValue", 400, NotOffered),
    ("Unsupported", 400, NotOffered),
    ("InvalidSubnetID.NotFound", 400, NotOffered),
    ("InvalidCapacityReservationId.NotFound", 400, NotOffered),
    ("RequestLimitExceeded", 503, Unreachable),
    ("Throttling", 400, Unreachable),
    ("InternalError", 500, Unreachable),
    ("Unavailable", 503, Unreachable),
    ("SomethingNewAndBad", 500, Unreachable),
    ("SomethingNewAndWrong", 400, Failed),
]


@pytest.mark.parametrize(("code", "status", "kind"), CASES, ids=[case[0] for case in CASES])
def test_a_code_is_the_error_that_it_is(aws: Aws, code: str, status: int, kind: type[CaudalError]) -> None:
    told = refused(aws, code=code, status=status, message="in words")
    assert type(told) is kind
    assert told.where == f"provider {PROVIDER}, {REGION}"
    if kind is NotAllowed or kind is QuotaExceeded:
        assert told.remedy


def test_the_missing_permission_is_named_and_nothing_else_is_told(aws: Aws) -> None:
    told = refused(aws, code="UnauthorizedOperation", status=403, message=DENIED)
    assert "the IAM action ec2:RunInstances is not allowed" in told.what
    assert "allow the IAM action ec2:RunInstances" in told.remedy
    assert "arn:" not in str(told) and "c2VjcmV0" not in str(told) and "ada" not in str(told)


def test_without_a_name_the_permission_is_that_of_the_call(aws: Aws) -> None:
    told = refused(aws, code="UnauthorizedOperation", status=403, message="no")
    assert "ec2:RunInstances" in told.remedy


def test_an_image_that_is_gone(aws: Aws) -> None:
    provider = aws.provider()
    offer = provider.offers()[0]
    aws.admin("image", id=site().image, gone=True)
    with pytest.raises(NotOffered) as told:
        provider.acquire("lease-1", offer, "token-1")
    assert "InvalidAMIID.NotFound" in told.value.why and "`image`" in told.value.remedy


def test_a_vcpu_limit(aws: Aws) -> None:
    provider = aws.provider()
    offer = next(o for o in provider.offers() if o.market is Market.ON_DEMAND)
    aws.admin("vcpus", region=REGION, count=2)
    provider.acquire("lease-1", offer, "token-1")
    with pytest.raises(QuotaExceeded):
        provider.acquire("lease-2", offer, "token-2")


def test_a_type_that_does_not_exist_says_what_was_meant(aws: Aws) -> None:
    with pytest.raises(NotOffered) as told:
        aws.provider([site(machine_types=("c7i.lrge",))]).offers()
    assert "did you mean c7i.large" in told.value.remedy


def test_a_region_that_does_not_exist_says_what_was_meant(aws: Aws) -> None:
    with pytest.raises(NotOffered) as told:
        aws.provider([site(region="us-easst-1", zone="")]).offers()
    assert "did you mean us-east-1" in told.value.remedy


def test_a_site_or_a_contract_of_others_is_none_of_ours(aws: Aws) -> None:
    provider = aws.provider()
    offer = provider.offers()[0]
    with pytest.raises(NotOffered):
        provider.acquire("lease-1", replace(offer, site="elsewhere"), "token-1")
    with pytest.raises(NotOffered):
        provider.acquire("lease-1", replace(offer, contract="unheard of"), "token-1")


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        spec = ProviderSpec(PROVIDER, "aws", endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        provider = AwsProvider(spec, [site()], [], FLEET, user_data, TestClock(), IMPATIENT)
        with pytest.raises(Unreachable):
            provider.machines()


def test_there_are_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    clients = Clients("cloud", "", "", TestClock(), IMPATIENT)
    with pytest.raises(NotAllowed) as told:  # before anything is sent
        clients.call(REGION, "describe_instances")
    assert "aws configure" in told.value.remedy
    with pytest.raises(NotAllowed) as told:
        Clients("cloud", "nobody", "", TestClock(), IMPATIENT).call(REGION, "describe_instances")
    assert "nobody" in told.value.why


def test_a_fake_asks_for_no_profile(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "one that nobody has")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREALREALREAL")
    clients = Clients("cloud", "", aws.server.url, TestClock(), IMPATIENT)
    clients.call(REGION, "describe_instances")
    signed_by = clients._client("ec2", REGION)._request_signer._credentials.access_key
    assert signed_by == "fake", "real credentials never go to a fake"


@pytest.mark.parametrize(
    "endpoint", ["http://172.31.4.5:5000", "https://ec2.example.com", "ftp://127.0.0.1", "x"]
)
def test_an_endpoint_is_an_address_of_this_machine(endpoint: str) -> None:
    with pytest.raises(UsageError):
        Clients("cloud", "", endpoint, TestClock(), Patience())


def test_no_secret_in_what_is_told(aws: Aws) -> None:
    told = refused(
        aws, code="AuthFailure", status=401, message="AKIAABCDEFGHIJKLMNOP is unknown, arn:aws:iam::1:x"
    )
    assert "AKIA" not in str(told) and "arn:" not in str(told)
    assert told.__cause__ is None and told.__suppress_context__
