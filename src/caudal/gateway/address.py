"""Where replicas listen. Knows no sockets."""

from __future__ import annotations

from dataclasses import dataclass
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

    @property
    def standard_port(self) -> bool:
        """Whether the port goes without saying."""
        return self.port == (443 if self.tls else 80)

    @property
    def key(self) -> tuple[str, int, bool, str]:
        """What connections to it have in common."""
        return (self.host, self.port, self.tls, self.ca_file)


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
