"""Where everything lies below `$CAUDAL_HOME`: one place for every path, no other knowledge."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from caudal.store.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class Home:
    """The folders and files of one state directory. Nothing is created before it is needed."""

    root: Path

    @property
    def database_url(self) -> str:
        """The SQLite state, unless `$CAUDAL_DATABASE_URL` names another database."""
        return os.environ.get("CAUDAL_DATABASE_URL") or f"sqlite:///{self.root / 'state.db'}"

    @property
    def blobs_url(self) -> str:
        """The object store: models, runs, ledgers, unless `$CAUDAL_BLOBS_URL` names another."""
        return os.environ.get("CAUDAL_BLOBS_URL") or (self.root / "blobs").as_uri()

    @property
    def gangs(self) -> Path:
        """One folder per gang that the local driver started: configuration, status, logs."""
        return self.root / "gangs"

    @property
    def machines(self) -> Path:
        """The local provider's own list of machines."""
        return self.root / "machines"

    @property
    def cache(self) -> Path:
        """Copies of objects that had to be fetched; may be deleted at any time."""
        return self.root / "cache"

    @property
    def catalog(self) -> Path:
        """Imported prices, one file for each source."""
        return self.root / "catalog"

    @property
    def certificates(self) -> Path:
        """The fleet's authority and its sites' certificates, or the user's own; see `authority`."""
        return self.root / "certificates"

    @property
    def token_file(self) -> Path:
        """The secret that the control API asks for; readable by its owner only."""
        return self.root / "secrets" / "token"

    def token(self) -> str:
        """The API's secret, made at the first call."""
        path = self.token_file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                write_atomic(path, secrets.token_urlsafe(32).encode(), mode=0o600, if_absent=True)
            except FileExistsError:
                pass  # another process was first: its secret is the one
        return path.read_text().strip()


def home(path: str | Path | None = None) -> Home:
    """The given state directory, else `$CAUDAL_HOME`, else the platform's user data directory."""
    chosen = path or os.environ.get("CAUDAL_HOME") or user_data_path("caudal")
    return Home(Path(chosen).expanduser().resolve())
