"""The few numbers of the serving model that no data sheet has. Fitted over all sources together, with priors.

Fitted by `bench/estimate_serving.py`, as `constants` is for training; nothing here is about one source or one model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """Shares are of a rate, factors multiply a time, `_s` are seconds. The defaults are the priors."""

    matmul: float = 0.85
    """Matrix products, of what large ones reach alone."""
    matmul_fp4: float = 0.6
    """The same in fp4, in parts of the above."""
    experts: float = 0.42
    """Grouped products of experts, in parts of plain ones."""
    memory: float = 0.8
    """Of the memory's rate, reading weights."""
    kv: float = 0.75
    """The same, reading cached keys and values."""
    attention: float = 0.6
    """Attention, of what matrix products reach in bf16."""
    links: float = 0.6
    """Of the scale-up links."""
    elementwise: float = 10.0
    """Passes over a layer's activations."""
    logits: float = 6.0
    """Passes over the logits, with sampling."""
    layer_s: float = 16e-6
    """Small kernels of a layer, launched as a graph."""
    expert_layer_s: float = 20e-6
    """More, where the layer has experts."""
    reduce_s: float = 8e-6
    """Latency of one collective inside a domain; as much again for each step between domains."""
    host_s: float = 1e-3
    """Scheduling and sampling, once an iteration."""
    sequence_s: float = 2e-6
    """The host's part that grows with the sequences in an iteration."""
    launch_s: float = 3e-4
    """Launching a layer in prefill, which no graph holds."""
    occupied: float = 0.9
    """Of the sequences that fit, in flight on average."""
    burst: float = 1.0
    """Prompts in front of one in a closed loop, in parts of sqrt(clients) - 1."""
    old: float = 1.08
    """What all costs more in an engine a year older."""
    amd: float = 1.5
    """Time on AMD, in parts of the same data sheet's at NVIDIA."""
    neuron_matmul: float = 0.5
    """Matrix products of prefill on Neuron."""
    neuron_memory: float = 0.7
    """Reading weights on Neuron."""
    neuron_kv: float = 0.35
    """Reading the cache on Neuron."""
    neuron_links: float = 0.35
    """Links of Neuron devices."""
    neuron_layer_s: float = 1.5e-4
    """A layer on Neuron: kernels and collectives of many cores."""
    overlap: float = 0.7
    """Part of computing behind which nodes that only prefill or only decode hide their exchange."""
    neuron_attention: float = 0.1
    """Attention of prompts on Neuron, of what matrix products reach in bf16."""
    neuron_prompt_s: float = 5e-3
    """Once a prefill on Neuron: the host, and moving the cache."""
    split_s: float = 0.1
    """From a prefill pool to a decode pool: routing, transfer of the cache."""


FITTED = Serving(
    matmul=0.8588,
    matmul_fp4=0.509,
    experts=0.3741,
    memory=0.7741,
    kv=0.8602,
    attention=0.7067,
    links=0.566,
    elementwise=11.09,
    logits=5.981,
    layer_s=1.82e-05,
    expert_layer_s=1.856e-05,
    reduce_s=8.889e-06,
    host_s=0.0009997,
    sequence_s=2.065e-06,
    launch_s=0.0003231,
    occupied=0.8752,
    burst=1.17,
    old=1.089,
    amd=1.438,
    neuron_matmul=0.6943,
    neuron_memory=0.6829,
    neuron_kv=0.4955,
    neuron_links=0.5018,
    neuron_layer_s=0.0001586,
    overlap=0.9823,
    neuron_attention=0.04907,
    neuron_prompt_s=0.006057,
    split_s=0.08252,
)
"""Fitted on the open rows of 2026-11."""
