"""The fleet's authority: what it makes, when it makes it anew, and what it says of a user's own certificates."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from caudal.cli.certificates import verb
from caudal.domain.errors import UsageError
from caudal.store import authority
from caudal.store.authority import ensure_certificates
from caudal.store.site_tls import site_files


def certificate(folder: Path, site: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(site_files(folder, site)[0].read_bytes())


def test_it_makes_what_is_missing_and_keeps_what_is_there(tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "c", ["north"])
    first = {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    assert set(first) == {"ca.pem", "ca.key", "north.pem", "north.key"}
    ensure_certificates(tmp_path / "c", ["north", "south"])
    assert all((tmp_path / "c" / name).read_bytes() == content for name, content in first.items())
    ca = x509.load_pem_x509_certificate(first["ca.pem"])
    certificate(tmp_path / "c", "south").verify_directly_issued_by(ca)
    for name in ("ca.key", "north.key"):
        assert stat.S_IMODE((tmp_path / "c" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_it_is_made_anew_a_month_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "SITE_DAYS", 29)
    ensure_certificates(tmp_path, ["north"])
    short = certificate(tmp_path, "north")
    monkeypatch.setattr(authority, "SITE_DAYS", 100)
    ensure_certificates(tmp_path, ["north"])
    long = certificate(tmp_path, "north")
    assert long.not_valid_after_utc - short.not_valid_after_utc > timedelta(days=70)
    assert long.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)  # a clock may be behind
    ensure_certificates(tmp_path, ["north"])
    assert certificate(tmp_path, "north") == long


def test_another_authority_makes_them_anew(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["north"])
    old = certificate(tmp_path, "north")
    (tmp_path / "ca.pem").unlink()
    ensure_certificates(tmp_path, ["north"])
    assert certificate(tmp_path, "north").issuer != old.issuer


@pytest.mark.parametrize("name", ["North", "a b", "", "-a", "a" * 64, "../x", "a..b", "a."])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a certificate"):
        ensure_certificates(tmp_path, [name])
    assert not list(tmp_path.iterdir())


def test_a_users_own_are_looked_at_and_left_alone(tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "ours", ["north", "south"])
    ensure_certificates(tmp_path / "other", ["north"])
    (tmp_path / "ours" / "ca.key").unlink()
    before = {p.name: p.read_bytes() for p in (tmp_path / "ours").iterdir()}
    ensure_certificates(tmp_path / "ours", ["north", "south"])
    with pytest.raises(UsageError, match="site west cannot be used"):
        ensure_certificates(tmp_path / "ours", ["west"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "ours").iterdir()} == before

    (tmp_path / "ours" / "north.pem").write_bytes((tmp_path / "other" / "north.pem").read_bytes())
    with pytest.raises(UsageError, match="north"):
        ensure_certificates(tmp_path / "ours", ["north"])
    (tmp_path / "ours" / "north.pem").write_bytes(before["south.pem"])
    with pytest.raises(UsageError, match="does not name north"):
        ensure_certificates(tmp_path / "ours", ["north"])
    (tmp_path / "ours" / "south.key").write_text("no key")
    with pytest.raises(UsageError, match="south cannot be used"):
        ensure_certificates(tmp_path / "ours", ["south"])


def test_a_key_of_the_authority_that_is_damaged_is_named(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["north"])
    (tmp_path / "ca.key").write_text("-----BEGIN NOTHING-----")
    ensure_certificates(tmp_path, ["north"])  # it is not needed
    with pytest.raises(UsageError, match="authority's key cannot be used"):
        ensure_certificates(tmp_path, ["south"])


def test_the_verb(tmp_path: Path) -> None:
    done = CliRunner().invoke(verb, [str(tmp_path / "certs"), "north", "south"])
    assert done.exit_code == 0 and "south.key" in done.output
    assert site_files(tmp_path / "certs", "south")[1].exists()
    assert CliRunner().invoke(verb, [str(tmp_path)]).exit_code == 2
