"""What an estimate of training is made from, one column per quantity and one row per case.

`Job` is a model on chips with a batch; `Layout` is how it lies on them; `Software` is who computes it. `case`
turns any number of them into columns, so that one formula serves a single question, a table of measurements, and
a search over a hundred thousand layouts. Decides nothing and knows no formulas of time or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from caudal.catalog.chips import Chip, chip
from caudal.domain.transformer import Transformer

Vector = npt.NDArray[np.float64]

RECOMPUTE = ("none", "selective", "full")
AS_NEEDED = -1.0
"""Recomputation that nobody stated: as much of it as memory asks for."""

PRECISIONS = ("fp32", "bf16", "fp8", "mxfp8", "fp4")
"""`fp8` scales per tensor; `mxfp8` per block; `fp4` is nvfp4, per block with a rotation."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model lies on chips: `chips` (or cores) = tp · pp · dp · cp; experts lie on `ep` of dp · cp · tp.

    `zero` is 0 to 3: what is sharded over data-parallel ranks (1 optimizer, 2 gradients, 3 weights, gathered
    anew for every micro-batch: FSDP). `shard` is over how many of them (0: over all; fewer is HSDP).
    `recompute` is 0 none, 1 selective, 2 full, AS_NEEDED where nobody said.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1
    vp: int = 1
    zero: int = 1
    shard: int = 0
    micro_batch: int = 1
    recompute: float = AS_NEEDED
    sequence_parallel: bool = True

    @property
    def chips(self) -> int:
        """Chips, or cores, that it takes."""
        return self.tp * self.pp * self.dp * self.cp


@dataclass(frozen=True, slots=True)
class Software:
    """Who computes. `year` (decimals) is when the software was released: the generation knob.

    `kind` is the family of framework: `megatron` (fused kernels, hand-placed communication), `eager` (PyTorch
    FSDP and the like, few fusions), `compiled` (XLA, torch.compile) or `neuron`.
    """

    kind: str = "megatron"
    year: float = 2025.5


@dataclass(frozen=True, slots=True)
class Job:
    """One model on one kind of chip. `global_batch` counts sequences of `seq_len` tokens."""

    model: Transformer
    chip: Chip
    chips: int
    seq_len: int
    global_batch: int
    precision: str = "bf16"
    software: Software = Software()


@dataclass(frozen=True)
class Case:
    """Columns that broadcast against each other. Sizes in elements, rates per second, per unit (chip or core)."""

    # the model
    layers: Vector
    moe_layers: Vector
    hidden: Vector
    q_width: Vector
    kv_width: Vector
    v_width: Vector
    heads: Vector
    attention_parameters: Vector
    ffn: Vector
    matrices: Vector
    experts: Vector
    top_k: Vector
    expert_ffn: Vector
    shared_ffn: Vector
    vocab: Vector
    tied: Vector
    latent: Vector
    sinks: Vector
    context: Vector
    most_domains: Vector
    # the chip
    peak_bf16: Vector
    peak_low: Vector
    share_bf16: Vector
    share_low: Vector
    memory: Vector
    memory_rate: Vector
    up_rate: Vector
    up_domain: Vector
    out_rate: Vector
    is_neuron: Vector
    is_tpu: Vector
    is_amd: Vector
    is_hopper: Vector
    chip_year: Vector
    # the software
    year: Vector
    is_eager: Vector
    is_compiled: Vector
    # precision of the matrix products: 0 bf16, 1 fp8, 2 mxfp8, 3 fp4
    low: Vector
    # the batch
    seq: Vector
    batch: Vector
    units: Vector
    # the layout
    tp: Vector
    pp: Vector
    dp: Vector
    ep: Vector
    cp: Vector
    vp: Vector
    zero: Vector
    shard: Vector
    micro_batch: Vector
    recompute: Vector
    sequence_parallel: Vector


FIELDS = tuple(field.name for field in fields(Case))
LAYOUT_FIELDS = (
    "tp", "pp", "dp", "ep", "cp", "vp", "zero", "shard", "micro_batch", "recompute", "sequence_parallel",
)  # fmt: skip

UNKNOWN_LINK_BYTES_PER_S = 50e9
"""Where no source says how fast a chip's links are: the estimate says so, and its interval is the wide one."""

HOST_LINK_BYTES_PER_S = 25e9


def mean_context(model: Transformer, seq_len: int) -> float:
    """Keys that a token attends to on average, over layers: half the sequence, or the window's."""
    full = seq_len / 2
    if not model.window or model.window >= seq_len:
        return full
    window = model.window - model.window**2 / (2 * seq_len)
    return model.window_share * window + (1 - model.window_share) * full


def _low(precision: str) -> int:
    return {"fp8": 1, "mxfp8": 2, "fp4": 3}.get(precision, 0)


