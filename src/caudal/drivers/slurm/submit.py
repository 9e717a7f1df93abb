"""What sbatch is told: one job per gang, on one node. Pure.

The script names the gang's folder and nothing else: slurmctld keeps scripts and shows them to their owner and to
administrators (`scontrol write batch_script`), so configuration and secrets stay in the folder, which is 0700 on the
file system that the nodes share. What `scontrol show job` and squeue show to everybody is the gang's id, the epoch
and a digest of the token.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from caudal.domain.fleet import Resources, SlurmSpec
from caudal.domain.gang import Role

GPU = "gpu"
NEURON = "neuroncore"
"""The GRES that accelerators and Neuron cores are asked for by: as docs/howto/slurm.md sets them up."""

BOOT = "import sys; sys.path.append(sys.argv[1]); from caudal.drivers.slurm.keeper import main; main(sys.argv[2])"
OF_SERVICES = frozenset({Role.REPLICA, Role.GATEWAY})


@dataclass(frozen=True, slots=True)
class Wish:
    """One gang's job. `node` is empty where any will do."""

    gang_id: str
    role: Role | None
    resources: Resources
    node: str
    comment: str
    output: str


def sbatch(wish: Wish, spec: SlurmSpec) -> list[str]:
    """The command line; the script goes to its standard input."""
    service = wish.role in OF_SERVICES
    partition = (service and spec.service_partition) or spec.partition
    qos = (service and spec.service_qos) or spec.qos
    asked = wish.resources
    memory_mib = math.ceil(asked.memory_bytes / (1 << 20))
    options = {
        "job-name": wish.gang_id,
        "comment": wish.comment,
        "account": spec.account,
        "partition": partition,
        "qos": qos,
        "nodelist": wish.node,
        "cpus-per-task": str(max(1, math.ceil(asked.cpus - 1e-6))),
        "mem": f"{memory_mib}M" if memory_mib else "",
        "gres": gres(asked),
        "output": wish.output.replace("%", "%%"),
    }
    return [
        *("sbatch", "--parsable", "--nodes=1", "--ntasks=1", "--open-mode=append", "--input=/dev/null"),
        "--requeue" if spec.requeue else "--no-requeue",
        *(f"--{name}={value}" for name, value in options.items() if value),
    ]


def gres(asked: Resources) -> str:
    """`gpu:2,neuroncore:8`; empty where nothing of the kind is asked for."""
    counts = ((GPU, asked.accelerators), (NEURON, asked.neuron_cores))
    return ",".join(f"{name}:{count}" for name, count in counts if count)


def script(interpreter: Sequence[str], package_root: PurePath, folder: PurePath) -> str:
    """The batch script. `exec`: so that a signal to the batch shell reaches the keeper itself."""
    command = shlex.join([*interpreter, "-c", BOOT, str(package_root), str(folder)])
    return f"#!/bin/sh\nexec {command}\n"
