"""Imported prices under `$CAUDAL_HOME/catalog`: one CSV for each source, replaced wholly by a later import.

Knows the catalogue's own CSV only; what others' files say is the importers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caudal.catalog.bundled import bundled_rows
from caudal.catalog.rows import CatalogRow, from_csv, newest, to_csv
from caudal.domain.errors import Failed, StorageFailed
from caudal.store.atomic import write_atomic

SUFFIX = ".csv"


class PriceFiles:
    """The files of one state directory. Who reads sees an import wholly or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def replace(self, source: str, rows: Sequence[CatalogRow]) -> Path:
        """Keep these rows instead of the source's earlier ones. Raises StorageFailed."""
        path = self._folder / f"{source}{SUFFIX}"
        try:
            write_atomic(path, to_csv(rows).encode())
        except OSError as error:
            raise StorageFailed(
                f"the prices of {source} cannot be kept: {error.strerror}",
                where=str(path),
                remedy="what was imported before is unchanged; make room, or set CAUDAL_HOME",
            ) from error
        return path

    def imported(self) -> dict[str, list[CatalogRow]]:
        """Source → its rows. Raises Failed where a file was changed by something else."""
        found = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")) if self._folder.is_dir() else ():
            try:
                found[path.stem] = list(from_csv(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise Failed(
                    "imported prices cannot be read",
                    where=str(path),
                    why=str(error),
                    remedy=f"import them again with `caudal offers import --from {path.stem}`, or delete the file",
                ) from error
        return found

    def rows(self) -> list[CatalogRow]:
        """What is shipped and what is imported; of two that say the same thing the later one."""
        rows = bundled_rows()
        for some in self.imported().values():
            rows += some
        return newest(rows)
