"""Where replicas listen. Knows no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica listens. `prefix` is put before every path. With `tls` its certificate is checked, against
    the system's authorities or those of `ca_file`; or, with a `site`, against the fleet's, and it has to be that
    site's."""

    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    ca_file: str = ""
    site: str = ""
    key: tuple[str, int, bool, str] = field(init=False, compare=False, repr=False)
    """What connections to it have in common."""
    starts: dict[str, bytes] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The first lines of requests there, by path."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.host, self.port, self.tls, self.ca_file))

    @property
    def standard_port(self) -> bool:
        """Whether the port goes without saying."""
        return self.port == (443 if self.tls else 80)


def parse_address(url: str, ca_file: str = "") -> Address:
    """`http[s]://host[:port][/prefix]` as an address. Raises ValueError for anything else."""
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise ValueError(f"not a plain http or https address: {url[:200]!r}")
    if any(ord(c) <= 32 or ord(c) > 126 for c in url):
        raise ValueError("an address has printable ASCII characters only")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return Address(parts.hostname, port, parts.path.rstrip("/"), tls, ca_file if tls else "")
