"""The time of one training step, item by item.

A roofline per kind of operation (matrix products with their operands' traffic, attention, elementwise, logits), then
what communication is not hidden, the pipeline's bubble, and the optimizer. Columns in, seconds out. The slowest
pipeline stage sets the pace. Knows no sources: what data sheets do not say is in `constants`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caudal.estimate.case import Case, Vector
from caudal.estimate.constants import FITTED, Constants
from caudal.estimate.network import NEIGHBOURS, Network, exchange, gather, send
from caudal.estimate.training_memory import (
    FLASH_SINCE,
    Memory,
    expert_data,
    expert_tp,
    local_parameters,
    memory,
    stage_layers,
)

HOPPER_KERNELS_SINCE = 2024.5
"""FlashAttention-3 (2407.08608) and cuDNN 9's fused attention: kernels written for Hopper."""
ATTENTION_KERNELS_SINCE = 2024.0
"""FlashAttention-2 (2307.08691) had replaced its forerunner and the Triton kernels in most frameworks by then."""
EXPERTS_RIPE = 2026.5
"""The year in which `constants.experts` and the like are taken."""
PREFETCH_SINCE = 2022.0
"""Fully sharded training prefetches weights, by node and then between nodes, since about then."""
SINKS_SINCE = 2026.6
"""Fused attention with sinks in Megatron's training recipes: release 26.08. Before, scores were stored."""
SENT_ONCE_SINCE = 2025.2
"""DeepEP was published in February 2025: tokens cross a link once."""
OVERLAP_SINCE = 2023.0
"""Megatron-LM's distributed optimizer hides gradients' communication since about 2023."""
RIPE_AFTER_YEARS = 2.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by item, per case."""

    items: dict[str, Vector]
    memory: Memory

    @property
    def total(self) -> Vector:
        """Of all items."""
        whole: Vector = np.asarray(sum(self.items.values()), dtype=np.float64)
        return whole


@dataclass(frozen=True)
class _Rates:
    """FLOP/s and bytes/s that one unit reaches."""

    bf16: Vector
    low: Vector
    attention: Vector
    memory: Vector


def _unripe(c: Case, k: Constants) -> Vector:
    """What mixtures of experts cost more in older software: a factor a year."""
    return np.asarray(k.experts_a_year ** np.clip(EXPERTS_RIPE - c.year, 0.0, 4.0))


def _youth(c: Case, k: Constants) -> Vector:
    age = np.clip((c.year - c.chip_year) / RIPE_AFTER_YEARS, 0.0, 1.0)
    return np.asarray(k.young ** (1 - age))


def _rates(c: Case, k: Constants) -> _Rates:
    vendor = np.where(
        c.is_neuron > 0, k.neuron, np.where(c.is_tpu > 0, k.tpu, np.where(c.is_amd > 0, k.amd, 1.0))
    )
    vendor = vendor / _youth(c, k)
    bf16 = c.peak_bf16 * c.share_bf16 * vendor
    low_share = np.where(c.low >= 3, k.matmul_fp4, np.where(c.low >= 1, k.matmul_low, k.matmul))
    low = c.peak_low * c.share_low * vendor * low_share
    # PyTorch's own attention stayed with FlashAttention-2 for longer.
    hopper = (c.is_hopper > 0) & (c.year < HOPPER_KERNELS_SINCE + np.where(c.is_eager > 0, 2.0, 0.0))
    old = np.where((c.year < ATTENTION_KERNELS_SINCE) & (c.is_neuron == 0), k.attention_old, 1.0)
    attention = bf16 * k.attention * old * np.where(hopper, k.attention_hopper, 1.0)
    return _Rates(bf16 * k.matmul, low, attention, c.memory_rate * 0.9)


def _products(c: Case, k: Constants, r: _Rates, rows: Vector, inner: Vector, outer: Vector) -> Vector:
    """Seconds of one plain matrix product, forward and backward (three of its size)."""
    flops = 6 * rows * inner * outer
    operand = np.where(c.low > 0, 1.0, 2.0)
    traffic = 3 * (operand * (rows * inner + inner * outer) + 2.0 * rows * outer)
    passes = np.where(c.low >= 2, 2.0, np.where(c.low == 1, 1.0, 0.0))
    casts = k.quantise * passes * 3.0 * (2 * rows * inner + inner * outer + rows * outer)
    return np.asarray(flops / r.low + (k.matmul_bytes * traffic + casts) / r.memory)


def _dense_layer(c: Case, k: Constants, r: _Rates, tokens: Vector) -> tuple[Vector, Vector]:
    """Attention's projections, and a dense feed-forward block."""
    heads_out = c.q_width + 2 * c.kv_width
    plain = c.hidden * heads_out + c.v_width * c.hidden
    scale = c.attention_parameters / plain  # of latent attention, whose matrices are others
    projections = scale * (
        _products(c, k, r, tokens, c.hidden, heads_out / c.tp)
        + _products(c, k, r, tokens, c.v_width / c.tp, c.hidden)
    )
    return projections, _feed_forward(c, k, r, tokens, c.ffn / c.tp)


