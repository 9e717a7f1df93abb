"""The few numbers that the step-time model does not know from data sheets.

Fitted once, over all sources together and weighted so that each counts alike (`bench/estimate_fit.py`); each has a
physical meaning and a prior that it may not leave by much. Nothing here is about one source or one model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Shares are of a rate, factors multiply a time, `_s` are seconds. The defaults are the priors."""

    matmul: float = 0.92
    """Matrix products inside a training step, of what they reach alone."""
    matmul_low: float = 0.9
    """The same in fp8."""
    matmul_fp4: float = 0.65
    """The same in fp4."""
    matmul_bytes: float = 0.8
    """Part of the operands' traffic that does not hide behind the arithmetic."""
    quantise: float = 1.0
    """Passes over the operands for scaling them into one byte (twice that per block)."""
    attention: float = 0.7
    """Fused attention, of what matrix products reach alone."""
    attention_hopper: float = 0.5
    """The same before kernels were written for Hopper (2024.5), in parts of the above."""
    attention_old: float = 0.6
    """The same with the kernels before 2024, in parts of the above."""
    scores: float = 12.0
    """Passes over stored attention scores, forward and backward, before fused attention."""
    sinks: float = 6.0
    """The same where later software had no fused attention for a model's softmax."""
    elementwise: float = 1.0
    """Norms, residuals, activations: bytes moved, in parts of what fused kernels must move."""
    eager: float = 2.0
    """The same where few kernels are fused, in parts of the above."""
    logits: float = 10.0
    """Passes over the logits, 2 bytes each."""
    young: float = 1.15
    """Computing on a chip that just came out, in parts of two years later."""
    up_share: float = 0.75
    """Of the scale-up links, in collectives."""
    out_share: float = 0.75
    """Of the scale-out links, in collectives."""
    hop_s: float = 15e-6
    """Latency of one hop of a collective."""
    tensor_exposed: float = 0.6
    """Part of tensor- and context-parallel communication that is not hidden."""
    expert_exposed: float = 0.9
    """The experts' exchange, in parts of what rings' bandwidth says."""
    expert_hidden: float = 0.6
    """Part of the computing behind which the exchange can hide, where software overlaps it."""
    data_hidden: float = 0.8
    """Part of the computing behind which gradients' communication can hide."""
    gather_hidden: float = 0.8
    """The same for FSDP's gathering of weights."""
    experts: float = 0.9
    """Grouped matrix products of experts, in parts of plain ones."""
    route: float = 8.0
    """Passes over what is routed to experts, forward and backward."""
    route_s: float = 4e-3
    """What the host takes for a layer with experts and a micro-batch: it counts where the chip is faster."""
    experts_a_year: float = 1.2
    """What experts, routing and exchange cost more in software a year older."""
    launch_s: float = 4e-4
    """What the host takes to launch a layer, forward and backward: it counts where the chip is faster."""
    step_s: float = 0.05
    """Once a step: data, gradient norm, logging."""
    spread: float = 0.004
    """Slowest of many: per doubling of the chips."""
    neuron: float = 0.75
    """Matrix products on Trainium, in parts of the guess for it."""
    amd: float = 0.95
    """On AMD, in parts of the published measurement."""
    tpu: float = 1.1
    """On TPUs, in parts of the guess for them."""
    sharded_old: float = 0.2
    """Links that FSDP reached in 2021, before prefetching and hierarchical collectives."""


FITTED = Constants(
    matmul=0.8899,
    matmul_low=0.9907,
    matmul_fp4=0.8445,
    matmul_bytes=1.14,
    quantise=1.477,
    attention=0.7432,
    attention_hopper=0.6257,
    attention_old=0.5229,
    scores=9.403,
    sinks=6.375,
    elementwise=0.9446,
    eager=1.197,
    logits=15.17,
    young=1.172,
    up_share=0.793,
    out_share=0.6451,
    hop_s=2.633e-05,
    tensor_exposed=0.4428,
    expert_exposed=1.01,
    expert_hidden=0.6,
    data_hidden=1.284,
    gather_hidden=0.6097,
    experts=1.142,
    route=8.429,
    route_s=0.007618,
    experts_a_year=1.211,
    launch_s=0.0003918,
    step_s=0.09368,
    spread=0.003158,
    neuron=0.7217,
    amd=0.95,
    tpu=1.487,
    sharded_old=0.1464,
)
"""Fitted on the open rows of 2026-11."""
