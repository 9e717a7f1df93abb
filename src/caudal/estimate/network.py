"""Collectives on two levels of network: inside a scale-up domain (NVLink, NeuronLink) and between domains.

Bandwidth and a latency per hop; rings that use every link of a domain at once, as NCCL's do. Columns in, seconds
out. Knows nothing of models. Congestion, routing and failed links are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caudal.estimate.case import Vector

NEIGHBOURS: Vector = np.array(1.0)
"""The stride of ranks that follow each other."""


@dataclass(frozen=True)
class Network:
    """Rates are what collectives reach, bytes per second and unit, one way."""

    up_rate: Vector
    out_rate: Vector
    domain: Vector
    hop_s: float


def in_domain(network: Network, size: Vector, stride: Vector) -> Vector:
    """Ranks of a group of `size`, `stride` units apart, that share a scale-up domain."""
    return np.clip(np.floor(network.domain / stride), 1, size)


def gather(network: Network, total_bytes: Vector, size: Vector, stride: Vector) -> Vector:
    """All-gather (or reduce-scatter) of `total_bytes`, which every rank holds whole afterwards (before)."""
    inside = in_domain(network, size, stride)
    up = total_bytes * (1 - 1 / size) / network.up_rate * (inside > 1)
    out = total_bytes * (1 - inside / size) / (inside * network.out_rate)
    hops = np.log2(np.maximum(size, 1))
    return np.maximum(up, out) + hops * network.hop_s


def exchange(
    network: Network, token_bytes: Vector, copies: Vector, size: Vector, once: Vector, most_domains: Vector
) -> Vector:
    """All-to-all of tokens to experts on `size` neighbouring ranks: each token goes to `copies` of them.

    Plain all-to-all sends every copy. Where `once` is 1 a token crosses to a rank, and to a domain, once, however
    many of its experts live there (DeepEP and its like). A router may allow a token `most_domains` (0: all).
    """
    inside = in_domain(network, size, NEIGHBOURS)
    domains = np.maximum(size / inside, 1.0)
    ranks_met = np.where(once > 0, size * (1 - (1 - 1 / size) ** copies), copies)
    domains_met = np.where(once > 0, domains * (1 - (1 - 1 / domains) ** copies), copies)
    domains_met = np.where(most_domains > 0, np.minimum(domains_met, most_domains), domains_met)
    up = token_bytes * ranks_met * (inside - 1) / size / network.up_rate
    # What arrives from other domains is spread inside the domain, too, where it came once for all.
    out = token_bytes * domains_met * (1 - 1 / domains) / network.out_rate
    return np.asarray(np.maximum(up, out) + (size > 1) * network.hop_s * 2)


def send(network: Network, own_bytes: Vector, stride: Vector) -> Vector:
    """To the neighbour that is `stride` units away."""
    rate = np.where(stride < network.domain, network.up_rate, network.out_rate)
    return np.asarray(own_bytes / rate + network.hop_s)
