"""Whether a machine is what was promised: looked at once, before anything is placed on it.

`look` asks the machine; `faults` compares, and is pure. What no tool can say is unknown, and what was promised and is
unknown is a fault.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOL_S = 20.0
MEMORY_SLACK = 0.9
"""The kernel and the firmware keep some of what a machine is sold with."""

ACCELERATOR_SLACK = 0.9
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What there is. Bytes; `accelerators` the memory of each GPU; None: no tool says. `links`: bytes a second to each
    peer, None where it did not answer."""

    cpus: int
    memory_bytes: int
    disk_free_bytes: int
    accelerators: tuple[int, ...] | None = None
    neuron_cores: int | None = None
    links: tuple[tuple[str, float | None], ...] = ()


def look(folder: Path) -> Found:
    """Ask this machine."""
    return Found(
        len(os.sched_getaffinity(0)),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shutil.disk_usage(folder).free,
        read_gpus(_tool(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"])),
        read_neuron(_tool(["neuron-ls", "--json-output"])),
    )


def read_gpus(text: str | None) -> tuple[int, ...] | None:
    """The bytes of each GPU, from nvidia-smi's MiB. A line that is no number is a GPU that is not well: 0."""
    if text is None:
        return None
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(int(row) * MIB if row.isdigit() else 0 for row in rows)


def read_neuron(text: str | None) -> int | None:
    """The cores that neuron-ls lists (`nc_count` of each device)."""
    if text is None:
        return None
    try:
        return sum(int(row["nc_count"]) for row in json.loads(text))
    except (ValueError, KeyError, TypeError):
        return None


def faults(promised: Mapping[str, float], found: Found, link_least_bytes_per_s: float = 0.0) -> Sequence[str]:
    """What is less than was promised, each in a few words; empty: all is well."""
    said = []
    if found.cpus < promised.get("cpus", 0):
        said.append(f"{found.cpus} cores of {promised['cpus']:g}")
    if found.memory_bytes < promised.get("memory_bytes", 0) * MEMORY_SLACK:
        said.append(f"{found.memory_bytes} bytes of memory of {promised['memory_bytes']:.0f}")
    if found.disk_free_bytes < promised.get("disk_bytes", 0):
        said.append(f"{found.disk_free_bytes} bytes of disk free of {promised['disk_bytes']:.0f}")
    wanted = int(promised.get("accelerators", 0))
    if wanted and found.accelerators is None:
        said.append(f"nvidia-smi says nothing, and {wanted} GPUs are promised")
    elif wanted and len(found.accelerators or ()) < wanted:
        said.append(f"{len(found.accelerators or ())} GPUs of {wanted}")
    elif wanted:
        least = promised.get("accelerator_memory_bytes", 0) * ACCELERATOR_SLACK
        small = [size for size in found.accelerators or () if size < max(least, 1)]
        if small:
            said.append(f"a GPU has {small[0]} bytes of memory of {promised['accelerator_memory_bytes']:.0f}")
    cores = int(promised.get("neuron_cores", 0))
    if cores and found.neuron_cores is None:
        said.append(f"neuron-ls says nothing, and {cores} Neuron cores are promised")
    elif cores and (found.neuron_cores or 0) < cores:
        said.append(f"{found.neuron_cores} Neuron cores of {cores}")
    if link_least_bytes_per_s:
        for peer, rate in found.links:
            if rate is None:
                said.append(f"no link to {peer}")
            elif rate < link_least_bytes_per_s:
                said.append(f"{rate:.0f} bytes/s to {peer}, and {link_least_bytes_per_s:.0f} are needed")
    return said


def _tool(argv: Sequence[str]) -> str | None:
    """What a tool prints; None where it is not there, fails or hangs (a GPU that has fallen off makes it hang)."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
