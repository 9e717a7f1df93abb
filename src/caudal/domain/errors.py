"""Everything that can go wrong for a user, as one tree.

Our own bugs are assertions. What the user or the world did wrong is one of these:

    CaudalError
    ├── UsageError            exit 2, HTTP 400   the request itself is wrong
    │   ├── SpecError                            a file that the user wrote, with its line
    │   └── DataError                            training data that is missing or not what it should be
    ├── Unauthorized          exit 1, HTTP 401
    ├── NotFound              exit 3, HTTP 404
    ├── Impossible            exit 4, HTTP 409   it cannot be done with this fleet
    │   ├── NoCapacity                           no offer can hold it now
    │   │   └── QuotaExceeded                    the account may not have more of it
    │   └── NotOffered                           a region, type, image or reservation that does not exist
    ├── Stale                 exit 5, HTTP 409   decided on a state that has changed since
    │   └── LostLeadership                       another control process leads now
    └── Failed                exit 1, HTTP 500   the world did not do what was asked
        ├── StateHeld                            another control process holds this state directory
        ├── ControlAway       HTTP 503           no control process answers
        ├── PortInUse
        ├── PullFailed                           a model could not be brought in
        ├── ModelInvalid                         a model directory that is incomplete or does not fit
        ├── StorageFailed                        a store did not keep what it was given (disk full, ...)
        │   └── AlreadyExists                    create-if-absent found something there
        ├── LedgerBroken                         the record of a run does not add up
        ├── NotAllowed                           a provider does not let us, and names the permission
        └── Unreachable                          a provider, driver or site does not answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class CaudalError(Exception):
    """What happened, where, why, and what to do next.

    `code` is stable: scripts and tests match on it. `exit_code` is the process's, `http_status` the API's.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            parts.append(f"Why: {self.why}")
        if self.remedy:
            parts.append(f"Do: {self.remedy}")
        return "\n".join(parts)

    def one_line(self) -> str:
        """The same on one line, for logs and events."""
        return " | ".join(str(self).splitlines())

    def as_dict(self) -> dict[str, str]:
        """The error as the API and `--json` show it."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "remedy": self.remedy,
        }


class UsageError(CaudalError):
    """The request itself is wrong; nothing was changed."""

    code = "usage"
    exit_code = 2
    http_status = 400


class SpecError(UsageError):
    """A file that the user wrote is wrong; `where` is `file:line`."""

    code = "spec"


class DataError(UsageError):
    """Training data is missing, empty, or not what it should be."""

    code = "data"


class Unauthorized(CaudalError):
    """The token is missing or wrong."""

    code = "unauthorized"
    http_status = 401


class NotFound(CaudalError):
    """Nothing of that name exists."""

    code = "not_found"
    exit_code = 3
    http_status = 404


class Impossible(CaudalError):
    """It cannot be done with this fleet."""

    code = "impossible"
    exit_code = 4
    http_status = 409


class NoCapacity(Impossible):
    """No offer can hold it now."""

    code = "no_capacity"


class QuotaExceeded(NoCapacity):
    """The account may not have more of it: asking again changes nothing until somebody raises the quota."""

    code = "quota_exceeded"


class NotOffered(Impossible):
    """A region, machine type, image or reservation that the provider does not know."""

    code = "not_offered"


class Stale(CaudalError):
    """Decided on a state that has changed since; nothing was changed, ask again."""

    code = "stale"
    exit_code = 5
    http_status = 409


class LostLeadership(Stale):
    """Another control process leads now."""

    code = "lost_leadership"


class Failed(CaudalError):
    """The world did not do what was asked of it."""

    code = "failed"


class StateHeld(Failed):
    """Another control process holds this state."""

    code = "state_held"


class ControlAway(Failed):
    """No control process answers."""

    code = "control_away"
    http_status = 503


class PortInUse(Failed):
    """Something else listens on the port."""

    code = "port_in_use"


class PullFailed(Failed):
    """A model could not be brought in."""

    code = "pull_failed"


class ModelInvalid(Failed):
    """A model's files are incomplete, unsafe, or do not fit its config."""

    code = "model_invalid"


class StorageFailed(Failed):
    """A store did not keep what it was given; what it held before is still valid."""

    code = "storage_failed"


class AlreadyExists(StorageFailed):
    """Create-if-absent found something there."""

    code = "already_exists"


class LedgerBroken(Failed):
    """The record of a run does not add up."""

    code = "ledger_broken"


class NotAllowed(Failed):
    """The provider knows who asks and does not let them; names the missing permission where it says it."""

    code = "not_allowed"


class Unreachable(Failed):
    """A provider, a driver or a site does not answer. Says nothing about what runs there."""

    code = "unreachable"


def from_dict(found: Mapping[str, object]) -> CaudalError:
    """The error that `as_dict` wrote; Failed where its code is none of ours."""
    by_code = {kind.code: kind for kind in _kinds(CaudalError)}
    kind = by_code.get(str(found.get("code")), Failed)
    texts = {key: str(found.get(key, "")) for key in ("where", "why", "remedy")}
    return kind(str(found.get("what", "")), **texts)


def _kinds(base: type[CaudalError]) -> Iterator[type[CaudalError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)
