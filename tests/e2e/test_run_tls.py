"""Connections between sites are encrypted, and both ends prove whose they are, as real processes see it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from caudal.store.authority import ensure_certificates
from caudal.store.site_tls import site_files
from caudal.train import epochs
from tests.e2e.test_run_survival import PREFIX, Fleet, fleet

__all__ = ["fleet"]


def listening(of: Fleet, **more: object) -> tuple[str, int]:
    """Start a coordinator; where it listens."""
    of.start("coordinator", "tiny.coordinator", **more)
    of.until(lambda: epochs.newest(of.blobs, PREFIX) is not None)
    newest = epochs.newest(of.blobs, PREFIX)
    assert newest is not None
    host, _, port = newest.address.rpartition(":")
    of.until(lambda: "from round 0" in of.logs())
    return host, int(port)


def client(folder: Path, site: str, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(*site_files(folder, site))
    assert name
    return context


def test_who_has_no_certificate_hears_nothing(fleet: Fleet) -> None:
    address = listening(fleet)
    with socket.create_connection(address, timeout=5.0) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"challenge" not in plain.recv(4096)
    anonymous = ssl.create_default_context(cafile=fleet.certificates / "ca.pem")
    with (
        socket.create_connection(address, timeout=5.0) as raw,
        anonymous.wrap_socket(raw, server_hostname="coordinator") as connection,
        contextlib.suppress(OSError),
    ):
        assert connection.recv(1) == b""


def test_who_has_one_is_challenged_under_tls_1_3(fleet: Fleet) -> None:
    address = listening(fleet)
    ensure_certificates(fleet.certificates, ["north"])
    context = client(fleet.certificates, "north", "coordinator")
    with (
        socket.create_connection(address, timeout=5.0) as raw,
        context.wrap_socket(raw, server_hostname="coordinator") as connection,
    ):
        assert connection.version() == "TLSv1.3"
        assert b"challenge" in connection.recv(4096)
    with socket.create_connection(address, timeout=5.0) as raw, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(raw, server_hostname="south")  # it is not the site it was taken for


def test_a_site_of_another_authority_ends_with_both_named(fleet: Fleet, tmp_path: Path) -> None:
    listening(fleet)
    ensure_certificates(tmp_path / "others", ["north"])
    worker = fleet.start("worker", "tiny.worker.north", certificates=str(tmp_path / "others"))
    fleet.until(lambda: worker.poll() is not None)
    assert worker.returncode == 1 and "do not fit together" in fleet.logs(), fleet.logs()
    assert "coordinator coordinates, this is north" in fleet.logs()


def test_a_site_with_another_sites_certificate_is_refused(fleet: Fleet) -> None:
    listening(fleet)
    ensure_certificates(fleet.certificates, ["south"])
    borrowed = fleet.folder / "borrowed"
    shutil.copytree(fleet.certificates, borrowed)
    for mine, theirs in zip(site_files(borrowed, "north"), site_files(borrowed, "south"), strict=True):
        shutil.copy(theirs, mine)
    worker = fleet.start("worker", "tiny.worker.north", certificates=str(borrowed))
    fleet.until(lambda: worker.poll() is not None)
    assert worker.returncode == 1 and "its certificate is another site's" in fleet.logs(), fleet.logs()


def test_without_certificates_a_coordinator_listens_on_loopback_only(fleet: Fleet) -> None:
    boss = fleet.start("coordinator", "tiny.coordinator", certificates="", host="0.0.0.0")
    fleet.ends(boss, code=2)
    assert "without encryption" in fleet.logs() and "caudal certificates" in fleet.logs()
    assert epochs.newest(fleet.blobs, PREFIX) is None
