"""A run's curve: to the control API as it comes, and as JSON lines into the object store in parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from caudal.ports import Blobs
from caudal.telemetry.report import Reporter


class Metrics:
    """Rows wait here until `flush` writes them as the epoch's next part; what a crash takes away from the
    parts is in the ledger still."""

    def __init__(self, blobs: Blobs, prefix: str, epoch: int, reporter: Reporter) -> None:
        self._blobs, self._prefix, self._epoch = blobs, prefix, epoch
        self._reporter = reporter
        self._rows: list[str] = []
        self._part = 0

    def add(self, seq: int, at: float, values: Mapping[str, Any]) -> None:
        """One row."""
        self._reporter.point(seq, values)
        self._rows.append(json.dumps({"seq": seq, "at": at, **values}, sort_keys=True))

    def flush(self) -> None:
        """Write what waits as one object. Raises StorageFailed, and keeps the rows."""
        rows = list(self._rows)
        if rows:
            path = f"{self._prefix}/metrics/part-{self._epoch:06d}-{self._part:06d}.jsonl"
            self._blobs.put(path, ("\n".join(rows) + "\n").encode())
            self._part += 1
            del self._rows[: len(rows)]
