"""What is said between sites is under TLS 1.3, and both ends show their site's certificate.

A folder of certificates is as caudal.store.authority makes it; each end has the authority's, its own and its key. Here
they are only used, so nothing that can sign is loaded.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from caudal.domain.errors import UsageError

AUTHORITY = "ca.pem"


def site_files(folder: Path, site: str) -> tuple[Path, Path]:
    """Where a site's certificate and key lie."""
    return folder / f"{site}.pem", folder / f"{site}.key"


def server_context(folder: Path, site: str) -> ssl.SSLContext:
    """What a site listens with: who connects has to show a certificate of the fleet's. Raises UsageError."""
    return _context(folder, site, ssl.PROTOCOL_TLS_SERVER)


def client_context(folder: Path, site: str) -> ssl.SSLContext:
    """What a site connects with; `server_hostname` is the site that has to answer. Raises UsageError."""
    return _context(folder, site, ssl.PROTOCOL_TLS_CLIENT)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(folder: Path, site: str, kind: int) -> ssl.SSLContext:
    certificate, key = site_files(folder, site)
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(folder / AUTHORITY)
        context.load_cert_chain(certificate, key)
    except OSError as error:  # a damaged file too: ssl.SSLError is one
        raise UsageError(
            f"the certificates of site {site} cannot be used",
            where=str(folder),
            why=str(error),
            remedy=f"{AUTHORITY}, {certificate.name} and {key.name} have to lie there and fit together",
        ) from None
    return context
