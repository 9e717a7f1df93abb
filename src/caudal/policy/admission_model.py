"""One model as admission sees it: what runs, what waits in which class, and how long things take.

Keeps the counts and does the sums; who is let in and who is refused is decided in admission.py.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from caudal.domain.key import Slo
from caudal.policy.admission_types import Ask
from caudal.policy.fair_queue import FairQueue
from caudal.policy.pace import (
    PROMPT_OVERHEAD_TOKENS,
    TYPICAL_REPLY_TOKENS,
    Caution,
    Pace,
    ReplyLength,
    Window,
)

REPLY_WEIGHT = 2
"""A token of a reply is this much work, one of a prompt 1: as in VTC (arXiv 2401.00588)."""

UNKNOWN_SLOTS = 32
"""What one model's replicas are taken to hold while nothing is known of them."""

READING_SHARE = 0.2
MAX_READING_S = 1.0
"""The prompts that replicas have still to read may take them this share of the time to the first token that
interactive requests are promised, and no longer than that: a gateway hears of each that was read and sends the
next within milliseconds, so replicas do not idle. With all of a promised second goodput on Azure's trace halved; with
0.4 of it, it was 2 % less."""

READ_AT_ONCE = 2
"""So many prompts a replica may have to read in any case, however long: one behind which others wait at one
replica must not keep the next one idle."""

LONG_WAIT = 0.2
"""Only waits that were expected to take this share of the promise teach caution: of a short one the noise is large,
and nothing hangs on it."""

OVERDUE_S = 2.0
OVERDUE = 4.0
"""A first token that did not come after so many times the expected time, and 2 s, is not waited for."""

TURN_S = 0.02
"""Beyond their slots replicas get what they end within such a time, so that no slot is empty while the gateway
hears of an end and sends the next. Where requests take seconds that is none: one that waits inside a replica
waits for a whole other one. At most a quarter of the slots, or one for each replica."""

BATCH = 2
_INTERACTIVE = Slo.INTERACTIVE
MIN_SEEN = 8
MAX_KEYS = 10_000


class Running(Struct, eq=False):
    """A request at a replica. `reply` is as predicted; `ahead` the tokens that its replica had to read up to its
    first one; `charged` whether it was taken from a queue, by its work; `expected_s` how long its first token was
    expected to take when it was let wait (0: it did not wait); `beside_s` the model's `_running_s` at its first token;
    `read_from` since when it is read, which is later than `started_at` where it is read again; `cold`: there was no replica
    when it began, and how long it took says when there was one again."""

    ask: Ask
    model: ModelQueues
    reply: int
    arrived_at: float
    started_at: float
    ahead: float
    first_at: float = 0.0
    expected_s: float = 0.0
    beside_s: float = 0.0
    reading: bool = False
    charged: bool = False
    read_from: float = 0.0
    cold: bool = False


