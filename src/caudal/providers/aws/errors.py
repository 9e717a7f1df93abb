"""What AWS says went wrong, as our own errors.

The code decides, not the HTTP status: EC2 says that it has no capacity with a 500. What is shown of AWS's message
never holds a credential: the encoded authorisation message is left out, and so are access keys and ARNs.
"""

from __future__ import annotations

import re
from typing import Any

from caudal.domain.errors import (
    CaudalError,
    Failed,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
)

NO_CAPACITY = {
    "InsufficientInstanceCapacity": "",
    "InsufficientHostCapacity": "",
    "InsufficientReservedInstanceCapacity": "",
    "InsufficientCapacity": "",
    "InsufficientFreeAddressesInSubnet": "give the site a larger subnet in `network`",
    "ReservationCapacityExceeded": "the reservation is used up, or is for another zone, platform or tenancy",
    "SpotMaxPriceTooLow": "",
    "IdempotentInstanceTerminated": "",
}
"""Codes, and what to do where there is something."""

QUOTA = {
    "VcpuLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "InstanceLimitExceeded",
    "NetworkInterfaceLimitExceeded",
    "VolumeLimitExceeded",
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException"}
SKEWED = {"RequestExpired", "SignatureDoesNotMatch"}
DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
UNKNOWN_CALLER = {
    "AuthFailure",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "MissingAuthenticationToken",
}
ACCOUNT = {"OptInRequired", "PendingVerification", "Blocked", "AccountDisabled"}
BUSY = {
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "RequestThrottled",
    "InternalError",
    "InternalFailure",
    "ServiceUnavailable",
    "Unavailable",
    "RequestTimeout",
}
NOT_OFFERED = re.compile(
    r"InvalidAMIID\..*|InvalidParameterValue|InvalidParameterCombination|InvalidInstanceType|Unsupported|InvalidSubnet.*"
    r"|InvalidGroup.*|InvalidSecurityGroupID.*|InvalidCapacityReservation.*|InvalidAvailabilityZone|InvalidZone.*"
    r"|InvalidPlacementGroup.*|CapacityBlock.*|InvalidCapacityBlock.*"
)
REMEDIES = (
    ("InvalidAMIID", "the image is gone or is another region's: put an id that exists there into `image`"),
    ("InvalidSubnet", "put a subnet of the site's zone into `network`"),
    ("InvalidGroup", "put a security group of the subnet's VPC into `network`"),
    ("InvalidSecurityGroupID", "put a security group of the subnet's VPC into `network`"),
    ("InvalidCapacityReservation", "put the id of an active reservation into the contract's `reference`"),
    ("Unsupported", "the zone does not have this type: choose another zone or machine type"),
)
NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "NoAuthTokenError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "LoginRefreshRequired",
    "ConfigParseError",
}
_ACTION = re.compile(r"perform:? ([a-z0-9-]+:[A-Za-z]+)")
_HIDE = re.compile(r"arn:\S+|\b(AKIA|ASIA)[A-Z0-9]{8,}\b|Encoded authorization failure message:.*", re.DOTALL)
LOGIN = "`aws sts get-caller-identity` with the same profile says who is asked for; `aws configure` or `aws sso login`"


class TokenSpent(Failed):
    """The token was used before, for other parameters: never leaves this package."""


def translate(error: Exception, where: str, operation: str) -> CaudalError:
    """The domain error for what boto3 raised at `operation` (`RunInstances`). Programming errors are raised on."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return _of_answer(response, where, operation)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & NO_CREDENTIALS:
        return NotAllowed(
            "there are no credentials for AWS", where=where, why=_shown(str(error)), remedy=LOGIN
        )
    if "ParamValidationError" in kinds:
        return NotOffered(f"{operation} cannot be asked like this", where=where, why=_shown(str(error)))
    if "BotoCoreError" in kinds or isinstance(error, OSError):
        return Unreachable(f"no answer to {operation}", where=where, why=_shown(str(error)))
    raise error


def _of_answer(response: dict[str, Any], where: str, operation: str) -> CaudalError:
    said = response.get("Error", {})
    code, message = str(said.get("Code", "")), _shown(str(said.get("Message", "")))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    why = f"{code}: {message}" if message else code
    if code == "IdempotentParameterMismatch":
        return TokenSpent("its token was used before, with other parameters", where=where, why=why)
    if code in QUOTA:
        remedy = "ask AWS to raise the quota (Service Quotas, Amazon EC2), or lower what is wanted"
        return QuotaExceeded(
            f"{operation}: the account's quota is used up", where=where, why=why, remedy=remedy
        )
    if code in NO_CAPACITY:
        return NoCapacity("AWS has no such machine free now", where=where, why=why, remedy=NO_CAPACITY[code])
    refused = _refused(code, str(said.get("Message", "")), why, where, operation)
    if refused is not None:
        return refused
    if code in BUSY or status >= 500 or status == 429:
        return Unreachable(f"{operation} was not answered", where=where, why=why or f"HTTP {status}")
    if NOT_OFFERED.fullmatch(code):
        remedy = next((text for start, text in REMEDIES if code.startswith(start)), "")
        return NotOffered(
            f"{operation}: AWS does not have what was asked for", where=where, why=why, remedy=remedy
        )
    return Failed(f"{operation} failed", where=where, why=why or f"HTTP {status}")


def _refused(code: str, message: str, why: str, where: str, operation: str) -> NotAllowed | None:
    """What has to do with who asks; None where it has not."""
    if code in EXPIRED:
        remedy = f"the session is over: log in again. {LOGIN}"
        return NotAllowed("the credentials for AWS have expired", where=where, why=code, remedy=remedy)
    if code in SKEWED:
        remedy = "set this machine's clock (NTP); if it is right, the secret key is wrong"
        return NotAllowed("AWS does not accept the signature", where=where, why=why, remedy=remedy)
    if code in DENIED:
        found = _ACTION.search(message)
        action = found[1] if found else f"ec2:{operation}"
        remedy = f"allow the IAM action {action} (docs/howto/aws.md has the whole policy)"
        return NotAllowed(f"the IAM action {action} is not allowed", where=where, why=code, remedy=remedy)
    if code in UNKNOWN_CALLER:
        return NotAllowed("AWS does not know these credentials", where=where, why=why, remedy=LOGIN)
    if code in ACCOUNT:
        remedy = "the account, or this region in it, has to be enabled first"
        return NotAllowed("AWS does not serve this account here", where=where, why=why, remedy=remedy)
    return None


def _shown(text: str) -> str:
    return _HIDE.sub("…", " ".join(text.split()))[:500].strip()
