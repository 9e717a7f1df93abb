"""What answers used, by key, model and hour: counted here, in a journal within a second, at control when it can be.

Exact: `record` only counts; a thread writes what was counted to the journal and flushes it, as numbered batches; a
second one sends them to control, which adds each batch once, and forgets them when control has said so. A process
that is killed loses what it counted since the last flush. What it had written is sent by its successor, or by
any other gateway with the same folder. Knows nothing of keys' limits or of prices.
"""

from __future__ import annotations

import http.client
import logging
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from caudal.domain.key import Usage, UsageBatch, UsageHour, hour_of, summed
from caudal.gateway.usage_file import SUFFIX, JournalFile, left_behind
from caudal.gateway.usage_lines import body_of, line_of, parts
from caudal.telemetry.report import tls_context

log = logging.getLogger("caudal.gateway")

FLUSH_S = 0.5
POST_S = 1.0
ADOPT_S = 30.0
ANSWER_S = 2.0
POST_BYTES = 1 << 20
MAX_JOURNAL_BYTES = 256 << 20
"""Days of a busy gateway without control. Beyond it counting goes on, and waits in memory for room."""

NOTHING = Usage()

Send = Callable[[bytes], bool]
"""Brings a body to control; True when control has said that it is kept."""


class UsageJournal:
    """One process's journal. `start` begins the threads; without it nothing is written but by `flush` and nothing
    sent but by `post`, and with `folder` None nothing is kept at all."""

    def __init__(self, folder: Path | None, name: str, send: Send) -> None:
        self._folder = folder
        self._send = send
        self._source = f"{name}-{secrets.token_hex(8)}"
        self._seq = 0
        self._counted: dict[tuple[str, str, int], list[int]] = {}
        self._counting = threading.Lock()
        self._own: JournalFile | None = None
        self._adopted: list[JournalFile] = []
        self._files = threading.Lock()  # never taken by `record`: a disk may be slow
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._complaint = ""
        self._adopt_at = 0.0

    def record(self, key_id: str, model: str, at: float, used: Usage = NOTHING, status: int = 200) -> None:
        """Count one answer: to whom, of which model, when it ended (seconds since 1970), what it used, and the
        status that its client saw. Takes a microsecond or two; waits for no disk and no network."""
        if self._folder is None:
            return
        place = (key_id, model, hour_of(at))
        with self._counting:
            sums = self._counted.get(place)
            if sums is None:
                sums = self._counted[place] = [0, 0, 0, 0, 0, 0]
            sums[0] += 1
            if status >= 400:
                sums[1] += 1
            sums[2] += used.prompt_tokens
            sums[3] += used.completion_tokens
            if used.cached_tokens:
                sums[4] += used.cached_tokens
            if used.picodollars:
                sums[5] += used.picodollars

    def start(self) -> None:
        """Begin to write and to send."""
        if self._folder is None:
            return
        for work, every_s, name in ((self.flush, FLUSH_S, "usage"), (self._deliver, POST_S, "usage-sender")):
            thread = threading.Thread(target=self._repeat, args=(work, every_s), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Write what was counted, send what can be sent at once, and leave the rest to whoever comes next."""
        self._closing.set()
        self.flush()
        for thread in self._threads:
            thread.join(ANSWER_S + 1.0)
        if any(thread.is_alive() for thread in self._threads):
            return  # it still uses the files; they are let go when the process ends
        self.flush()
        self.post()
        with self._files:
            for file in [*self._adopted, *([self._own] if self._own else [])]:
                file.close()
            self._adopted, self._own = [], None

    def flush(self) -> bool:
        """Write what was counted since the last time, and have it on the disk; False where that failed: then it
        is counted on, and written the next time."""
        if self._folder is None:
            return True
        with self._counting:
            counted, self._counted = self._counted, {}
        if not counted:
            return True
        rows = [UsageHour(*place, s[0], s[1], Usage(*s[2:])) for place, s in counted.items()]
        try:
            with self._files:
                self._append(summed(rows))
        except OSError as error:
            self._put_back(counted)
            self._complain(
                f"usage cannot be written to {self._folder} ({error}): it is kept in memory for now"
            )
            return False
        return True

    def post(self) -> bool:
        """Send what lies in the journals, oldest first; False where control did not take it all."""
        try:
            for file in list(self._adopted):
                if not self._post_all(file):
                    return False
                self._adopted.remove(file)
                file.close()
            return self._own is None or self._post_all(self._own)
        except OSError as error:
            self._complain(f"the usage in {self._folder} cannot be read: {error}")
            return False

    def adopt(self) -> None:
        """Take over the journals of processes that are gone."""
        if self._folder is None:
            return
        try:
            self._adopted += left_behind(self._folder)
        except OSError as error:
            self._complain(f"{self._folder} cannot be looked through: {error}")

    def _post_all(self, file: JournalFile) -> bool:
        while file.size:
            with self._files:
                data = file.read(POST_BYTES)
            body, good, damaged = body_of(data.splitlines(keepends=True))
            if damaged:
                log.warning("%d damaged lines in %s: what they counted is lost", damaged, file.path)
            if good and not self._send(body):
                return False
            with self._files:
                file.forget(len(data))
        return True

    def _append(self, rows: list[UsageHour]) -> None:
        if self._own is None:
            assert self._folder is not None
            self._own = JournalFile.make(self._folder / f"{self._source}{SUFFIX}")
        if self._own.size > MAX_JOURNAL_BYTES:
            raise OSError(f"{self._own.path} has {self._own.size} bytes already, and control takes none")
        batches = [UsageBatch(self._source, self._seq + i, part) for i, part in enumerate(parts(rows), 1)]
        self._own.append(b"".join(map(line_of, batches)))
        self._seq += len(batches)

    def _put_back(self, counted: dict[tuple[str, str, int], list[int]]) -> None:
        with self._counting:
            for place, sums in counted.items():
                since = self._counted.get(place, [0] * len(sums))
                self._counted[place] = [a + b for a, b in zip(since, sums, strict=True)]

    def _deliver(self) -> None:
        """Adopt now and then; send."""
        if time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_S
            self.adopt()
        self.post()

    def _repeat(self, work: Callable[[], object], every_s: float) -> None:
        while not self._closing.is_set():
            try:
                work()
            except Exception:  # a bug here must not end the counting of everything that follows
                log.exception("usage: this went wrong")
            self._closing.wait(every_s)

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            log.warning(text)
            self._complaint = text


class ControlSender:
    """Sends bodies to the control API, with its token."""

    def __init__(self, url: str, token_file: str) -> None:
        self._url = url
        self._token_file = token_file
        self._away_because = ""

    def __call__(self, body: bytes) -> bool:
        """Whether control has kept it."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token()}"}
        try:
            request = urllib.request.Request(self._url, data=body, headers=headers)
            with urllib.request.urlopen(request, timeout=ANSWER_S, context=tls_context()) as answer:
                taken = answer.status == 200 and b'"taken"' in answer.read(1000)
                why = "" if taken else f"it answers {answer.status}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = str(error)
        if why != self._away_because:
            if why:
                log.warning("control does not take usage (%s): it is kept here", why)
            else:
                log.info("control takes usage again")
            self._away_because = why
        return not why

    def _token(self) -> str:
        try:
            return Path(self._token_file).read_text().strip()
        except OSError:
            return ""  # control will refuse, and that is logged


def usage_journal(url: str, folder: str, name: str, token_file: str) -> UsageJournal:
    """The journal of the gateway process of that name. Any number of processes may use one folder, also under
    one name. Without a folder it keeps nothing."""
    return UsageJournal(Path(folder) if folder else None, name, ControlSender(url, token_file))
