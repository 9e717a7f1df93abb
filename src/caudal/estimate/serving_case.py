"""What an estimate of serving is made from: one question, and its columns per device.

`Question` is a model on a replica of chips, an engine, a load. `columns` turns any number of them into arrays, one
row a question: bytes that a device reads, FLOPs that it computes, bytes that it exchanges per token, rates. The
formulas of time are `serving`'s. Knows no constants but those of number formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from caudal.catalog.chips import Chip
from caudal.domain.transformer import Transformer
from caudal.estimate.case import UNKNOWN_LINK_BYTES_PER_S, Vector, achieved_share, peak

LOADS = ("max", "static", "concurrency", "qps", "prefill", "decode")
"""`max`: as many requests as fit, always more waiting. `static`: one batch, begun and ended together.
`concurrency`: so many clients, each sends its next request when it has its answer. `qps`: requests arrive by
chance. `prefill` and `decode`: a node that does one of the two only."""

ENGINES = ("trtllm", "vllm", "sglang", "neuron", "other")
LATEST = 2026.0
HOST = {"trtllm": 1.0, "sglang": 1.2, "vllm": 1.5, "neuron": 0.0, "other": 2.0}
"""What the host takes per iteration, in parts of TensorRT-LLM's. Not fitted: the open rows have one engine with
chips of each kind. From release notes: vLLM's V1 (early 2025) moved scheduling off the critical path; before, thrice."""
V1 = 2025.0
MOST_SEQUENCES, MOST_STEP_TOKENS = 2048, 8192
"""What engines allow in flight, and in one iteration, where nobody sets it: vLLM's, SGLang's and TensorRT-LLM's
defaults lie at or near these."""
MEMORY_SHARE = 0.9
"""Of a chip's memory, for weights and cached keys and values (vLLM's and TensorRT-LLM's default)."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Bytes of a weight, of a cached number, and the precision that matrix products run in."""

    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    compute: str = "bf16"
    beside_bytes: float = 2.0
    """Of weights beside the experts, in models that have experts."""


