"""Memory of one chip while it trains, item by item: weights, gradients, optimizer, activations, buffers.

Megatron's mixed precision: weights in 2 bytes, gradients in 4 (2 where weights are sharded, as FSDP has them),
AdamW with an fp32 copy of the weights and two moments, 12. Activations per layer and token as counted by Korthikanti et al.
(2205.05198, 34·h + 5·a·s) and by what fused kernels keep since. Columns in, bytes out. Does not know fragmentation
beyond a share, nor what a recipe moves to the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caudal.estimate.case import Case, Vector

WEIGHT_BYTES = 2.0
GRADIENT_BYTES = 4.0
OPTIMIZER_BYTES = 12.0
CONTEXT_BYTES = 1.6e9
"""Driver, libraries and communication buffers of one process (NCCL's channels grow with the groups)."""
FRAGMENTED = 0.03
"""Part of the changing memory that the allocator cannot use."""
USABLE = 0.99
"""Part of a chip's memory that may be planned with."""
LOGIT_BYTES = 6.0
"""In two bytes and, for the loss, in four; the gradient takes the place of what is done with."""
GATHERED_BYTES = 6.0
"""Of FSDP's units: the weights of one in use and of the next, and the gradients of one."""
LARGEST_UNIT = 2e9
"""Parameters gathered at once: larger layers are cut into several units (DeepSpeed's limit is 1e9 alive)."""
FLASH_SINCE = 2022.5
"""FlashAttention (2205.14135) was published in May 2022; before, scores were stored."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one unit (chip or core) by item, and how much recomputation was taken (0 none to 1 full)."""

    weights: Vector
    gradients: Vector
    optimizer: Vector
    activations: Vector
    buffers: Vector
    fragmentation: Vector
    recomputed: Vector

    @property
    def total(self) -> Vector:
        """Of all items."""
        whole = self.weights + self.gradients + self.optimizer + self.activations + self.buffers
        return np.asarray(whole + self.fragmentation)


FEW_EXPERTS = 16
"""Up to so many (Grok-1, Mixtral, DBRX) recipes split each expert over the tensor-parallel ranks."""


def stage_layers(c: Case) -> Vector:
    """Layers of the fullest pipeline stage."""
    return np.asarray(np.ceil(c.layers / c.pp - 1e-9))


def local_parameters(c: Case) -> tuple[Vector, Vector]:
    """Parameters of the fullest pipeline stage on one unit, before sharding over data: shared ones, experts'."""
    per_layer = c.attention_parameters / c.tp
    dense_ffn = c.matrices * c.hidden * c.ffn / c.tp
    shared = (c.matrices * c.hidden * c.shared_ffn + c.hidden * c.experts) / c.tp
    stage = stage_layers(c)
    moe_stage = stage * c.moe_layers / c.layers
    table = c.vocab * c.hidden / c.tp
    tables = np.where(c.pp > 1, 1.0, np.where(c.tied > 0, 1.0, 2.0))
    plain = stage * per_layer + (stage - moe_stage) * dense_ffn + moe_stage * shared + tables * table
    experts = moe_stage * c.experts * c.matrices * c.hidden * c.expert_ffn / (c.ep * expert_tp(c))
    return np.asarray(plain), np.asarray(experts)


def expert_tp(c: Case) -> Vector:
    """Tensor parallelism of experts: few large ones are split as the rest is, many small ones lie whole."""
    whole = (c.ep > 1) & (c.experts > FEW_EXPERTS)
    return np.asarray(np.where(whole, 1.0, c.tp))


def expert_data(c: Case) -> Vector:
    """Ranks that hold the same experts."""
    return np.maximum(1.0, c.dp * c.cp * c.tp / (c.ep * expert_tp(c)))


def layer_activation_bytes(c: Case, recomputed_scores: Vector) -> Vector:
    """What one layer keeps of one micro-batch on one unit, without recomputation."""
    tokens = c.micro_batch * c.seq / c.cp
    spread = np.where(c.sequence_parallel > 0, c.tp, 1.0)
    moe = c.moe_layers / c.layers
    # Transformer Engine keeps the inputs of matrix products in one byte; PyTorch keeps them as they came.
    low = np.where((c.low > 0) & (c.is_eager + c.is_compiled == 0), 0.75, 1.0)
    norms = np.where(c.year < FLASH_SINCE, 10.0, 8.0) * c.hidden / spread
    attention = 2.0 * (c.q_width + 2 * c.kv_width + c.v_width) / c.tp * low
    # A plain activation keeps its input and its output; a gated one both inputs and the product, and unfused
    # kernels the activated gate, too.
    kept = c.matrices + np.where((c.is_eager > 0) & (c.matrices > 2), 1.0, 0.0)
    dense = 2.0 * kept * c.ffn / c.tp * low
    shared = 2.0 * kept * c.shared_ffn / c.tp * low
    routed = c.top_k * (2.0 * kept * c.expert_ffn + 4.0 * c.hidden) / c.tp * low
    ffn = (1 - moe) * dense + moe * (shared + routed)
    scores = 5.0 * c.heads * c.seq / c.tp * (c.year < FLASH_SINCE) * (1 - recomputed_scores)
    return np.asarray(tokens * (norms + attention + ffn + scores))


def _in_flight(c: Case) -> Vector:
    """Micro-batches' worth of one stage's layers that the first stage holds at once (1F1B, interleaved)."""
    batches = np.maximum(1.0, c.batch / (c.dp * c.micro_batch))
    held = np.where(c.vp > 1, c.pp * (1 + (c.pp - 1) / (c.pp * c.vp)), c.pp)
    return np.minimum(held, np.maximum(batches, 1.0))


def memory(c: Case) -> Memory:
    """Bytes per unit of every case. Where `recompute` is AS_NEEDED, as much is recomputed as makes it fit."""
    plain, experts = local_parameters(c)
    data = np.where(c.shard > 0, c.shard, c.dp) * c.cp
    whole = plain + experts
    over = plain / data + experts / expert_data(c)
    fully = c.zero >= 3
    weights = WEIGHT_BYTES * np.where(fully, over, whole)
    gradient = np.where(
        fully, 2.0 * over, np.where(c.zero >= 2, GRADIENT_BYTES * over, GRADIENT_BYTES * whole)
    )
    optimizer = OPTIMIZER_BYTES * np.where(c.zero >= 1, over, whole)
    tokens = c.micro_batch * c.seq / c.cp
    layers = stage_layers(c)
    logits = LOGIT_BYTES * tokens * c.vocab / c.tp
    gathered = np.where(
        fully, GATHERED_BYTES * np.minimum(whole / np.maximum(layers, 1.0), LARGEST_UNIT), 0.0
    )
    spread = np.where(c.sequence_parallel > 0, c.tp, 1.0)
    boundary = 2.0 * tokens * c.hidden / spread
    stated = c.recompute
    scores = np.where(stated == 1, 1.0, 0.0)
    layer = layer_activation_bytes(c, scores)
    flight = _in_flight(c)
    nothing, everything = flight * layers * layer, flight * layers * boundary + layer
    fixed = weights + gradient + optimizer + gathered + CONTEXT_BYTES
    room = (USABLE * c.memory * (1 - 1e-9) - fixed - (1 + FRAGMENTED) * logits) / (1 + FRAGMENTED)
    needed = np.clip((nothing - room) / np.maximum(nothing - everything, 1.0), 0.0, 1.0)
    # In PyTorch's selective checkpointing about every second matrix product is taken again.
    some = np.where((stated == 1) & (c.is_eager + c.is_compiled > 0), 0.5, 0.0)
    part = np.where(stated < 0, needed, np.where(stated == 2, 1.0, some))
    # The logits live while the last stage's own activations do; earlier stages never hold them.
    kept = part * everything + (1 - part) * nothing
    last = np.where(c.pp > 1, kept / np.maximum(flight, 1.0) + logits, kept + logits)
    activations = np.maximum(kept, last)
    return Memory(
        weights=np.asarray(weights),
        gradients=np.asarray(gradient),
        optimizer=np.asarray(optimizer),
        activations=np.asarray(activations),
        buffers=np.asarray(gathered + CONTEXT_BYTES),
        fragmentation=np.asarray(FRAGMENTED * activations),
        recomputed=np.asarray(part),
    )


def allowed_bytes(c: Case) -> Vector:
    """What may be planned with on one unit."""
    return np.asarray(USABLE * c.memory)
