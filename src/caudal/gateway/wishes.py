"""How urgent a request says it is: `x-caudal-class`, `x-caudal-deadline-ms`, and OpenAI's flex tier."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from caudal.domain.key import Slo
from caudal.gateway.openai_errors import ApiError

CLASS_HEADER = b"x-caudal-class"
DEADLINE_HEADER = b"x-caudal-deadline-ms"
MAX_DEADLINE_MS = 7 * 24 * 3600 * 1000

_CLASSES = {slo.value.encode(): slo for slo in Slo}


class _Tier(msgspec.Struct):
    service_tier: str | None = None


_TIER = msgspec.json.Decoder(_Tier)


def wishes(headers: Mapping[bytes, bytes], body: bytes) -> tuple[Slo | None, float]:
    """The class that a request names (None: none) and how many seconds its answer may take (0: it does not
    say). Raises ApiError, 400. The header goes before the body's tier."""
    slo, deadline_s = head_wishes(headers)
    if slo is None and b'"service_tier"' in body and _flex(body):
        slo = Slo.BATCH
    return slo, deadline_s


def head_wishes(headers: Mapping[bytes, bytes]) -> tuple[Slo | None, float]:
    """The same by the head alone."""
    name = headers.get(CLASS_HEADER)
    slo: Slo | None = None
    if name is not None:
        slo = _CLASSES.get(name.strip().lower())
        if slo is None:
            raise _invalid("x-caudal-class", "interactive, standard or batch")
    deadline = headers.get(DEADLINE_HEADER)
    if deadline is None:
        return slo, 0.0
    digits = deadline.strip()
    if not digits.isdigit() or len(digits) > 12 or not 0 < int(digits) <= MAX_DEADLINE_MS:
        raise _invalid("x-caudal-deadline-ms", f"a whole number of milliseconds from 1 to {MAX_DEADLINE_MS}")
    return slo, int(digits) / 1000.0


def names_its_bound(body: bytes) -> bool:
    """Whether a body says how long the reply may get. Within a string of it these names have a backslash before
    their second quote."""
    return b'"max_tokens"' in body or b'"max_completion_tokens"' in body or b'"max_output_tokens"' in body


def _flex(body: bytes) -> bool:
    try:
        return _TIER.decode(body).service_tier == "flex"
    except msgspec.DecodeError:
        return False  # whoever checks the body says so


def _invalid(header: str, what: str) -> ApiError:
    return ApiError(
        400, "invalid_value", f"Invalid value for the header '{header}': it is {what}.", param=header
    )
