"""Accelerators: what they compute at most, by precision, and their memory; each with its source and date.

All peaks are dense (makers like to print the twofold figure with sparsity) and per device as a framework sees it.
What no source says is left out: unknown gives no figure rather than a wrong one. Measures nothing; whether a
device reaches its peak is another matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

GB = 10**9
GIB = 2**30
TERA = 1e12
SEEN = "2026-11-25"

_A100 = "nvidia.com: A100 datasheet 1758950-r4 (dense column)"
_H100 = "resources.nvidia.com: H100 datasheet (half of the figures with sparsity)"
_H200 = "nvidia.com: H200 datasheet (half of the figures with sparsity)"
_BLACKWELL = "NVIDIA Blackwell architecture technical brief, in glennklockwood.com/garden/processors/B200"
_ADA = "nvidia.com: L4 and L40S datasheets (dense: half of the figures with sparsity)"
_A10G = "NVIDIA A10G datasheet for AWS G5 (dense column); the A10's own 125 is another card's"
_T4 = "nvidia.com: T4 datasheet 951643"
_V100 = "images.nvidia.com: V100 datasheet 1165301-r5"
_NEURON = "awsdocs-neuron.readthedocs-hosted.com: chip architecture pages"
_MI300X = "amd.com: Instinct MI300X data sheet"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`peaks` are dense FLOP/s by precision: `bfloat16`, `float16`, `tf32` (single precision through tensor
    cores), `float32`. `names` is a pattern for the whole of what `torch.cuda.get_device_name()` says; empty
    where torch knows it under no such name. `as_of` is when the source was read."""

    name: str
    memory_bytes: int
    peaks: Mapping[str, float]
    names: str
    source: str
    as_of: str = SEEN


def _peaks(half: float, tf32: float = 0.0, single: float = 0.0, *, bf16: bool = True) -> dict[str, float]:
    """From TFLOP/s; 0 is unknown, or not there."""
    said = {"bfloat16": half if bf16 else 0.0, "float16": half, "tf32": tf32, "float32": single}
    return {precision: tera * TERA for precision, tera in said.items() if tera}


ACCELERATORS = (
    Accelerator("A100-40GB", 40 * GB, _peaks(312, 156, 19.5), r"NVIDIA A100-(SXM4|PCIE)-40GB", _A100),
    Accelerator("A100-80GB", 80 * GB, _peaks(312, 156, 19.5), r"NVIDIA A100(-SXM4-80GB| 80GB PCIe)", _A100),
    Accelerator("H100-SXM", 80 * GB, _peaks(989.5, 494.5, 67), r"NVIDIA H100 80GB HBM3", _H100),
    Accelerator("H100-PCIe", 80 * GB, _peaks(756.5, 378, 51), r"NVIDIA H100 PCIe", _H100),
    Accelerator("H200", 141 * GB, _peaks(989.5, 494.5, 67), r"NVIDIA H200", _H200),
    Accelerator("B200", 180 * GB, _peaks(2250, 1100, 80), r"NVIDIA B200", _BLACKWELL),
    Accelerator("GB200", 186 * GB, _peaks(2500, 1250, 90), r"NVIDIA GB200", _BLACKWELL),
    Accelerator("L4", 24 * GB, _peaks(121, 60, 30.3), r"NVIDIA L4", _ADA),
    Accelerator("L40S", 48 * GB, _peaks(362.05, 183, 91.6), r"NVIDIA L40S", _ADA),
    Accelerator("A10G", 24 * GB, _peaks(70, 35, 35), r"NVIDIA A10G", _A10G),
    Accelerator("T4", 16 * GB, _peaks(65, 0, 8.1, bf16=False), r"(NVIDIA |Tesla )T4", _T4),
    Accelerator("V100-SXM2-16GB", 16 * GB, _peaks(125, 0, 15.7, bf16=False), r"Tesla V100-SXM2-16GB", _V100),
    Accelerator("V100-SXM2-32GB", 32 * GB, _peaks(125, 0, 15.7, bf16=False), r"Tesla V100-SXM2-32GB", _V100),
    Accelerator("V100-PCIe-16GB", 16 * GB, _peaks(112, 0, 14, bf16=False), r"Tesla V100-PCIE-16GB", _V100),
    Accelerator("V100-PCIe-32GB", 32 * GB, _peaks(112, 0, 14, bf16=False), r"Tesla V100-PCIE-32GB", _V100),
    Accelerator("MI300X", 192 * GB, _peaks(1307.4, 653.7, 163.4), r"AMD Instinct MI300X( OAM)?", _MI300X),
    Accelerator("Trainium1", 32 * GIB, _peaks(190, 190, 47.5), "", _NEURON),
    Accelerator("Trainium2", 96 * GIB, _peaks(667, 667, 181), "", _NEURON),
    Accelerator("Inferentia2", 32 * GIB, _peaks(190, 190, 47.5), "", _NEURON),
)


def accelerator(device_name: str) -> Accelerator | None:
    """The accelerator that a device says it is, by torch's name for it or by ours; None where it is not known."""
    for known in ACCELERATORS:
        if device_name == known.name or (known.names and re.fullmatch(known.names, device_name)):
            return known
    return None


def peak_flops_per_s(device_name: str, precision: str) -> float | None:
    """What one such device computes at most in that precision, dense; None where that is not known."""
    known = accelerator(device_name)
    return known.peaks.get(precision) if known is not None else None