def peak(which: Chip, precision: str) -> float:
    """Dense FLOP/s of the precision that the matrix products run in; that of the next better one where the chip
    has no such units (an A100 in fp8 computes in bf16)."""
    bf16 = which.peaks.get("bf16", which.peaks.get("fp8", 0.0) / 2)
    if precision == "fp32":
        return bf16 / 2
    if precision in ("fp8", "mxfp8"):
        return which.peaks.get("fp8", bf16)
    if precision == "fp4":
        return which.peaks.get("fp4", which.peaks.get("fp8", bf16))
    return bf16


NVIDIA_SHARE, OTHER_SHARE, LARGEST_SHARE = 0.76, 0.72, 0.92
"""Of the peak that large matrix products reach where nobody published a measurement: between the measured 0.73
(GB200) and 0.80 (H100); for others a guess that the interval covers."""


def achieved_share(which: Chip, precision: str) -> float:
    """Part of the peak that large matrix products reach at best: measured, or of the measured chip of the same
    design, by power, since power is what limits them (the same silicon with more watts runs faster)."""
    kind = "bf16" if precision in ("bf16", "fp32") else "fp8"
    measured = chip(which.like) if which.like and "bf16" not in which.achieved else which
    assert measured is not None, which.like
    bf16 = measured.achieved.get("bf16", 0.0) / measured.peaks.get("bf16", 1.0)
    if not bf16:
        return NVIDIA_SHARE if which.vendor == "NVIDIA" else OTHER_SHARE
    share = bf16 * 0.93
    if kind == "bf16" or kind in measured.achieved:
        share = measured.achieved[kind] / measured.peaks[kind]
    if measured is which or not (which.watts and measured.watts):
        return share
    per_flop = (which.watts / measured.watts) / (which.peaks["bf16"] / measured.peaks["bf16"])
    return min(LARGEST_SHARE, share * per_flop)


def _of_model(model: Transformer, seq_len: int) -> dict[str, float]:
    return {
        "layers": model.layers, "moe_layers": model.moe_layers, "hidden": model.hidden,
        "q_width": model.heads * model.qk_dim, "kv_width": model.kv_heads * model.qk_dim,
        "v_width": model.heads * model.v_dim, "heads": model.heads,
        "attention_parameters": model.attention_parameters, "ffn": model.ffn, "matrices": model.matrices,
        "experts": model.experts, "top_k": model.top_k, "expert_ffn": model.expert_ffn,
        "shared_ffn": model.shared_ffn, "vocab": model.vocab, "tied": model.tied,
        "latent": bool(model.kv_lora), "sinks": model.sinks, "context": mean_context(model, seq_len),
        "most_domains": model.router_groups,
    }  # fmt: skip


def _of_chip(job: Job, cores: int) -> dict[str, float]:
    which = job.chip
    domain = which.scaleup_chips or 1
    low = _low(job.precision)
    return {
        "peak_bf16": peak(which, "fp32" if job.precision == "fp32" else "bf16") / cores,
        "peak_low": peak(which, job.precision) / cores,
        "share_bf16": achieved_share(which, "bf16"),
        "share_low": achieved_share(which, job.precision),
        "memory": which.memory_bytes / cores, "memory_rate": which.memory_bytes_per_s / cores,
        "up_rate": (which.scaleup_bytes_per_s or UNKNOWN_LINK_BYTES_PER_S) / cores,
        "up_domain": domain * cores,
        "out_rate": (which.scaleout_bytes_per_s or HOST_LINK_BYTES_PER_S) / cores,
        "is_neuron": which.vendor == "AWS", "is_tpu": which.vendor == "Google", "is_amd": which.vendor == "AMD",
        "is_hopper": 2022.5 < which.since < 2024.9 and which.vendor == "NVIDIA",
        "chip_year": which.since, "low": low,
    }  # fmt: skip


def columns_of(job: Job, layout: Layout) -> dict[str, float]:
    """One case as plain numbers. A layout that takes a multiple of the chips counts their cores."""
    cores = layout.chips // job.chips if layout.chips > job.chips and layout.chips % job.chips == 0 else 1
    software = job.software
    return {
        **_of_model(job.model, job.seq_len),
        **_of_chip(job, cores),
        "year": software.year,
        "is_eager": software.kind == "eager",
        "is_compiled": software.kind == "compiled",
        "seq": job.seq_len,
        "batch": job.global_batch,
        "units": layout.chips,
        **{name: getattr(layout, name) for name in LAYOUT_FIELDS},
    }


def case(pairs: Sequence[tuple[Job, Layout]]) -> Case:
    """Columns of so many rows."""
    rows = [columns_of(job, layout) for job, layout in pairs]
    return Case(**{name: np.array([row[name] for row in rows], dtype=np.float64) for name in FIELDS})


def grid(job: Job, layouts: dict[str, Vector]) -> Case:
    """One job in many layouts: the job's columns are scalars that broadcast."""
    some = columns_of(job, Layout(dp=job.chips * job.chip.cores))
    made: dict[str, Any] = {name: np.float64(some[name]) for name in FIELDS}
    made.update(layouts)
    made["units"] = made["tp"] * made["pp"] * made["dp"] * made["cp"]
    return Case(**made)
