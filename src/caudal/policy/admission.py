"""Who may go to a replica now, who waits, and who is told at once that it would take too long. Pure.

Events and times in, effects out; the gateway carries them out, the simulator runs the same code. The rules:

- A replica gets no more at once than it has slots for, and no more prompts than it reads within a fifth of what
  interactive requests are promised: what it has cannot be put in order any more, what waits here can.
- Interactive before standard before batch. While interactive requests run, a replica gets the others' prompts one at
  a time, so that the next interactive one does not find many before it (on Azure's trace 1 to 2 % of goodput). Batch
  takes what the others leave: it starts only while nobody else waits and a quarter of the slots stays free, and is
  parked until then.
- Within a class keys are served by weighted virtual time over tokens (fair_queue.py), within a key in order.
- A request waits only while its promise (slo.py) and its deadline can be held, by what requests took so far
  (pace.py) and by how much longer waits were than was expected. It is refused on arrival where they cannot, and
  later as soon as they can no more (batch: at its end). A slot is never spent on an answer that comes too late
  anyway: under three times the load that is what decides how many come in time. Where nobody waits, nothing is
  refused for being slow.

Several processes that share replicas and keys each take `share`th parts of the slots, rates and concurrency.
That is approximate: the system deals connections to processes unevenly, so one may refuse while another has room,
and fairness between keys holds within each process. Knows nothing of HTTP, connections, or which replica.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from caudal.domain.key import Slo
from caudal.policy.admission_model import BATCH, ModelQueues, Running
from caudal.policy.admission_types import Admit, Ask, Effect, Outcome, Park, RateNumbers, Refuse
from caudal.policy.admission_words import full, hopeless, lost, too_long
from caudal.policy.fair_queue import Waiting
from caudal.policy.key_account import KeyAccount
from caudal.policy.slo import RANK, SloTargets

SWEEP_S = 0.25
"""How often all that waits is looked through for what is lost, while the queue is too long."""

MAX_WAITING = 4096
MAX_WAITING_TOKENS = 8_000_000
"""What may wait of each class and model: about 32 MB of requests."""

NOTHING: tuple[Outcome, ...] = ()


class Admission:
    """The state of one gateway's admission. Ids are the caller's; times rise."""

    def __init__(
        self,
        targets: SloTargets | None = None,
        *,
        share: int = 1,
        newest_first: bool = False,
    ) -> None:
        assert share >= 1
        self._targets = targets or SloTargets()
        self._share = share
        self._first_token_s = self._targets.interactive.first_token_s
        self._newest_first = newest_first
        self._keys: dict[str, KeyAccount] = {}
        self._models: dict[str, ModelQueues] = {}
        self._running: dict[int, Running] = {}
        self._waiting: dict[int, Waiting] = {}
        self._late: list[tuple[float, int]] = []  # when each that waits is lost

    # Events.

    def arrive(self, now: float, ask: Ask) -> Effect:
        """A request came: it goes, waits or is refused."""
        key, bound = ask.key, ask.reply_bound
        account = self._keys.get(key) or self._account(key)
        if account.limits is not ask.limits:
            account.take(ask.limits)
        model = self._models.get(ask.model) or self._model(ask.model)
        rank = RANK[ask.slo]
        reply = model.predict(key, bound)
        tokens = ask.prompt_tokens + (bound or reply)
        at_once = model.open_to(rank)
        if at_once and rank != BATCH and not ask.deadline_at:
            refusal = account.admit(now, ask.id, tokens, model.held_s)
            if refusal is not None:
                return refusal
        else:
            refusal = account.refusal(now, ask.id, tokens, rank == BATCH, model.held_s)
            if refusal is not None:
                return refusal
            if not at_once or (rank == BATCH and not account.may_run()):
                return self._enqueue(now, ask, reply, model, account)
            read_s = model.read_s(ask.prompt_tokens)
            if ask.deadline_at and now + read_s + model.reply_s(reply) > ask.deadline_at:
                return hopeless(ask)
            account.arrived(now, tokens)
            account.active += 1
        self._running[ask.id] = model.start(now, ask, now, reply)
        return Admit(ask.id)

    def first_token(self, now: float, id_: int) -> Sequence[Outcome]:
        """The first token of a running request came; those told of may go (or are refused) now."""
        running = self._running[id_]
        model = running.model
        model.first_token(now, running)
        return self._dispatch(now, model) if model.waiting else NOTHING

    def read_again(self, now: float, id_: int) -> None:
        """A stream lost its replica and goes on at another one, which has to read it before it says more: until
        `first_token` is said again that counts as a prompt to read, so that no new one gets before it."""
        running = self._running[id_]
        running.model.read_again(now, running)

    def end(self, now: float, id_: int, reply_tokens: int | None, ok: bool = True) -> Sequence[Outcome]:
        """A running request is over. `reply_tokens`: how many it got, where that is known. `ok` False: it
        failed or was cut off, and teaches nothing."""
        running = self._running.pop(id_)
        ask, model = running.ask, running.model
        account = self._keys[ask.key]
        account.active -= 1
        promised_s = self._targets.of(ask.slo).per_token_s if running.first_at else 0.0
        model.ended(now, running, reply_tokens, ok, promised_s)
        counted = ask.reply_bound or running.reply
        used = counted if reply_tokens is None else reply_tokens
        if used != counted:
            account.settled(now, running.arrived_at, counted, used)
        if not self._waiting:
            return NOTHING
        if ask.limits.concurrency:
            return self._freed(now, ask.key, model)
        return self._dispatch(now, model) if model.waiting else NOTHING

    def leave(self, now: float, id_: int) -> None:
        """A waiting request's client is gone."""
        item = self._waiting[id_]
        self._models[item.ask.model].queues[item.ask.rank].remove(item)
        self._settle(now, item)

    def capacity(self, now: float, model_id: str, replicas: int, slots: int) -> Sequence[Outcome]:
        """A model has so many replicas that hold so many requests at once, all together. None (0): what was last
        known stays, for they are about to come back, and the router says it better."""
        model = self._models.get(model_id) or self._model(model_id)
        model.away = not replicas
        if not replicas or (model.replicas == replicas and model.window.slots == self._part(slots)):
            return NOTHING
        fewer = self._part(slots) < model.window.slots
        model.resize(replicas, self._part(slots))
        if not model.waiting:
            return NOTHING
        return [*(self._sweep(now, model) if fewer else NOTHING), *self._dispatch(now, model)]

    def spent(self, key: str, tokens: int, usd: float) -> None:
        """So much has the key used this month, over all gateways."""
        account = self._keys.get(key) or self._account(key)
        account.spent_tokens, account.spent_usd = tokens, usd

    def tick(self, now: float) -> Sequence[Outcome]:
        """Time went on: what is lost is refused, what has room goes. A few times a second while anything waits."""
        outcomes: list[Outcome] = []
        while self._late and self._late[0][0] < now:
            item = self._waiting.get(heapq.heappop(self._late)[1])
            if item is not None:
                model = self._models[item.ask.model]
                model.queues[item.ask.rank].remove(item)
                outcomes.append(self._refused(now, item, model))
        for model in self._models.values():
            if not model.waiting:
                model.prune()
                continue
            model.overdue(now)
            if now - model.swept_at >= SWEEP_S and self._overlong(model):
                outcomes += self._sweep(now, model)
            outcomes += self._dispatch(now, model)
        return outcomes

    # What can be seen.

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def queued(self) -> dict[Slo, int]:
        """How many wait, by class."""
        return {slo: sum(m.queues[rank].count for m in self._models.values()) for slo, rank in RANK.items()}

    def running(self, model_id: str) -> int:
        """How many of a model's requests are at replicas."""
        model = self._models.get(model_id)
        return model.running if model else 0

    def reading(self, model_id: str) -> int:
        """How many of a model's prompts replicas have still to read."""
        model = self._models.get(model_id)
        return model.reading if model else 0

    def numbers(self, now: float, key: str) -> RateNumbers:
        """Where a key stands against its rates."""
        return (self._keys.get(key) or self._account(key)).numbers(now)

    # Inside.

    def _account(self, key: str) -> KeyAccount:
        return self._keys.setdefault(key, KeyAccount(self._share))

    def _model(self, model_id: str) -> ModelQueues:
        return self._models.setdefault(model_id, ModelQueues(self._first_token_s, self._newest_first))

    def _part(self, slots: int) -> int:
        return max(1, math.ceil(slots / self._share))

    def _enqueue(self, now: float, ask: Ask, reply: int, model: ModelQueues, account: KeyAccount) -> Effect:
        rank = ask.rank
        queue = model.queues[rank]
        promised_at = now + self._targets.of(ask.slo).first_token_s
        if ask.deadline_at:
            promised_at = min(promised_at, ask.deadline_at - model.reply_s(reply))
        latest_at = promised_at - model.own_s(ask.prompt_tokens)
        wait_s = model.wait_s(rank, queue.ahead(ask.key, ask.limits.weight))
        patient = rank == BATCH and not ask.deadline_at  # how the next hours will be nobody knows
        if now + wait_s * model.cautions[rank].value > latest_at and not patient:
            fair = queue.others(ask.key) and now + model.wait_s(rank, 0.0) <= latest_at
            return too_long(ask, wait_s, latest_at - now, own_fault=fair)
        work = model.work(ask.prompt_tokens, reply)
        if queue.count >= MAX_WAITING or queue.work + work > MAX_WAITING_TOKENS:
            return full(ask, wait_s)
        account.arrived(now, ask.prompt_tokens + (ask.reply_bound or reply))
        account.active += rank != BATCH
        expected_s = wait_s + model.own_s(ask.prompt_tokens)
        waiting = Waiting(ask, reply, work, now, latest_at, expected_s)
        queue.push(waiting)
        model.waiting += 1
        self._waiting[ask.id] = waiting
        heapq.heappush(self._late, (latest_at, ask.id))
        if len(self._late) > 2 * len(self._waiting) + 1024:
            self._late = [(w.latest_at, id_) for id_, w in self._waiting.items()]  # most went in time
            heapq.heapify(self._late)
        return Park(ask.id, wait_s)

    def _dispatch(self, now: float, model: ModelQueues) -> list[Outcome]:
        """Start what there is room for; refuse on the way what would be late."""
        outcomes: list[Outcome] = []
        for rank, queue in enumerate(model.queues):
            while queue.count and model.room(rank):
                item = queue.pop(self._may_run if rank == BATCH else _always)
                if item is None:
                    break
                ask = item.ask
                if now + model.read_s() > item.latest_at:
                    queue.uncharge(item)
                    outcomes.append(self._refused(now, item, model))
                    continue
                del self._waiting[ask.id]
                model.waiting -= 1
                self._keys[ask.key].active += rank == BATCH  # the others are counted since they wait
                running = model.start(now, ask, item.arrived_at, item.reply_tokens)
                running.charged = True
                running.expected_s = item.expected_s
                self._running[ask.id] = running
                outcomes.append(Admit(ask.id, now - item.arrived_at))
            if queue.count:
                break  # the next class comes when nobody of this one waits
        return outcomes

    def _may_run(self, key: str) -> bool:
        return self._keys[key].may_run()

    def _freed(self, now: float, key: str, ended: ModelQueues) -> Sequence[Outcome]:
        """A key with a bounded concurrency has one less: its parked requests may go, for whichever model."""
        outcomes: list[Outcome] = []
        for model in self._models.values():
            if model.waiting and (model.queues[BATCH].free(key) or model is ended):
                outcomes += self._dispatch(now, model)
        return outcomes

    def _sweep(self, now: float, model: ModelQueues) -> list[Outcome]:
        """Refuse all that wait and would be late, as it looks now: sooner than when they are. Not batch, which may
        hope for as long as it was promised."""
        model.swept_at = now
        late: list[Waiting] = []
        for rank, queue in enumerate(model.queues[:BATCH]):
            whole = queue.work
            for share, items in queue.lines():
                before = 0.0
                for item in items:
                    if now + model.wait_s(rank, min(whole, before / share)) > item.latest_at:
                        late.append(item)
                    else:
                        before += item.work
        for item in late:
            model.queues[item.ask.rank].remove(item)
        return [self._refused(now, item, model) for item in late]

    def _overlong(self, model: ModelQueues) -> bool:
        """Whether all that waits of a class is more than can be served in the time that it was promised."""
        for slo, rank in RANK.items():
            queue = model.queues[rank]
            if (
                rank != BATCH
                and queue.count
                and model.wait_s(rank, queue.work) > self._targets.of(slo).first_token_s
            ):
                return True
        return False

    def _refused(self, now: float, item: Waiting, model: ModelQueues) -> Refuse:
        """It waited, is out of its queue by now, and is told."""
        self._settle(now, item)
        ask = item.ask
        model.waited(ask.rank, item.expected_s, math.inf)
        return lost(ask, now - item.arrived_at, model.wait_s(ask.rank, model.queues[ask.rank].work))

    def _settle(self, now: float, item: Waiting) -> None:
        """A request that waited goes without having been served: its tokens are given back."""
        ask = item.ask
        del self._waiting[ask.id]
        self._models[ask.model].waiting -= 1
        account = self._keys[ask.key]
        account.active -= ask.rank != BATCH
        counted = ask.prompt_tokens + (ask.reply_bound or item.reply_tokens)
        account.settled(now, item.arrived_at, counted, 0)


def _always(key: str) -> bool:
    return True
