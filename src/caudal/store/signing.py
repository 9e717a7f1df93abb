"""A fleet's own signing key (Ed25519): what a node fetches from elsewhere is run only where this key signed it.

The key lies beside the fleet's authority and never leaves this machine; the public half goes into user data.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from caudal.domain.errors import UsageError
from caudal.store.atomic import write_atomic

SIGNING_KEY = "signing.key"


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The key below a folder of certificates, made at the first call. Raises UsageError where it is none."""
    path = folder / SIGNING_KEY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_atomic(path, pem, mode=0o600, if_absent=True)
        except FileExistsError:
            pass  # another process was first: its key is the one
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError("the signing key cannot be read", where=str(path), why=str(error)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("the signing key is not an Ed25519 key", where=str(path))
    return key


def public_pem(key: Ed25519PrivateKey) -> str:
    """The public half, as text for user data."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed(key: Ed25519PrivateKey, content: bytes) -> bytes:
    """The signature: 64 bytes."""
    return key.sign(content)


def is_signed(pem: str, content: bytes, signature: bytes) -> bool:
    """Whether the key with that public half signed the content."""
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, Ed25519PublicKey)
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True
