"""What `caudal doctor` asks of AWS: who we are, the clock, what we may do, how much we may have. Changes nothing.

`AwsChecks` asks clients that are given, so that it can be tried without AWS. What would change something is asked with
EC2's DryRun, which answers `DryRunOperation` where it would be allowed (EC2 API reference, RunInstances, read 2026-11).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from caudal.domain.fleet import ProviderSpec, SiteSpec
from caudal.ports import Check
from caudal.providers.aws.checkup import permissions
from caudal.providers.aws.clients import Clients, Patience

CALL_S = 5
SKEW_S = 60.0
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
INVALID = frozenset(
    {"InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch", "UnrecognizedClientException"}
)
DENIED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})

QUOTAS = {
    "L-1216C47A": "on-demand standard (A C D H I M R T Z), vCPU",
    "L-417A185B": "on-demand P, vCPU",
    "L-DB2E81BA": "on-demand G and VT, vCPU",
    "L-2C3B7624": "on-demand Trn, vCPU",
    "L-1945791B": "on-demand Inf, vCPU",
    "L-7212CCBC": "spot P4, P3 and P2, vCPU",
}
"""Of service `ec2` (Service Quotas documentation and console, read 2026-11)."""


@dataclass(frozen=True, slots=True)
class AwsChecks:
    """Implements `ports.Checkup` for one region. `ec2`, `sts`, `quotas` are boto3 clients; `image` and `machine_type` are
    what a RunInstances would name; `now` is this machine's clock."""

    region: str
    sts: Any
    ec2: Any
    quotas: Any
    image: str
    machine_type: str
    now: Callable[[], float]

    def checks(self) -> Sequence[Check]:
        """See `ports.Checkup`. Without valid credentials nothing more is asked."""
        who, answer = self._identity()
        if answer is None:
            return [who]
        return [who, self._clock(answer), *self._permissions(), *self._quotas()]

    def _identity(self) -> tuple[Check, Mapping[str, Any] | None]:
        name = f"aws {self.region} credentials"
        try:
            answer = self.sts.get_caller_identity()
        except NoCredentialsError:
            remedy = "run `aws sso login` or `aws configure`, or name a profile in the provider's `account`"
            return Check(name, "fail", "there are none", remedy), None
        except ClientError as error:
            code = _code(error)
            if code in EXPIRED:
                remedy = "log in again (aws sso login), or renew them"
                return Check(name, "fail", "they have expired", remedy), None
            remedy = (
                "see whose key this is, and whether it is still active"
                if code in INVALID
                else "see the AWS status page"
            )
            return Check(name, "fail", f"refused: {code}", remedy), None
        except BotoCoreError as error:
            remedy = "see this machine's network, proxy and the provider's `endpoint`"
            return Check(f"aws {self.region} endpoint", "fail", str(error)[:200], remedy), None
        return Check(name, "ok", f"account {answer['Account']}, {answer['Arn']}"), answer

    def _clock(self, answer: Mapping[str, Any]) -> Check:
        name = f"aws {self.region} clock"
        said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
        try:
            skew_s = self.now() - parsedate_to_datetime(said).timestamp()
        except (TypeError, ValueError):
            return Check(name, "ok", "AWS did not say its time")
        text = f"this machine is {skew_s:+.0f} s off AWS's"
        if abs(skew_s) <= SKEW_S:
            return Check(name, "ok", text)
        return Check(name, "warn", text, "start a time service (chrony): at 300 s AWS refuses every call")

    def _permissions(self) -> list[Check]:
        run = {"ImageId": self.image, "InstanceType": self.machine_type, "MinCount": 1, "MaxCount": 1}
        tags = {"Resources": [self.image], "Tags": [{"Key": "caudal", "Value": ""}]}
        tried: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
            ("ec2:DescribeInstances", self.ec2.describe_instances, {"DryRun": True}),
            ("ec2:RunInstances", self.ec2.run_instances, {**run, "DryRun": True}),
            ("ec2:CreateTags", self.ec2.create_tags, {**tags, "DryRun": True}),
        ]  # fmt: skip
        return [self._permission(action, call, given) for action, call, given in tried]

    def _permission(self, action: str, call: Callable[..., Any], given: Mapping[str, Any]) -> Check:
        name = f"aws {self.region} {action}"
        try:
            call(**given)
        except ClientError as error:
            code = _code(error)
            if code == "DryRunOperation":
                return Check(name, "ok", "allowed")
            if code in DENIED:
                missing = _named(str(error)) or action
                return Check(name, "fail", f"{missing} is not allowed", f"add {missing} to the role's policy")
            return Check(
                name, "warn", f"not known: {code}", "see whether the image and the type exist in the region"
            )
        except BotoCoreError as error:
            return Check(name, "warn", f"not known: {str(error)[:200]}", "ask again")
        return Check(name, "ok", "allowed")

    def _quotas(self) -> list[Check]:
        found: list[Check] = []
        for code, what in QUOTAS.items():
            name = f"aws {self.region} quota {code}"
            try:
                value = self.quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
            except ClientError as error:
                if _code(error) in DENIED:
                    remedy = "add servicequotas:GetServiceQuota to the role's policy"
                    return [*found, Check(name, "warn", "quotas may not be read", remedy)]
                found.append(
                    Check(name, "warn", f"{what}: not known ({_code(error)})", "look in Service Quotas")
                )
                continue
            except BotoCoreError as error:
                return [*found, Check(name, "warn", f"not known: {str(error)[:200]}", "ask again")]
            raise_it = (
                f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
            )
            remedy = f"where you want such machines: {raise_it} --desired-value N"
            found.append(
                Check(name, "ok" if value else "warn", f"{what}: {value:g}", "" if value else remedy)
            )
        return found


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _named(text: str) -> str:
    """The action that a refusal names: `is not authorized to perform: ec2:RunInstances on ...`."""
    found = re.search(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)", text)
    return found[1] if found else ""


def checks_of(spec: ProviderSpec, site: SiteSpec, fleet: str) -> list[Check]:
    """All checks of a provider in a site's region, with clients of our own. Raises nothing."""
    region = site.region
    try:
        session = boto3.Session(profile_name=spec.account or None, region_name=region)
        config = Config(connect_timeout=CALL_S, read_timeout=CALL_S, retries={"max_attempts": 1})
        sts, ec2, quotas = (
            session.client(name, config=config, endpoint_url=spec.endpoint or None)
            for name in ("sts", "ec2", "service-quotas")
        )
    except BotoCoreError as error:
        remedy = "correct `account` (a profile) and `region`"
        return [Check(f"aws {region}", "fail", str(error)[:200], remedy)]
    kind = site.machine_types[0] if site.machine_types else "m7i.xlarge"
    found = list(AwsChecks(region, sts, ec2, quotas, site.image, kind, time.time).checks())
    if found[0].state == "fail":
        return found
    clients = Clients(spec.name, spec.account, spec.endpoint, _Wall(), Patience())
    seen = {check.name for check in found}
    for probe in permissions(clients, fleet, site, kind):
        name = f"aws {region} {probe.action}"
        if name not in seen:
            state: Literal["ok", "warn", "fail"] = "ok" if probe.allowed else "warn"
            state = "fail" if probe.allowed is False else state
            found.append(Check(name, state, probe.why or "allowed", probe.remedy))
    return found


class _Wall:
    """Implements `ports.Clock` with the machine's own."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Return after that long."""
        time.sleep(seconds)
