"""Both ends of a run's connections under TLS 1.3: each side shows its site's certificate.

The certificates of a folder are named as in `caudal.store.authority`. Without a folder connections are plain,
which is allowed on loopback only.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from caudal.domain.errors import UsageError
from caudal.store import site_tls
from caudal.train.config import GangConfig


def server_context(config: GangConfig, host: str) -> ssl.SSLContext | None:
    """What a coordinator listens with; None: plainly. Raises UsageError where that is not allowed."""
    if not config.certificates:
        if not site_tls.is_loopback(host):
            raise UsageError(
                f"a coordinator would listen on {host} without encryption",
                why="connections between machines are encrypted, always",
                remedy="`caudal certificates FOLDER SITE...` makes certificates; name the folder as `certificates`",
            )
        return None
    return site_tls.server_context(Path(config.certificates), config.site)


def client_context(config: GangConfig) -> ssl.SSLContext | None:
    """What a worker connects with; None: plainly. Raises UsageError."""
    if not config.certificates:
        return None
    return site_tls.client_context(Path(config.certificates), config.site)


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
