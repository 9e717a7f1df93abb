"""TLS at both of the gateway's sides: towards addresses outside, and for its clients."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from pathlib import Path

from caudal.domain.errors import UsageError

log = logging.getLogger("caudal.gateway")

RENEWAL_S = 30.0


@functools.cache
def client_context(ca_file: str = "") -> ssl.SSLContext:
    """A context that trusts the system's certificates, or those of `ca_file` instead. Raises OSError (ssl's errors
    are such) where the file cannot be used; then it is read again the next time."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class Door:
    """The certificate that clients are shown. One that is renewed on disk is taken up by itself, for new connections; a
    renewed one that cannot be used leaves the old one in place."""

    def __init__(self, certificate: str, key: str) -> None:
        """Raises UsageError where the files cannot be used."""
        self._certificate, self._key = certificate, key
        self.context = self._made()
        self._as_of = self._written()

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # a damaged file too: ssl.SSLError is an OSError
            raise UsageError(
                "the gateway's certificate cannot be used",
                where=f"{self._certificate}, {self._key}",
                why=str(error),
                remedy="give a PEM certificate (with its chain) and its key, not encrypted, that fit together",
            ) from None

    def _written(self) -> tuple[float, ...]:
        return tuple(Path(file).stat().st_mtime for file in (self._certificate, self._key))

    def look(self) -> None:
        """Take up what was renewed."""
        try:
            written = self._written()
            if written == self._as_of:
                return
            self._made()  # on trial: loading half of a pair would break the context in use
            self._load(self.context)
        except (UsageError, OSError) as error:
            log.warning("the renewed certificate is not taken up: %s", error)
            return
        self._as_of = written
        log.info("the renewed certificate %s is in use", self._certificate)

    async def watch(self) -> None:
        """Look for renewed files, for ever."""
        while True:
            await asyncio.sleep(RENEWAL_S)
            self.look()


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask the terminal
