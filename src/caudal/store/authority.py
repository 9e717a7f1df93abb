"""A fleet's own certificate authority: one certificate per site, for both ends of a connection (TLS).

A folder holds `ca.pem`, and for each site SITE.pem and SITE.key. Where `ca.key` lies beside them the authority is
ours: what is missing or near its end is made. Without `ca.key` the certificates are the user's own, and are
only looked at. A site's certificate names the site as its DNS name.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from caudal.domain.errors import UsageError
from caudal.store.atomic import write_atomic
from caudal.store.site_tls import AUTHORITY, site_files

AUTHORITY_KEY = "ca.key"
AUTHORITY_DAYS, SITE_DAYS, RENEW_DAYS = 3650, 398, 30
SKEW = timedelta(days=1)
"""Certificates are valid from so long ago: a site's clock may be behind."""

MOST_CHARACTERS = 63
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")


def ensure_certificates(folder: Path, sites: Iterable[str]) -> None:
    """Have an authority, and a certificate for each site that is valid for a month and more.

    Raises UsageError where a user's own certificates lack a site's, or one cannot be used.
    """
    names = list(sites)
    for name in names:
        if not SITE_NAME.fullmatch(name) or len(name) > MOST_CHARACTERS:
            raise UsageError(
                f"{name!r} cannot stand in a certificate",
                remedy="name sites in lower-case letters, digits, - and _, with single dots, up to 63 characters",
            )
    if not (folder / AUTHORITY).exists():
        _make_authority(folder)
    authority, key = _read(folder / AUTHORITY), folder / AUTHORITY_KEY
    for name in names:
        path, _ = site_files(folder, name)
        if key.exists():
            if not path.exists() or _ends_soon(_read(path)) or _read(path).issuer != authority.subject:
                _make_site(folder, name, authority)
        else:
            _check(folder, name, authority)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError("a certificate cannot be read", where=str(path), why=str(error)) from None


def _ends_soon(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=RENEW_DAYS)


def _check(folder: Path, site: str, authority: x509.Certificate) -> None:
    """Whether the user's own certificate of a site can do what it has to. Raises UsageError."""
    path, key = site_files(folder, site)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if site not in names.get_values_for_type(x509.DNSName):
            raise ValueError(f"it does not name {site} as a DNS name")
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise ValueError(f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
        load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise UsageError(
            f"the certificate of site {site} cannot be used",
            where=str(path),
            why=str(error) or "it was not issued by ca.pem",
            remedy=f"put {site}.pem and {site}.key (not encrypted) there, issued by ca.pem for the DNS name {site}",
        ) from None
    except Exception as error:  # a signature that does not fit has its own type
        raise UsageError(
            f"the certificate of site {site} was not issued by ca.pem",
            where=str(path),
            why=type(error).__name__,
        ) from None


def _make_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"caudal fleet {x509.random_serial_number():x}"[:60])]
    )
    builder = _builder(name, name, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    _write(folder / AUTHORITY_KEY, _pem(key), 0o600)
    _write(folder / AUTHORITY, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644)


def trusting(folder: Path) -> ssl.SSLContext:
    """A client's context that trusts the folder's authority beside the system's. Raises UsageError where there is
    none."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(folder / AUTHORITY)
    except OSError as error:
        raise UsageError(
            "the certificate of the fleet's authority cannot be read",
            where=str(folder / AUTHORITY),
            why=str(error),
            remedy="copy it from the state directory of the control process, or name that one with --home",
        ) from None
    return context


def ensure_door(folder: Path, name: str, address: str) -> tuple[Path, Path]:
    """Have a certificate for a door that listens at an IP address, which stands in it beside the name; returns where it
    and its key lie. Call `ensure_certificates` first. Raises UsageError where the authority is not ours to sign with
    and there is none for that address."""
    path, key_path = site_files(folder, name)
    wanted = ipaddress.ip_address(address)
    if path.exists() and not _ends_soon(_read(path)):
        names = _read(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if wanted in names.get_values_for_type(x509.IPAddress):
            return path, key_path
    if not (folder / AUTHORITY_KEY).exists():
        raise UsageError(
            f"there is no certificate of {name} for {address}",
            where=str(path),
            remedy=f"issue one by your authority, with the IP address {address} among its alternative names",
        )
    _make_site(folder, name, _read(folder / AUTHORITY), (x509.IPAddress(wanted),))
    return path, key_path


def _make_site(
    folder: Path, site: str, authority: x509.Certificate, more: tuple[x509.GeneralName, ...] = ()
) -> None:
    issuer = _authority_key(folder / AUTHORITY_KEY)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    builder = _builder(name, authority.subject, key, SITE_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(site), *more]), critical=False)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())  # type: ignore[arg-type]
    certificate = builder.add_extension(above, critical=False).sign(issuer, hashes.SHA256())
    path, key_path = site_files(folder, site)
    _write(key_path, _pem(key), 0o600)
    _write(path, certificate.public_bytes(Encoding.PEM), 0o644)


def _authority_key(path: Path) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ValueError("it is neither an elliptic-curve nor an RSA key")
        return key
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            "the authority's key cannot be used",
            where=str(path),
            why=str(error),
            remedy="remove it where you bring your own certificates; or put the unencrypted key back",
        ) from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, content, mode=mode)
