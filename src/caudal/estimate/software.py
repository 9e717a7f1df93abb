"""Which generation of software computes: the knob that moves the same configuration by a quarter.

Told a framework's name and where a figure was published, it says what family it is and of which year. A release
number says the year where a framework counts by years; an arXiv number says when a paper was written. Knows no
release's speed.
"""

from __future__ import annotations

import re

from caudal.estimate.case import Software

FAMILIES = (
    # pattern, kind, year where nothing says it (None: by the chip)
    (r"llm-?foundry|composer|mosaic", "eager", 2023.7),
    (r"neuron|nxd|optimum", "neuron", None),
    (r"maxtext|jax|pathways|xla|pax|levanter|t5x", "compiled", None),
    (r"torch ?titan.*compile|compile.*torch ?titan", "compiled", 2024.8),
    (r"torch ?titan", "eager", 2024.8),
    (r"metaseq|fairseq", "megatron", 2022.3),
    (r"megatron-?deepspeed|bloom", "megatron", 2022.5),
    (r"megatron-?bridge|megatron-?core|nemo|mcore", "megatron", None),
    (r"megascale|megatron", "megatron", None),
    (
        r"lit-?gpt|lightning|fsdp|accelerate|hf|trainer|deepspeed|torchtune|axolotl|olmo|pytorch",
        "eager",
        None,
    ),
)
"""Who the families are; the years are those of their published figures (2026-11)."""

LAST = 2027.0
TODAY = 2026.9
"""The catalogue's date. Where nothing says which release: midway between the chip's first year and it."""


def software_of(framework: str, published: str, chip_since: float) -> Software:
    """`framework` as a table names it, `published` is where its figures are from (text, address)."""
    name = framework.lower()
    kind, usual = "megatron", None
    for pattern, family, year in FAMILIES:
        if re.search(pattern, name):
            kind, usual = family, year
            break
    return Software(kind, _year(name, published, usual, chip_since))


def _year(name: str, published: str, usual: float | None, chip_since: float) -> float:
    release = re.search(r"\b(2[0-9])\.(0[1-9]|1[0-2])\b", name) or re.search(
        r"\b(2[0-9])\.(0[1-9]|1[0-2])(?:\.\d+)? ?(?:nemo|container)", published.lower()
    )
    if release:
        return min(LAST, 2000 + int(release[1]) + int(release[2]) / 12)
    neuron = re.search(r"neuron (\d)\.(\d+)", name)
    if neuron:  # 2.15 came in October 2023, 2.21 in December 2024
        return 2023.8 + (int(neuron[2]) - 15) * 0.2
    paper = re.search(r"(?:arxiv[^0-9]{0,30}|\b)([12]\d)(0[1-9]|1[0-2])\.\d{4,5}", published.lower())
    if paper:
        return 2000 + int(paper[1]) + int(paper[2]) / 12
    told = re.search(r"\b(20(?:1[89]|2[0-6]))\b", published)
    if told:
        return max(float(told[1]) + 0.5, chip_since)
    if usual is not None:
        return max(usual, chip_since + 0.2)
    return (chip_since + TODAY) / 2
