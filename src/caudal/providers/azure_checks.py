"""What `caudal doctor` asks of Azure: a token, the clock, what we may read, how much we may have. Changes nothing.

Only against a credential and a compute client that are given. Azure has no dry run: whether virtual machines may be made
is known only when one is; what is checked here is that they may be listed, and that the quota has room.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.mgmt.compute import ComputeManagementClient

from caudal.domain.fleet import ProviderSpec
from caudal.ports import Check

SCOPE = "https://management.azure.com/.default"
CALL_S = 5
SKEW_S = 60.0
NEARLY = 0.9
"""A quota of which that share is used is worth a word."""


@dataclass(frozen=True, slots=True)
class AzureChecks:
    """Implements `ports.Checkup` for one location. `credential` has `get_token`, `compute` is a ComputeManagementClient;
    `families` are those whose quota counts (empty: those in use); `now` is this machine's clock."""

    location: str
    credential: Any
    compute: Any
    resource_group: str
    now: Callable[[], float]
    families: tuple[str, ...] = ()

    def checks(self) -> Sequence[Check]:
        """See `ports.Checkup`. Without a token nothing more is asked."""
        token = self._token()
        if token.state == "fail":
            return [token]
        return [token, *self._listing(), *self._usage()]

    def _token(self) -> Check:
        name = "azure credentials"
        try:
            token = self.credential.get_token(SCOPE)
        except ClientAuthenticationError as error:
            remedy = "run `az login`, or give this machine a managed identity or AZURE_CLIENT_ID and the like"
            return Check(name, "fail", _short(error), remedy)
        except AzureError as error:
            return Check("azure endpoint", "fail", _short(error), "see this machine's network and proxy")
        return Check(name, "ok", f"a token for {(token.expires_on - self.now()) / 60:.0f} minutes more")

    def _listing(self) -> list[Check]:
        name, clock = f"azure {self.location} virtual machines", f"azure {self.location} clock"
        dates: list[str] = []

        def note(answer: Any) -> None:
            dates.append(answer.http_response.headers.get("Date", ""))

        try:
            count = len(list(self.compute.virtual_machines.list(self.resource_group, raw_response_hook=note)))
        except HttpResponseError as error:
            return [_refused(name, error)]
        except AzureError as error:
            return [Check(name, "fail", _short(error), "see this machine's network and proxy")]
        found = [Check(name, "ok", f"may be listed: {count} in {self.resource_group}")]
        try:
            skew_s = self.now() - parsedate_to_datetime(dates[0]).timestamp()
        except (IndexError, TypeError, ValueError):
            return found
        text = f"this machine is {skew_s:+.0f} s off Azure's"
        well = abs(skew_s) <= SKEW_S
        return [
            *found,
            Check(clock, "ok" if well else "warn", text, "" if well else "start a time service (chrony)"),
        ]

    def _usage(self) -> list[Check]:
        name = f"azure {self.location} quota"
        try:
            rows = list(self.compute.usage.list(self.location))
        except HttpResponseError as error:
            return [_refused(name, error)]
        except AzureError as error:
            return [Check(name, "warn", _short(error), "ask again")]
        found = []
        for row in rows:
            wanted = row.name.value in self.families if self.families else row.current_value > 0
            if not wanted:
                continue
            text = f"{row.name.localized_value}: {row.current_value} of {row.limit}"
            full = row.current_value >= row.limit * NEARLY
            remedy = (
                f"ask for more of {row.name.value} in {self.location} (Quotas, in the portal)" if full else ""
            )
            found.append(Check(f"{name} {row.name.value}", "warn" if full else "ok", text, remedy))
        return found


def _refused(name: str, error: HttpResponseError) -> Check:
    """A refusal, with the action that it names: `does not have authorization to perform action 'X' over scope ...`."""
    found = re.search(r"perform action '([^']+)'", str(error))
    if found:
        return Check(name, "fail", f"{found[1]} is not allowed", f"give the identity a role with {found[1]}")
    if error.status_code == 404:
        return Check(
            name, "fail", "the resource group or location does not exist", "correct it in the fleet file"
        )
    return Check(name, "fail", f"refused: {error.status_code} {_short(error)}", "see Azure's status page")


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def checks_of(spec: ProviderSpec, region: str) -> list[Check]:
    """All checks of a provider in a region, with the SDK's own chain of credentials. Raises nothing."""
    credential = DefaultAzureCredential()
    compute = ComputeManagementClient(
        credential, spec.account, connection_timeout=CALL_S, read_timeout=CALL_S, retry_total=1
    )
    return list(AzureChecks(region, credential, compute, spec.resource_group, time.time).checks())
