"""How long an iteration of an engine takes, prefill or decode, and what a load makes of it. Columns in, seconds out.

An iteration reads every weight once (of experts: those that a batch touches), computes its tokens, reads the cache
of each sequence, exchanges, and waits for the host. Prefill and decode of different requests share iterations. Knows
no engines by name but their family; prefix caches, speculation, preemption and skew between experts are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caudal.estimate.case import Vector
from caudal.estimate.serving_case import MOST_SEQUENCES, MOST_STEP_TOKENS, Columns
from caudal.estimate.serving_constants import Serving

BASE_YEAR = 2025.7
ROUNDS = 25


@dataclass(frozen=True)
class Iteration:
    """Seconds, item by item."""

    items: dict[str, Vector]

    @property
    def total(self) -> Vector:
        """All of it."""
        return np.asarray(sum(self.items.values()))


@dataclass(frozen=True)
class Served:
    """Over all chips. `out_tokens_per_s` counts generated tokens, `in_tokens_per_s` prompts; `sequences` in flight in
    a replica; `used` is the part of what the chips could do at most (1 and more: overloaded)."""

    out_tokens_per_s: Vector
    in_tokens_per_s: Vector
    ttft_s: Vector
    tpot_s: Vector
    sequences: Vector
    most_sequences: Vector
    used: Vector
    iteration: Iteration
    prefill_s: Vector


def _roof(reading: Vector, computing: Vector) -> Vector:
    """The longer of the two, and somewhat more where they are alike."""
    return np.asarray((reading**3 + computing**3) ** (1 / 3))


def _pick(c: Columns, neuron: float, other: float) -> Vector:
    return np.asarray(np.where(c.is_neuron > 0, neuron, other))


def iteration(
    c: Columns, k: Serving, sequences: Vector, prompt_tokens: Vector, *, mean: bool = False
) -> Iteration:
    """One iteration that decodes a token of each of `sequences` and prefills `prompt_tokens`, in a replica.

    `mean` is over an answer's tokens instead of its median token: compiled graphs read a cache in powers of two.
    """
    tokens = sequences + prompt_tokens
    matmul = _pick(c, k.neuron_matmul, k.matmul) * np.where(c.is_fp4 > 0, k.matmul_fp4, 1.0)
    memory = c.memory_rate * _pick(c, k.neuron_memory, k.memory)
    touched = 1 - (1 - c.expert_share) ** tokens
    plain = _roof(c.weights / memory, tokens * c.flops_token / (c.rate * matmul))
    routed = _roof(
        c.expert_weights * touched / memory, tokens * c.expert_flops_token / (c.rate * matmul * k.experts)
    )
    rate = c.rate_bf16 * _pick(c, k.neuron_matmul, k.attention)
    reading = c.kv_read * (c.kv_mean if mean else 1.0) / (c.memory_rate * _pick(c, k.neuron_kv, k.kv))
    cached = sequences * _roof(reading, c.attention_flops / rate)
    asked = (
        prompt_tokens * c.prefill_attention_flops / (c.rate_bf16 * _pick(c, k.neuron_attention, k.attention))
    )
    moved = tokens * c.elementwise_token * k.elementwise + sequences * c.logits_sequence * k.logits
    computing = plain + routed + cached + asked + moved / memory
    links = c.comm_rate * _pick(c, k.neuron_links, k.links)
    latency = c.layers * c.reduces * c.hops * k.reduce_s * (c.is_neuron == 0)
    exchange = tokens * c.comm_token / links
    hidden = np.minimum(exchange, k.overlap * computing * (c.is_prefill + c.is_decode))
    exchange = exchange - hidden + latency
    graph = c.layers * _pick(c, k.neuron_layer_s, k.layer_s) + c.moe_layers * k.expert_layer_s
    # Prompts run without a graph: the host launches every kernel, which shows where the device is faster.
    launch = (c.layers + 2 * c.moe_layers) * k.launch_s * (c.is_neuron == 0)
    exposed = np.maximum(launch - computing - exchange, 0.0) * (prompt_tokens > 0)
    old = np.where(c.is_neuron > 0, 1.0, k.old ** np.clip(BASE_YEAR - c.year, -0.3, 3.0))
    aged = old * np.where(c.is_amd > 0, k.amd, 1.0)
    in_host = sequences / np.where(c.is_spread > 0, c.group, 1.0)
    items = {
        "weights and matrix products": plain, "experts": routed, "cached keys and values": cached,
        "attention of prompts": asked, "exchange between devices": exchange,
        "elementwise and sampling": moved / memory, "launching layers": np.maximum(graph, exposed),
    }  # fmt: skip
    host = (k.host_s + k.sequence_s * in_host) * c.host * old
    host = host + k.neuron_prompt_s * (c.is_neuron > 0) * (prompt_tokens > 0)
    made = {name: np.asarray(value * aged) for name, value in items.items()}
    return Iteration({**made, "host": np.asarray(host)})


def stepping(c: Columns, k: Serving, sequences: Vector) -> Iteration:
    """The mean iteration of an engine whose slots are refilled: some carry a prompt (or a part of it), others none."""
    prompts = sequences / c.osl * np.ceil(c.isl / MOST_STEP_TOKENS)
    share = np.clip(prompts, 1e-9, 1.0)
    bare = iteration(c, k, sequences, np.zeros_like(sequences))
    mixed = iteration(c, k, sequences, sequences * c.isl / c.osl / share)
    return Iteration(
        {name: (1 - share) * bare.items[name] + share * mixed.items[name] for name in bare.items}
    )


def most_sequences(c: Columns) -> Vector:
    """Sequences that a replica holds at once, by memory for their cache and what engines allow. Below 1: none."""
    by_memory = c.free / np.maximum(c.kv_hold, 1.0)
    ranks = np.where(c.is_spread > 0, c.group, 1.0)
    step = MOST_STEP_TOKENS * ranks / (1 + c.isl / c.osl)
    engine = np.where(
        c.is_decode > 0, 256.0 * c.group, np.minimum(MOST_SEQUENCES * ranks, np.maximum(step, 1.0))
    )
    return np.asarray(np.minimum(by_memory, engine))


def _prompt(c: Columns, k: Serving, prompts: Vector) -> Vector:
    """Seconds to prefill so many whole prompts, alone."""
    return iteration(c, k, np.zeros_like(prompts), prompts * c.isl).total


def _flight(c: Columns, k: Serving, most: Vector) -> Vector:
    """Sequences in flight in a replica."""
    asked = c.batch / np.maximum(c.replicas, 1e-9)
    full = np.where((c.is_max + c.is_decode > 0) & (c.batch <= 0), most * k.occupied, asked)
    some = np.minimum(full, most)
    rate = c.qps / np.maximum(c.replicas, 1e-9)
    here = np.full_like(some, 1.0)
    for _ in range(ROUNDS):
        seconds = c.osl * stepping(c, k, here).total
        here = 0.5 * here + 0.5 * np.clip(rate * seconds, 0.05, most)
    return np.asarray(np.where(c.is_qps > 0, here, np.maximum(some, np.minimum(asked, 1.0))))


def served(c: Columns, k: Serving) -> Served:
    """What the load makes of it. Where `most_sequences` is below 1 nothing fits, and the figures mean nothing."""
    most = most_sequences(c)
    room = np.maximum(most, 1.0)
    flight = np.maximum(_flight(c, k, room), 1e-3)
    alone = (c.is_static + c.is_decode + c.is_split > 0) | (c.is_neuron > 0)
    bare, filled = iteration(c, k, flight, np.zeros_like(flight)), stepping(c, k, flight)
    step = Iteration({name: np.where(alone, bare.items[name], filled.items[name]) for name in bare.items})
    tpot = step.total
    mean = np.where(c.is_neuron > 0, iteration(c, k, flight, np.zeros_like(flight), mean=True).total, tpot)
    one = _prompt(c, k, np.ones_like(flight))
    batch_prompt = _prompt(c, k, np.where(c.is_static > 0, flight, 1.0))
    ttft = np.where(c.is_static > 0, batch_prompt, _waiting(c, k, flight, one, tpot))
    whole = np.where(c.is_static > 0, ttft + (c.osl - 1) * mean, c.osl * tpot)
    whole = np.where(c.is_neuron * (1 - c.is_static) > 0, one * flight + c.osl * mean, whole)
    out = flight * np.where(c.is_decode > 0, 1.0 / tpot, c.osl / whole)
    best = stepping(c, k, room * k.occupied).total
    at_most = room * k.occupied / best
    used = np.where(c.is_qps > 0, c.qps / c.replicas * c.osl / at_most, out / at_most)
    out = np.where((c.is_qps > 0), np.minimum(c.qps / np.maximum(c.replicas, 1e-9) * c.osl, at_most), out)
    prompts = np.minimum(MOST_STEP_TOKENS * c.group / np.maximum(c.isl, 1.0), 1e6)
    only = prompts * c.isl / _prompt(c, k, prompts)
    into = np.where(c.is_prefill > 0, only, out * c.isl / c.osl)
    return Served(out * c.replicas, into * c.replicas, ttft, tpot, flight, most, used, step, one)


def _waiting(c: Columns, k: Serving, flight: Vector, one: Vector, tpot: Vector) -> Vector:
    """Time to the first token: the prompt's own prefill, the iteration under way, and prompts in front.

    A closed loop's clients begin together and drift apart: with n of them a request finds between none (spread over
    the cycle) and half of the others (in step) in front of it. Taken as the geometric middle, about sqrt(n).
    """
    ranks = np.where(c.is_spread > 0, c.group, 1.0)
    several = np.maximum(1.0, MOST_STEP_TOKENS * ranks / np.maximum(c.isl, 1.0))
    each = _prompt(c, k, several) / several
    part = np.clip(flight * each / np.maximum(c.osl * tpot + each, 1e-9), 0.0, 0.95)
    queue = np.maximum(each, one / 2) * part / (1 - part)
    together = k.burst * (np.sqrt(np.maximum(flight, 1.0)) - 1) * one
    waiting = np.where(c.is_qps > 0, queue, together)
    return np.asarray(one + tpot / 2 + waiting + k.split_s * c.is_split)