class ModelQueues:
    """The state of one model."""

    __slots__ = (
        "_busy_s",
        "_busy_since",
        "_first_token_s",
        "_lengths",
        "_own_lengths",
        "_readers",
        "_reading_s",
        "_running_s",
        "_running_since",
        "away",
        "cautions",
        "pace",
        "queues",
        "reading",
        "reading_tokens",
        "replicas",
        "running",
        "running_interactive",
        "swept_at",
        "waiting",
        "window",
    )

    def __init__(self, first_token_s: float = 5.0, newest_first: bool = False) -> None:
        self._first_token_s = first_token_s
        self._reading_s = min(MAX_READING_S, READING_SHARE * first_token_s)
        self.queues = (FairQueue(newest_first), FairQueue(newest_first), FairQueue())
        self.pace = Pace()
        self.cautions = (Caution(), Caution(), Caution())  # by rank
        self.window = Window(UNKNOWN_SLOTS)
        self.replicas = 1
        self.away = False  # there is none just now
        self.running = self.running_interactive = 0
        self.reading = 0  # streams whose first token did not come yet
        self.reading_tokens = 0
        self.waiting = 0
        self.swept_at = 0.0
        self._running_s = self._running_since = 0.0  # the integral of how many ran
        self._busy_s = self._busy_since = 0.0  # of all replicas together, since a prompt was read
        self._readers: deque[Running] = deque()  # in the order in which they were sent
        self._lengths: dict[str, ReplyLength] = {}
        self._own_lengths = ReplyLength()

    # What it says.

    def predict(self, key: str, bound: int) -> int:
        """Tokens that a reply to this key is expected to have."""
        length = self._lengths.get(key)
        if length is None or length.seen < MIN_SEEN:
            length = self._own_lengths
        expected = int(length.tokens) or 1
        return bound if bound and bound < expected else expected

    def open_to(self, rank: int) -> bool:
        """Whether a request of a class may start although it just came: there is room, and nobody is before it."""
        if self.waiting:
            queues = self.queues
            if queues[0].count or (rank and queues[1].count) or (rank == BATCH and queues[2].count):
                return False
        if self.reading or rank == BATCH:
            return self.room(rank)
        limit = self.window.limit
        return self.running < limit or self.running < limit + self._spare()

    def room(self, rank: int) -> bool:
        """Whether replicas can take one more of a class."""
        limit = self.window.limit
        if self.running >= limit and self.running >= limit + self._spare():
            return False
        if self.reading >= self.replicas * READ_AT_ONCE:
            if self.reading_tokens * self.pace.prompt_s > self._reading_s * self.replicas:
                return False
            if rank == BATCH and self.pace.prompt_s:
                return False
        if rank and self.running_interactive and self.reading >= self.replicas and self.pace.prompt_s:
            return False
        return rank != BATCH or self.running < max(1, limit - limit // 4)

    def work(self, prompt_tokens: int, reply_tokens: int) -> float:
        """What a request costs, in tokens of a prompt."""
        return prompt_tokens + PROMPT_OVERHEAD_TOKENS + REPLY_WEIGHT * reply_tokens

    def read_s(self, prompt_tokens: int = 0) -> float:
        """Seconds until a prompt would be read that is sent now, behind those that are being read."""
        per_replica = self.reading_tokens / self.replicas
        return (per_replica + prompt_tokens + PROMPT_OVERHEAD_TOKENS) * self.pace.prompt_s

    def own_s(self, prompt_tokens: int) -> float:
        """Seconds that a prompt takes by itself."""
        return (prompt_tokens + PROMPT_OVERHEAD_TOKENS) * self.pace.prompt_s

    def reply_s(self, reply_tokens: int) -> float:
        """Seconds from the first token to the last, about."""
        return reply_tokens * self.pace.reply_s

    def held_s(self) -> float:
        """Seconds for which a request holds its slot, on average."""
        return self.pace.mean_work * self.pace.work_s

    def wait_s(self, rank: int, ahead_in_class: float) -> float:
        """Seconds until a request could start that has so much work of its own class before it: for a slot, or
        until what is before it was read, whichever takes longer."""
        ahead = ahead_in_class
        work = self.queues[rank].work
        prompts: float = self.queues[rank].prompt_tokens
        for queue in self.queues[:rank]:
            ahead += queue.work
            work += queue.work
            prompts += queue.prompt_tokens
        prompt_share = prompts / work if work > 0 else 0.0
        to_read = self.reading_tokens + ahead * prompt_share
        read_s = to_read * self.pace.prompt_s / self.replicas
        limit, mean = self.window.limit, self.pace.mean_work
        free = max(0, limit - self.running) * mean  # what needs no slot that is taken now
        slot_s = max(0.0, ahead + mean - free) * self.pace.work_s / limit
        return max(slot_s, read_s)

    # What happens to it.

    def resize(self, replicas: int, slots: int) -> None:
        """It has so many replicas now, which hold so many requests together."""
        self.replicas = replicas
        self.window.resize(slots)

    def _spare(self) -> int:
        """How many replicas get beyond their slots."""
        slots, held_s = self.window.slots, self.held_s()
        most = max(self.replicas, slots // 4)
        return most if slots * TURN_S >= most * held_s else int(slots * TURN_S / held_s)

    def start(self, now: float, ask: Ask, arrived_at: float, reply: int) -> Running:
        """A request goes to a replica."""
        self._running_s += (now - self._running_since) * self.running
        self._running_since = now
        self.running += 1
        if ask.slo is _INTERACTIVE:
            self.running_interactive += 1
        ahead = ask.prompt_tokens + PROMPT_OVERHEAD_TOKENS + self.reading_tokens / self.replicas
        running = Running(ask, self, reply, arrived_at, now, ahead)
        if self.away:
            running.cold = True
        if ask.stream:
            self._begin_reading(now, running)
        return running

    def read_again(self, now: float, running: Running) -> None:
        """A stream that had begun lost its replica, and another one reads its prompt anew: what waits comes after it."""
        if running.first_at and not running.reading:
            self._begin_reading(now, running)

    def _begin_reading(self, now: float, running: Running) -> None:
        self.overdue(now)
        self._count_busy(now)
        self._readers.append(running)
        running.reading, running.read_from = True, now
        self.reading += 1
        self.reading_tokens += running.ask.prompt_tokens + PROMPT_OVERHEAD_TOKENS

    def overdue(self, now: float) -> None:
        """Replicas that say nothing for much longer than it takes to read what they have must not keep the
        others idle: what they read counts no more."""
        readers = self._readers
        while readers:
            first = readers[0]
            if first.reading:
                if now - first.read_from < max(OVERDUE_S, OVERDUE * first.ahead * self.pace.prompt_s):
                    return
                self._read(now, first)
            readers.popleft()

    def _count_running(self, now: float) -> None:
        """So many ran since the last time."""
        self._running_s += (now - self._running_since) * self.running
        self._running_since = now

    def _count_busy(self, now: float) -> None:
        """Replicas were busy reading since the last time, as many as there were prompts."""
        self._busy_s += (now - self._busy_since) * min(self.reading, self.replicas)
        self._busy_since = now

    def _read(self, now: float, running: Running) -> None:
        """Its prompt is read no more. Where that is not because it was read, its part of the time teaches nothing."""
        if running.reading:
            self._count_busy(now)
            running.reading = False
            own, before = running.ask.prompt_tokens + PROMPT_OVERHEAD_TOKENS, self.reading_tokens
            self.reading -= 1
            self.reading_tokens -= own
            if running.first_at and running.read_from == running.started_at and not running.cold:
                self.pace.read(self._busy_s, own)
                self._busy_s = 0.0
            else:
                self._busy_s *= self.reading_tokens / before

    def first_token(self, now: float, running: Running) -> None:
        """Its first token came."""
        if running.first_at or not running.ask.stream:
            self._read(now, running)  # where it was read again: how soon that went teaches nothing
            return
        running.first_at = now
        self._count_running(now)
        running.beside_s = self._running_s
        self._read(now, running)
        if running.expected_s:
            self.waited(running.ask.rank, running.expected_s, now - running.arrived_at)

    def ended(
        self, now: float, running: Running, reply_tokens: int | None, ok: bool, promised_s: float
    ) -> None:
        """It is over. `promised_s` is what its class was promised for each token (0: nothing)."""
        ask = running.ask
        self._running_s += (now - self._running_since) * self.running
        self._running_since = now
        self.running -= 1
        if ask.slo is _INTERACTIVE:
            self.running_interactive -= 1
        if running.reading:
            self._read(now, running)
        if not ok:
            return
        decode_s = now - running.first_at if running.first_at else 0.0
        work = ask.prompt_tokens + PROMPT_OVERHEAD_TOKENS + REPLY_WEIGHT * running.reply
        if not running.cold:
            self.pace.ended(now - running.started_at, work, decode_s, running.reply)
        if reply_tokens is None:
            return
        self._own_lengths.see(reply_tokens)
        length = self._lengths.get(ask.key)
        if length is not None:
            length.see(reply_tokens)
        elif len(self._lengths) < MAX_KEYS:  # the model's own length stands for the rest
            length = self._lengths[ask.key] = ReplyLength(TYPICAL_REPLY_TOKENS)
            length.see(reply_tokens)
        if running.charged:
            more = REPLY_WEIGHT * (reply_tokens - running.reply)
            self.queues[ask.rank].correct(ask.key, more)
        if promised_s and decode_s and reply_tokens > 1:
            beside = (self._running_s - running.beside_s) / decode_s
            self.window.see(decode_s / (reply_tokens - 1), promised_s, beside)

    def waited(self, rank: int, expected_s: float, took_s: float) -> None:
        """A request that was let wait had its first token after so long (infinity: never)."""
        if expected_s > LONG_WAIT * self._first_token_s:
            self.cautions[rank].see(expected_s, took_s)

    def prune(self) -> None:
        """Forget keys that wait for nothing."""
        for queue in self.queues:
            queue.prune()