def _feed_forward(c: Case, k: Constants, r: _Rates, tokens: Vector, width: Vector) -> Vector:
    up = _products(c, k, r, tokens, c.hidden, (c.matrices - 1) * width)
    return up + _products(c, k, r, tokens, width, c.hidden)


def _experts(c: Case, k: Constants, r: _Rates, tokens: Vector) -> tuple[Vector, Vector]:
    """Grouped products of the routed experts on one unit, and the traffic of routing."""
    rows = tokens * c.top_k / c.tp
    local = np.maximum(c.experts / c.ep, 1.0)
    split = expert_tp(c)
    each = rows * split / local
    width = c.expert_ffn / split
    tile = 1 + 64.0 / np.maximum(each, 64.0)
    one = _feed_forward(c, k, r, each, width) / k.experts * tile
    routed = k.route * 2.0 * rows * c.hidden / r.memory
    has, unripe = c.experts > 0, _unripe(c, k)
    return np.where(has, unripe * local * one, 0.0), np.where(has, unripe * routed, 0.0)


def _attention(c: Case, k: Constants, r: _Rates, tokens: Vector) -> Vector:
    """Scores and values, forward (1) and backward (2.5), causal; stored scores before fused attention."""
    flops = 2 * (c.q_width + c.v_width) * (c.context + 64) * tokens / c.tp
    stored = (c.year < FLASH_SINCE) | ((c.sinks > 0) & (c.year < SINKS_SINCE))
    passes = np.where(c.year < FLASH_SINCE, k.scores, k.sinks)
    moved = passes * 2.0 * c.heads * c.seq * tokens / c.tp
    unfused = 3 * 2 * flops / (r.bf16 * 0.7) + moved / r.memory
    return np.asarray(np.where(stored, unfused, 3.5 * flops / r.attention))


def _elementwise(c: Case, k: Constants, r: _Rates, tokens: Vector) -> Vector:
    spread = np.where(c.sequence_parallel > 0, c.tp, 1.0)
    moe = c.moe_layers / c.layers
    width = (1 - moe) * c.ffn / c.tp + moe * (c.shared_ffn + c.top_k * c.expert_ffn) / c.tp
    moved = 22.0 * c.hidden / spread + 4.0 * (c.q_width + c.kv_width) / c.tp + 3.5 * c.matrices * width
    # RMS norms and rotary embeddings, written out in PyTorch, are many passes in four bytes each; layer norm is one
    # kernel everywhere. Models with a gated block have the former.
    written_out = 30.0 * c.hidden / spread + 12.0 * (c.q_width + c.kv_width) / c.tp
    moved = moved + np.where((c.is_eager > 0) & (c.matrices > 2), written_out, 0.0)
    factor = k.elementwise * np.where(c.is_eager > 0, k.eager, 1.0)
    return np.asarray(factor * 2.0 * moved * tokens / r.memory)


