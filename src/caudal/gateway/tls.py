"""TLS towards addresses outside: certificates and names are always checked."""

from __future__ import annotations

import functools
import ssl


@functools.cache
def client_context(ca_file: str = "") -> ssl.SSLContext:
    """A context that trusts the system's certificates, or those of `ca_file` instead. Raises OSError (ssl's errors
    are such) where the file cannot be used; then it is read again the next time."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
