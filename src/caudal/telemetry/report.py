"""What a gang says of itself, to the control API: best effort, never in its way.

Every gang reports at least once a second, so that a control process that was away knows within a second or
two. The keys of `status`, by role:

    coordinator  phase (preparing waiting training evaluating publishing finished failed), epoch, round,
                 stage, ids_done, ids_total, ids_skipped, tokens_done, tokens_total, tokens_per_s, loss, val_loss,
                 val_bits_per_byte, inner_steps, wait_share, goodput, mfu (where known), wire_bytes_total,
                 heldout ({correct, of} or null), sites ({name: {worker, state, round, loss, tokens_per_s}}),
                 kept_out ({slot: reason}), why (the last word on inner_steps), error
    worker       phase (loading joining computing waiting evaluating done), site, round, loss, tokens_per_s,
                 restarts (inside its gang)
    replica      ready, url, model, version, engine, slots, capabilities, metrics (serve/figures.py), error;
                 control adds ready_since
    gateway      ready, url, requests, streams, hedged (requests that were sent twice),
                 load ({replica: [requests and tokens in flight, tokens per s]}),
                 demand ({model: [requests, smoothed, seconds without any or -1]}), peaks ({model: [age in s,
                 load, ...]}), waking (models that sleep and are waited for),
                 spent ({book, month, usd: {external address: US dollars}})

Points are the rows of a run's curve: `{"seq": n, "at": seconds, "values": {round, stage, loss, ...}}`; they
are kept here until the control API has taken them.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import ssl
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORT_URL = "CAUDAL_REPORT_URL"
"""Environment variable: the full address to post to, `http://HOST:PORT/api/v1/gangs/GANG/report`."""

TOKEN_FILE = "CAUDAL_TOKEN_FILE"
"""Environment variable: the file that holds the control API's secret, or the token of this gang alone."""

CA_FILE = "CAUDAL_CA_FILE"
"""Environment variable: the authority of the control API's certificate; not set: the API is called in the clear."""

URGENT = ("ready", "error", "waking")
"""Keys whose change is told at once."""

AT_MOST_EVERY_S = 0.2

MAX_POINTS_KEPT = 100_000
MAX_POINTS_SENT = 1_000


@functools.cache
def _trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def tls_context() -> ssl.SSLContext | None:
    """What the control API is called with: it trusts the fleet's authority alone. None: in the clear, on loopback. Raises
    OSError where the authority's file cannot be used."""
    ca_file = os.environ.get(CA_FILE, "")
    return _trusting(ca_file) if ca_file else None


class Reporter:
    """Posts the newest status and the points not yet taken, from a thread of its own.

    Without `CAUDAL_REPORT_URL` it keeps quiet, so that the same program runs alone. One process of a gang may
    report; one that may have to later is made with `begin` False.
    """

    def __init__(self, interval_s: float = 1.0, *, begin: bool = True) -> None:
        self._url = os.environ.get(REPORT_URL, "")
        self._token_file = os.environ.get(TOKEN_FILE, "")
        self._interval_s = interval_s
        self._status: dict[str, Any] = {}
        self._points: deque[dict[str, Any]] = deque(maxlen=MAX_POINTS_KEPT)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        if begin:
            self.begin()

    def begin(self) -> None:
        """From now on this process reports for its gang."""
        if self._url:
            self._thread.start()

    def update(self, **status: Any) -> None:
        """Change keys of the status; sent with the next post, and at once where it is of the kind that others
        wait for."""
        with self._lock:
            urgent = any(key in status and status[key] != self._status.get(key) for key in URGENT)
            self._status.update(status)
        if urgent:
            self._news.set()

    def point(self, seq: int, values: Mapping[str, Any]) -> None:
        """Add a row to the run's curve."""
        with self._lock:
            self._points.append({"seq": seq, "at": time.time(), "values": dict(values)})

    def close(self) -> None:
        """Send what is left, once, and end."""
        self._closing.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._news.wait(self._interval_s)
            self._news.clear()
            self._post()
            self._closing.wait(AT_MOST_EVERY_S)
        self._post()

    def _post(self) -> None:
        with self._lock:
            points = [self._points[i] for i in range(min(len(self._points), MAX_POINTS_SENT))]
            body = {"at": time.time(), "status": dict(self._status), "points": points}
        request = urllib.request.Request(
            self._url,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=2.0, context=tls_context()):
                pass
        except (OSError, http.client.HTTPException):
            return  # the control process is away: what is kept here is sent when it is back
        with self._lock:
            for _ in points:
                self._points.popleft()

    def _token(self) -> str:
        try:
            return Path(self._token_file).read_text().strip()
        except OSError:
            return ""