def _head(c: Case, k: Constants, r: _Rates, tokens: Vector) -> Vector:
    """The vocabulary's product in bf16, and passes over the logits."""
    flops = 6 * tokens * c.hidden * c.vocab / c.tp
    return np.asarray(flops / r.bf16 + k.logits * 2.0 * tokens * c.vocab / c.tp / r.memory)


def _network(c: Case, k: Constants) -> Network:
    return Network(c.up_rate * k.up_share, c.out_rate * k.out_share, c.up_domain, k.hop_s)


def _tensor(c: Case, net: Network, tokens: Vector) -> Vector:
    """Per layer, forward and backward: two gathers and two scatters each way."""
    one = gather(net, 2.0 * tokens * c.hidden, c.tp, NEIGHBOURS)
    return np.asarray(np.where(c.tp > 1, 8 * one, 0.0))


def _context(c: Case, net: Network, tokens: Vector) -> Vector:
    """Keys and values round the ring, forward and backward (twice as much)."""
    total = 2.0 * 2 * c.kv_width / c.tp * tokens * c.cp
    return np.asarray(np.where(c.cp > 1, 3 * gather(net, total, c.cp, c.tp), 0.0))


def _expert_exchange(c: Case, net: Network, tokens: Vector) -> Vector:
    """Dispatch and combine, forward and backward."""
    # Since then inputs of products in one byte also travel as such, on one of the four ways.
    once = np.where(c.year >= SENT_ONCE_SINCE, 1.0, 0.0)
    size = np.where((c.low > 0) & (once > 0), 1.75, 2.0)
    met = exchange(net, size * tokens / c.tp * c.hidden, c.top_k, c.ep, once, c.most_domains)
    return np.asarray(np.where((c.ep > 1) & (c.experts > 0), 4 * met, 0.0))


def _gradients(c: Case, k: Constants, net: Network, compute_s: Vector, stage_s: Vector) -> Vector:
    """Once a step: scatter gradients, gather weights, less what hides behind the last micro-batch."""
    plain, experts = local_parameters(c)
    stride = c.tp
    size = c.dp * c.cp
    scatter = np.where(c.zero >= 1, 4.0, 4.0) * plain
    whole = gather(net, scatter, size, stride) + gather(net, 2.0 * plain, size, stride)
    copies = expert_data(c)
    whole = whole + gather(net, 6.0 * experts, copies, c.ep * expert_tp(c))
    hidden = (
        np.where(c.year >= OVERLAP_SINCE, k.data_hidden, 0.0) * stage_s * np.where(c.pp > 1, c.pp / 2, 1.0)
    )
    return np.asarray(np.where(size > 1, _exposed(whole, hidden), 0.0))


def _exposed(whole: Vector, hidden: Vector) -> Vector:
    """What sticks out, smoothly; never less than a twentieth."""
    gap = whole - hidden
    soft = 0.05 * (np.abs(whole) + np.abs(hidden)) + 1e-9
    return np.asarray(np.maximum(0.5 * (gap + np.sqrt(gap**2 + soft**2)), 0.02 * whole))


def _gathering(c: Case, k: Constants, net: Network, batch_s: Vector) -> Vector:
    """FSDP, per micro-batch: gather weights twice, scatter gradients, less what hides behind computing."""
    plain, experts = local_parameters(c)
    size = np.where(c.shard > 0, c.shard, c.dp) * c.cp
    one = gather(net, 2.0 * plain, size, c.tp)
    copies = expert_data(c)
    more = gather(net, 2.0 * experts, copies, c.ep * expert_tp(c))
    old = np.where((c.year < PREFETCH_SINCE) & (c.is_compiled == 0), 1 / k.sharded_old, 1.0)
    return np.asarray(np.where(c.zero >= 3, _exposed(3 * (one + more) * old, k.gather_hidden * batch_s), 0.0))


