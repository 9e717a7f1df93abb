"""Both ends of a run's connections under TLS 1.3: each side shows its site's certificate.

The certificates of a folder are named as in `caudal.store.authority`. Without a folder connections are plain,
which is allowed on loopback only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path

from caudal.domain.errors import UsageError
from caudal.store.authority import AUTHORITY, site_files
from caudal.train.config import GangConfig


def server_context(config: GangConfig, host: str) -> ssl.SSLContext | None:
    """What a coordinator listens with; None: plainly. Raises UsageError where that is not allowed."""
    if not config.certificates:
        if not _loopback(host):
            raise UsageError(
                f"a coordinator would listen on {host} without encryption",
                why="connections between machines are encrypted, always",
                remedy="`caudal certificates FOLDER SITE...` makes certificates; name the folder as `certificates`",
            )
        return None
    return _context(config, ssl.PROTOCOL_TLS_SERVER)


def client_context(config: GangConfig) -> ssl.SSLContext | None:
    """What a worker connects with; None: plainly. Raises UsageError."""
    return _context(config, ssl.PROTOCOL_TLS_CLIENT) if config.certificates else None


def speaks_for(writer: asyncio.StreamWriter, site: str) -> bool:
    """Whether the other side's certificate is that of this site; True where the connection is plain."""
    if writer.get_extra_info("ssl_object") is None:
        return True
    shown = writer.get_extra_info("peercert") or {}
    return ("DNS", site) in shown.get("subjectAltName", ())


def not_ours(error: Exception) -> str:
    """Why a connection will never be one, where certificates are the reason; else nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return (error.reason or "").lower().replace("_", " ")
    return ""


def _context(config: GangConfig, kind: int) -> ssl.SSLContext:
    folder = Path(config.certificates)
    certificate, key = site_files(folder, config.site)
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(folder / AUTHORITY)
        context.load_cert_chain(certificate, key)
    except OSError as error:  # a damaged file too: ssl.SSLError is one
        raise UsageError(
            f"the certificates of site {config.site} cannot be used",
            where=str(folder),
            why=str(error),
            remedy=f"{AUTHORITY}, {certificate.name} and {key.name} have to lie there and fit together",
        ) from None
    return context


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
