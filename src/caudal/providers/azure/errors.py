"""What Azure's errors mean in Caudal's words.

ARM answers with a code and a sentence; the same codes come at once, in a long-running operation, and in the status of
a machine that could not be made. One table for all three. The codes are those of Microsoft's pages on deployment,
allocation and quota errors, from memory 2026-11: not tried on Azure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
)

from caudal.domain.errors import (
    CaudalError,
    Failed,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
)

NO_CAPACITY = frozenset(
    {
        "AllocationFailed",
        "AllocationTimedOut",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "SkuNotAvailable",
        "ZonalAllocationFailed",
    }
)
QUOTA = frozenset({"QuotaExceeded", "ResourceQuotaExceeded", "SpotQuotaExceeded"})
NOT_ALLOWED = frozenset(
    {
        "AuthorizationFailed",
        "AuthenticationFailed",
        "ExpiredAuthenticationToken",
        "InvalidAuthenticationToken",
        "InvalidAuthenticationTokenTenant",
        "LinkedAuthorizationFailed",
        "RequestDisallowedByPolicy",
    }
)
NOT_OFFERED = frozenset(
    {
        "GalleryImageNotFound",
        "ImageNotFound",
        "InvalidResourceReference",
        "InvalidSubscriptionId",
        "LinkedInvalidPropertyId",
        "LocationNotAvailableForResourceGroup",
        "LocationNotAvailableForResourceType",
        "LocationNotFound",
        "NoRegisteredProviderFound",
        "PlatformImageNotFound",
        "ResourceGroupNotFound",
        "ResourceNotFound",
        "SubscriptionNotFound",
    }
)
LATER = frozenset(
    {"AnotherOperationInProgress", "NicReservedForAnotherVm", "OperationPreempted", "RetryableError"}
)
"""Azure is busy with the same thing: the next look tries again."""

_ACTION = re.compile(r"not have (?:permission|authorization) to perform (?:the )?action(?:\(s\))? '([^']+)'")
_VALUE = re.compile(r"(?:value|location) '?([\w.:-]+)'?")
_LISTED = re.compile(
    r"(?:valid sizes in the current region are|available regions[^']*is|regions are):?\s*'?([^'.]+)"
)


def from_azure(error: AzureError, where: str, known: Iterable[str] = ()) -> CaudalError:
    """The domain error for what the SDK raised. `known` are names for did-you-mean where the sentence lists none."""
    if isinstance(error, HttpResponseError) and not isinstance(error, IncompleteReadError):
        code, text = said(error)
        if error.status_code or code:
            return from_code(code, text, where, status=error.status_code or 0, known=known)
    if isinstance(error, ClientAuthenticationError):  # of azure.identity: CredentialUnavailableError is one
        return NotAllowed(
            "Azure does not know who asks",
            where=where,
            why=_first_line(str(error)),
            remedy="`az login`, or a managed identity, or AZURE_CLIENT_ID and its companions: azure-identity's "
            "own chain is asked, nothing else",
        )
    return Unreachable("Azure does not answer", where=where, why=_first_line(str(error)))


def from_code(code: str, text: str, where: str, *, status: int = 0, known: Iterable[str] = ()) -> CaudalError:
    """The domain error for ARM's code and sentence; `status` is HTTP's, 0 where it came without."""
    why = f"{code or status}: {_first_line(text)}"
    if code in QUOTA or (code == "OperationNotAllowed" and "quota" in text.lower()):
        remedy = "ask for more cores of this family (Azure portal: Quotas), or use another size or region"
        return QuotaExceeded("the subscription's quota is used up", where=where, why=why, remedy=remedy)
    if code in NO_CAPACITY:
        return NoCapacity("Azure has no machine of this size there now", where=where, why=why)
    if code == "MissingSubscriptionRegistration":
        remedy = (
            "once, by an owner: `az provider register --namespace Microsoft.Compute` (and Microsoft.Network)"
        )
        return NotAllowed(
            "the subscription has not registered the service", where=where, why=why, remedy=remedy
        )
    if code in NOT_ALLOWED or status in (401, 403):
        return _not_allowed(code, text, where, why)
    if code in NOT_OFFERED or (code == "InvalidParameter" and _about_size(text)):
        remedy = did_you_mean(text, known)
        return NotOffered("Azure does not know what was asked for", where=where, why=why, remedy=remedy)
    if status in (408, 429) or status >= 500 or code in LATER:
        return Unreachable("Azure cannot be asked now", where=where, why=why)
    return Failed("Azure did not do it", where=where, why=why)


def said(error: HttpResponseError) -> tuple[str, str]:
    """ARM's code and sentence; of nested errors the inner one, which says what it was about."""
    body = error.error
    if body is None:
        return "", error.message or ""
    for detail in body.details or ():
        if detail.code in NO_CAPACITY | QUOTA | NOT_OFFERED | NOT_ALLOWED:
            return str(detail.code), str(detail.message or body.message or "")
    return str(body.code or ""), str(body.message or "")


def retry_after_s(error: AzureError) -> float | None:
    """How long Azure wants to be left alone; None where it does not say."""
    response = getattr(error, "response", None)
    if response is None or getattr(error, "status_code", 0) not in (429, 503):
        return None
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """A remedy from the names that Azure's sentence lists, or from `known`; empty where none is near."""
    asked = _VALUE.search(text)
    listed = _LISTED.search(text)
    names = [n.strip() for n in listed.group(1).split(",")] if listed else []
    names = [n for n in names if n] or list(known)
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(asked.group(1).lower(), lower, n=1, cutoff=0.6) if asked else []
    return f"did you mean {lower[near[0]]!r}?" if near else ""


def _not_allowed(code: str, text: str, where: str, why: str) -> NotAllowed:
    action = _ACTION.search(text)
    if action:
        what = f"the permission {action.group(1)} is missing"
        return NotAllowed(
            what, where=where, why=why, remedy=f"give the identity a role with {action.group(1)}"
        )
    if code == "RequestDisallowedByPolicy":
        return NotAllowed("a policy of the subscription forbids it", where=where, why=why)
    return NotAllowed(
        "Azure does not let us", where=where, why=why, remedy="`az login` again, or check the role"
    )


def _about_size(text: str) -> bool:
    return "vmsize" in text.lower().replace(" ", "") or "imagereference" in text.lower()


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:600] if text.strip() else "it gave no reason"