def _optimizer(c: Case, r: _Rates) -> Vector:
    plain, experts = local_parameters(c)
    over = plain / (c.dp * c.cp) + experts / expert_data(c)
    return np.asarray(28.0 * np.where(c.zero >= 1, over, plain + experts) / (0.7 * r.memory))


def step_time(c: Case, k: Constants = FITTED) -> StepTime:
    """Seconds per item of every case."""
    m = memory(c)
    r = _rates(c, k)
    net = _network(c, k)
    tokens = c.micro_batch * c.seq / c.cp
    batches = np.maximum(c.batch / (c.dp * c.micro_batch), 1.0)
    moe = c.moe_layers / c.layers
    layers = stage_layers(c)
    again = 1 + m.recomputed / 3
    projections, dense = _dense_layer(c, k, r, tokens)
    grouped, route = _experts(c, k, r, tokens)
    shared = np.where(c.shared_ffn > 0, _feed_forward(c, k, r, tokens, c.shared_ffn / c.tp), 0.0)
    attention = _attention(c, k, r, tokens) * (1 + m.recomputed / 3.5)
    stored = (c.recompute == 1) & (c.year < FLASH_SINCE)
    attention = attention * np.where(stored, 4 / 3, 1.0)
    layer = {
        "matrix products": (projections + (1 - moe) * dense + moe * shared) * again,
        "experts": moe * grouped * again,
        "attention": attention,
        "elementwise": _elementwise(c, k, r, tokens) * again,
        "routing": moe * route * again,
        "tensor parallel": np.where(c.tp > c.up_domain, 1.0, k.tensor_exposed)
        * _tensor(c, net, tokens)
        * (1 + m.recomputed / 2),
        "context parallel": k.tensor_exposed * _context(c, net, tokens),
    }
    exchange_s = k.expert_exposed * _unripe(c, k) * moe * _expert_exchange(c, net, tokens)
    # Behind another micro-batch's computing, where a pipeline has several of them under way.
    hides = (c.year >= SENT_ONCE_SINCE - 0.3) & (c.pp > 1) & (c.ep > 8)
    computing: Vector = np.asarray(
        sum(layer[name] for name in ("matrix products", "experts", "attention", "elementwise"))
    )
    layer["expert parallel"] = np.where(hides, _exposed(exchange_s, k.expert_hidden * computing), exchange_s)
    host = k.launch_s * np.where(c.is_eager > 0, 1.5, 1.0) + moe * k.route_s * _unripe(c, k)
    device = np.asarray(sum(layer.values()))
    layer["launches"] = (device**4 + host**4) ** 0.25 - device
    spread = 1 + k.spread * np.log2(np.maximum(c.units, 1.0))
    items = {name: spread * batches * layers * value for name, value in layer.items()}
    one_layer = np.asarray(sum(layer.values()))
    head = _head(c, k, r, tokens)
    even = layers * c.pp <= c.layers + 1e-6
    head_share = np.where((c.pp > 1) & ~even, 1 / c.pp, 1.0)
    items["vocabulary"] = batches * head * head_share * spread
    stage_s = layers * one_layer + head * head_share
    hop = send(
        net, 2.0 * tokens * c.hidden / np.where(c.sequence_parallel > 0, c.tp, 1.0), c.tp * c.cp * c.dp
    )
    ways = np.where(c.pp > 1, 2 * c.vp, 0.0)
    items["pipeline sends"] = 0.5 * ways * hop * batches
    items["pipeline bubble"] = (c.pp - 1) / c.vp * (layers * one_layer + ways * hop) * spread
    items["gathering weights"] = batches * _gathering(c, k, net, stage_s)
    exposed = _gradients(c, k, net, items["matrix products"], stage_s)
    items["gradients"] = np.where(c.zero >= 3, 0.0, exposed)
    items["optimizer"] = _optimizer(c, r)
    items["once a step"] = k.step_s * np.ones_like(tokens)
    return StepTime({name: np.asarray(value) for name, value in items.items()}, m)
