"""What doctor says of clouds: AWS's own SDK against botocore's Stubber, Azure's errors over small stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from botocore.stub import Stubber

from caudal.ports import Check, Checkup
from caudal.providers.aws_checks import QUOTAS, AwsChecks
from caudal.providers.azure_checks import AzureChecks

NOW = 1_000_000_000.0
DATE = "Sun, 09 Sep 2001 01:46:40 GMT"  # the same moment
IDENTITY = {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:role/caudal", "UserId": "x"}


class Aws:
    """Three clients, each with its stubber, and the checks over them."""

    def __init__(self) -> None:
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
        clients = [boto3.client(name, **keys) for name in ("sts", "ec2", "service-quotas")]
        self.sts, self.ec2, self.quotas = (Stubber(client) for client in clients)
        for stub in (self.sts, self.ec2, self.quotas):
            stub.activate()
        self.checkup = AwsChecks("us-east-1", *clients, "ami-1", "p5.48xlarge", lambda: NOW)

    def identity(self, date: str = DATE) -> None:
        meta = {"HTTPHeaders": {"date": date}, "HTTPStatusCode": 200}
        self.sts.add_response("get_caller_identity", {**IDENTITY, "ResponseMetadata": meta})

    def permissions(self, run: str = "DryRunOperation", text: str = "") -> None:
        self.ec2.add_client_error("describe_instances", "DryRunOperation", http_status_code=412)
        self.ec2.add_client_error("run_instances", run, text)
        self.ec2.add_client_error("create_tags", "DryRunOperation", http_status_code=412)

    def allow_quotas(self, value: float) -> None:
        for _ in QUOTAS:
            self.quotas.add_response("get_service_quota", {"Quota": {"Value": value}})

    def said(self) -> dict[str, Check]:
        return {check.name.removeprefix("aws us-east-1 "): check for check in self.checkup.checks()}


@pytest.fixture
def aws() -> Iterator[Aws]:
    yield Aws()


def test_aws_all_is_well(aws: Aws) -> None:
    assert isinstance(aws.checkup, Checkup)
    aws.identity()
    aws.permissions()
    aws.allow_quotas(96.0)
    said = aws.said()
    assert {c.state for c in said.values()} == {"ok"}, said
    assert "123456789012" in said["credentials"].said and "ec2:RunInstances" in said
    assert said["quota L-417A185B"].said.endswith(": 96")


def test_aws_names_the_missing_action(aws: Aws) -> None:
    text = "User: arn:aws:iam::1:user/a is not authorized to perform: iam:PassRole on resource: x"
    aws.identity()
    aws.permissions("UnauthorizedOperation", text)
    aws.quotas.add_client_error("get_service_quota", "AccessDeniedException")
    said = aws.said()
    assert said["ec2:RunInstances"].state == "fail" and "iam:PassRole" in said["ec2:RunInstances"].remedy
    assert [c.state for n, c in said.items() if n.startswith("quota")] == ["warn"]


def test_aws_a_gone_image_is_no_missing_permission(aws: Aws) -> None:
    aws.identity()
    aws.permissions("InvalidAMIID.NotFound")
    aws.allow_quotas(0.0)
    said = aws.said()
    assert said["ec2:RunInstances"].state == "warn"
    assert (
        said["quota L-417A185B"].state == "warn"
        and "request-service-quota-increase" in said["quota L-417A185B"].remedy
    )


@pytest.mark.parametrize(("code", "word"), [("ExpiredToken", "expired"), ("InvalidClientTokenId", "refused")])
def test_aws_bad_credentials_end_the_questions(aws: Aws, code: str, word: str) -> None:
    aws.sts.add_client_error("get_caller_identity", code)
    said = aws.said()
    assert list(said) == ["credentials"]
    assert (
        said["credentials"].state == "fail"
        and word in said["credentials"].said
        and said["credentials"].remedy
    )


def test_aws_a_clock_that_is_off_warns(aws: Aws) -> None:
    aws.identity("Sun, 09 Sep 2001 01:44:40 GMT")
    aws.permissions()
    aws.allow_quotas(1.0)
    clock = aws.said()["clock"]
    assert clock.state == "warn" and "+120 s" in clock.said


def azure(**given: Any) -> AzureChecks:
    def listed(group: str, raw_response_hook: Any) -> list[str]:
        raw_response_hook(SimpleNamespace(http_response=SimpleNamespace(headers={"Date": DATE})))
        return ["one"]

    def used(location: str) -> list[Any]:
        names = [("standardNDSFamily", 95, 100), ("cores", 1, 100), ("other", 0, 100)]
        return [
            SimpleNamespace(name=SimpleNamespace(value=n, localized_value=n), current_value=c, limit=m)
            for n, c, m in names
        ]

    values = {
        "token": lambda scope: SimpleNamespace(expires_on=NOW + 600),
        "listed": listed,
        "used": used,
        **given,
    }
    compute = SimpleNamespace(
        virtual_machines=SimpleNamespace(list=values["listed"]), usage=SimpleNamespace(list=values["used"])
    )
    now = given.get("now", NOW)
    return AzureChecks("eastus", SimpleNamespace(get_token=values["token"]), compute, "group", lambda: now)


def fails(error: Exception) -> Any:
    def call(*given: Any, **more: Any) -> Any:
        raise error

    return call


def http_error(status: int, text: str) -> HttpResponseError:
    error = HttpResponseError(message=text)
    error.status_code = status
    return error


def test_azure_all_is_well_and_a_quota_that_is_nearly_full_warns() -> None:
    said = {c.name: c for c in azure().checks()}
    assert said["azure credentials"].said == "a token for 10 minutes more"
    assert said["azure eastus clock"].state == "ok"
    assert said["azure eastus quota cores"].state == "ok"
    assert said["azure eastus quota standardNDSFamily"].state == "warn"
    assert "azure eastus quota other" not in said
    assert {c.name: c for c in azure(now=NOW + 90).checks()}["azure eastus clock"].state == "warn"


def test_azure_without_a_token_nothing_is_asked() -> None:
    (said,) = azure(token=fails(ClientAuthenticationError("no credential"))).checks()
    assert said.state == "fail" and "az login" in said.remedy
    (away,) = azure(token=fails(ServiceRequestError("no route"))).checks()
    assert away.name == "azure endpoint"


def test_azure_names_the_missing_action() -> None:
    action = "Microsoft.Compute/virtualMachines/read"
    text = f"The client 'x' does not have authorization to perform action '{action}' over scope '/y'"
    said = azure(listed=fails(http_error(403, text)), used=fails(http_error(404, "no group"))).checks()
    assert said[1].state == "fail" and action in said[1].remedy
    assert said[2].said.endswith("does not exist")