@dataclass(frozen=True, slots=True)
class Question:
    """`chips` hold one or more replicas of `tp` devices (cores of Trainium); experts lie on `ep` devices, which may
    be more than `chips` (a node of a larger group). `load` is one of LOADS, `batch` sequences in flight over all
    chips, `qps` requests a second over all chips. `year` is the engine's, in decimals."""

    model: Transformer
    chip: Chip
    chips: int
    tp: int
    ep: int
    numbers: Numbers
    engine: str
    year: float
    load: str
    isl: int
    osl: int
    batch: float = 0.0
    qps: float = 0.0
    disaggregated: bool = False
    notes: tuple[str, ...] = ()
    open: frozenset[str] = field(default_factory=frozenset)

    @property
    def cores(self) -> int:
        """Devices of one chip."""
        return max(1, self.chip.cores if self.chip.vendor == "AWS" else 1, -(-self.tp // self.chips))

    @property
    def group(self) -> int:
        """Devices that hold one copy of the weights."""
        return max(self.tp, self.ep if self.model.experts else 1)

    @property
    def replicas(self) -> float:
        """Copies of the weights on all chips: less than one where the group is larger than the node."""
        return self.chips * self.cores / self.group

    @property
    def spread(self) -> bool:
        """Whether attention lies whole on each device and the sequences are dealt out (attention data parallel)."""
        if not self.model.experts or self.group == 1:
            return False
        if self.ep > self.tp:
            return True
        crowded = (
            self.load in ("max", "decode", "prefill")
            or self.batch / max(1.0, self.replicas) >= 32 * self.group
        )
        repeated = bool(self.model.kv_lora) or self.model.kv_heads < self.tp
        return crowded and repeated and self.engine != "neuron"


@dataclass(frozen=True)
class Columns:
    """Per device unless said otherwise; `token` columns are per token of the whole group."""

    weights: Vector
    expert_weights: Vector
    expert_share: Vector
    flops_token: Vector
    expert_flops_token: Vector
    kv_read: Vector
    kv_mean: Vector
    kv_hold: Vector
    attention_flops: Vector
    prefill_attention_flops: Vector
    comm_token: Vector
    comm_rate: Vector
    hops: Vector
    reduces: Vector
    elementwise_token: Vector
    logits_sequence: Vector
    layers: Vector
    moe_layers: Vector
    rate: Vector
    rate_bf16: Vector
    memory_rate: Vector
    free: Vector
    group: Vector
    replicas: Vector
    isl: Vector
    osl: Vector
    batch: Vector
    qps: Vector
    year: Vector
    host: Vector
    is_neuron: Vector
    is_amd: Vector
    is_fp4: Vector
    is_max: Vector
    is_static: Vector
    is_qps: Vector
    is_prefill: Vector
    is_decode: Vector
    is_split: Vector
    is_spread: Vector


NAMES = tuple(each.name for each in fields(Columns))


def contexts(model: Transformer, tokens: float) -> float:
    """Keys that one token at position `tokens` attends to, summed over layers."""
    windowed = model.layers * model.window_share if model.window else 0.0
    return (model.layers - windowed) * tokens + windowed * min(tokens, model.window or tokens)


def bucket(tokens: float) -> float:
    """The power of two that holds so many tokens: compiled graphs read a cache of that length."""
    return float(2 ** int(np.ceil(np.log2(max(128.0, tokens)))))


def kv_bytes_token_layer(q: Question) -> float:
    """Cached bytes of a token and layer on one device, per sequence of the group."""
    model = q.model
    if model.kv_lora:
        return (model.kv_lora + model.rope_dim) * q.numbers.kv_bytes / (q.group if q.spread else 1)
    width = (model.qk_dim + model.v_dim) * q.numbers.kv_bytes
    if q.spread:
        return model.kv_heads * width / q.group
    return -(-model.kv_heads // q.tp) * width


def _weights(q: Question) -> dict[str, float]:
    model, numbers = q.model, q.numbers
    inside = 1 if q.spread else q.group
    each = numbers.beside_bytes if model.experts else numbers.weight_bytes
    beside = model.layers * model.attention_parameters
    beside += (model.layers - model.moe_layers) * model.dense_ffn_parameters
    beside += model.moe_layers * model.shared_ffn_parameters
    head = model.vocab * model.hidden
    routed = model.moe_layers * model.experts * model.expert_parameters
    return {
        "weights": (beside * each + head * 2) / inside,
        "expert_weights": routed * numbers.weight_bytes / q.group,
        "expert_share": model.top_k / model.experts if model.experts else 0.0,
        "flops_token": 2.0 * beside / q.group,
        "expert_flops_token": 2.0 * model.moe_layers * model.top_k * model.expert_parameters / q.group,
        "logits_sequence": model.vocab * 2.0 / q.group,
    }


def _exchange(q: Question) -> dict[str, float]:
    """Bytes per token of the group that a device sends, the rate, and how many steps of latency a layer has."""
    model, group = q.model, q.group
    which = q.chip
    domain = (which.scaleup_chips or 1) * q.cores
    up = (which.scaleup_bytes_per_s or UNKNOWN_LINK_BYTES_PER_S) / q.cores
    out = (which.scaleout_bytes_per_s or UNKNOWN_LINK_BYTES_PER_S) / q.cores
    if group == 1:
        return {"comm_token": 0.0, "comm_rate": up, "hops": 0.0, "reduces": 0.0}
    if q.spread:
        size = group if group <= domain else group / domain
        copies = size * (1 - (1 - 1 / size) ** model.top_k)
        copies = min(copies, model.router_groups) if group > domain and model.router_groups else copies
        # Decoding goes straight to each expert's device: fewer steps, more copies.
        copies = float(model.top_k) if q.load == "decode" else copies
        moved = model.moe_layers * model.hidden * 3.0 * copies * (1 - 1 / size) / group
        return {"comm_token": moved, "comm_rate": up if group <= domain else out, "hops": 1.0, "reduces": 2.0}
    moved = model.layers * 2 * 2.0 * (group - 1) / group * model.hidden * 2.0
    inside = min(group, domain)
    rate = up if group <= domain else min(up, out * inside)
    hops = 1.0 if group <= domain else 1.0 + 3 * float(np.log2(group / domain))
    return {"comm_token": moved, "comm_rate": rate, "hops": hops, "reduces": 2.0}


def _attention(q: Question) -> dict[str, float]:
    model = q.model
    heads = model.heads / q.group
    middle = q.isl + q.osl / 2 if q.load != "decode" else q.isl
    mean = 1.0
    if q.engine == "neuron":
        middle = bucket(middle)
        mean = float(np.mean([bucket(q.isl + q.osl * part / 16) for part in range(1, 17)])) / middle
    cached = kv_bytes_token_layer(q)
    if model.kv_lora:
        per_key = 2.0 * heads * (2 * model.kv_lora + model.rope_dim)
    else:
        per_key = 2.0 * heads * (model.qk_dim + model.v_dim)
    held = q.isl + q.osl if q.load != "decode" else q.isl
    return {
        "kv_read": contexts(model, middle) * cached,
        "kv_mean": mean,
        "kv_hold": contexts(model, held) * cached,
        "attention_flops": contexts(model, middle) * per_key,
        "prefill_attention_flops": 2.0 * heads * (model.qk_dim + model.v_dim) * contexts(model, q.isl / 2),
    }


def row(q: Question) -> dict[str, float]:
    """One question as plain numbers."""
    model, which = q.model, q.chip
    weights = _weights(q)
    whole = (
        weights["weights"]
        + weights["expert_weights"]
        + (0 if model.tied else model.vocab * model.hidden * 2 / q.group)
    )
    room = which.memory_bytes / q.cores * MEMORY_SHARE
    moved = model.layers * model.hidden * 2.0 / (q.group if q.spread else 1)
    moved += model.moe_layers * model.top_k * model.hidden * 2.0 * 0.4 / q.group
    return {
        **weights, **_exchange(q), **_attention(q),
        "elementwise_token": moved, "layers": model.layers, "moe_layers": model.moe_layers,
        "rate": peak(which, q.numbers.compute) * achieved_share(which, q.numbers.compute) / q.cores,
        "rate_bf16": peak(which, "bf16") * achieved_share(which, "bf16") / q.cores,
        "memory_rate": which.memory_bytes_per_s / q.cores, "free": room - whole, "group": q.group,
        "replicas": q.replicas, "isl": q.isl, "osl": max(1, q.osl), "batch": q.batch, "qps": q.qps, "year": q.year,
        "host": HOST[q.engine] * (3.0 if q.engine in ("vllm", "other") and q.year < V1 else 1.0),
        "is_neuron": q.engine == "neuron", "is_amd": which.vendor == "AMD",
        "is_fp4": q.numbers.compute == "fp4" and "fp4" in which.peaks,
        "is_max": q.load == "max", "is_static": q.load == "static", "is_qps": q.load == "qps",
        "is_prefill": q.load == "prefill", "is_decode": q.load == "decode", "is_split": q.disaggregated,
        "is_spread": q.spread,
    }  # fmt: skip


def columns(questions: Sequence[Question]) -> Columns:
    """Columns of so many rows."""
    rows = [row(q) for q in questions]
    return Columns(**{name: np.array([each[name] for each in rows], dtype=np.float64) for name in NAMES})
