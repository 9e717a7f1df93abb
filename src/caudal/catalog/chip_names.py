"""What others call chips, and what the catalogue calls them; and how many a Neuron machine has.

Other catalogues write `A100` and mean one of two chips, and a person who asks for `h100` means any of them. A name that
nobody here knows stays as it was written. Knows the names only, nothing of what a chip can do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from caudal.catalog.chips import DEVICES
from caudal.domain.fleet import MachineType

CORES_PER_CHIP = {"Trainium1": 2, "Trainium2": 8, "Inferentia2": 2}
"""Physical Neuron cores in one chip (AWS Neuron's architecture pages, read 2026-11-29)."""

_PATTERNS = (
    (r"h100([- ]?(sxm5?|hbm3|80gb|mega(-80gb)?))*", "H100-80GB"),
    (r"h100[- ]?nvl([- ]?94gb)?", "H100-NVL"),
    (r"h100[- ]?pcie([- ]?80gb)?", "H100-PCIe"),
    (r"h200([- ]?(sxm5?|141gb))*", "H200-141GB"),
    (r"a100[- ]?((sxm4?|pcie)[- ]?)?80gb([- ](sxm4?|pcie))?", "A100-80GB"),
    (r"a100[- ]?((sxm4?|pcie)[- ]?)?40gb([- ](sxm4?|pcie))?", "A100-40GB"),
    (r"b200([- ]?(sxm|18[0-9]gb|192gb))*", "B200"),
    (r"b300([- ]?(sxm|288gb|270gb))*", "B300"),
    (r"gb200([- ]?(nvl72|186gb|192gb))*", "GB200"),
    (r"gb300([- ]?(nvl72|288gb))*", "GB300"),
    (r"v100([- ]?sxm2)?[- ]?32gb", "V100-32GB"),
    (r"v100([- ]?sxm2)?([- ]?16gb)?", "V100-SXM2-16GB"),
    (r"l40s([- ]?48gb)?", "L40S"),
    (r"l4([- ]?24gb)?", "L4"),
    (r"a10g([- ]?24gb)?", "A10G"),
    (r"t4([- ]?16gb)?", "T4"),
    (r"mi300x?([- ]?192gb)?", "MI300X"),
    (r"mi325x?([- ]?256gb)?", "MI325X"),
    (r"mi355x?([- ]?288gb)?", "MI355X"),
    (r"trainium1?|trn1n?", "Trainium1"),
    (r"trainium2|trn2", "Trainium2"),
    (r"trainium3|trn3", "Trainium3"),
    (r"inferentia2|inf2", "Inferentia2"),
)

FAMILIES = {
    "p3": "V100-SXM2-16GB", "p3dn": "V100-32GB", "p4d": "A100-40GB", "p4de": "A100-80GB", "p5": "H100-80GB",
    "p5e": "H200-141GB", "p5en": "H200-141GB", "p6-b200": "B200", "p6-b300": "B300", "u-p6e-gb200x72": "GB200",
    "p6e-gb200": "GB200", "g4dn": "T4", "g5": "A10G", "g6": "L4", "gr6": "L4", "g6e": "L40S",
    "trn1": "Trainium1", "trn1n": "Trainium1", "trn2": "Trainium2", "inf2": "Inferentia2",
}  # fmt: skip
"""AWS's families of machine types → chip: AWS's price list says how many GPUs there are, and not which
(AWS's page on accelerated computing instances, from memory, 2026-11-29)."""


def chip_name(text: str, memory_gb: float | None = None) -> str:
    """The catalogue's name of a chip that is written in any of the usual ways; `text` itself where it is not known.

    `memory_gb` of one chip tells apart what has one name and two sizes: an A100 of 40 GB and of 80 GB.
    """
    plain = re.sub(r"^(nvidia|aws|amd( instinct)?)[- ]", "", text.strip().lower().replace("_", "-"))
    if memory_gb is not None and plain in ("a100", "v100"):
        plain = (
            f"{plain}-{80 if memory_gb > 60 else 40 if plain == 'a100' else 32 if memory_gb > 24 else 16}gb"
        )
    if memory_gb is not None and plain == "h100" and memory_gb > 90:
        plain = "h100-nvl"
    for pattern, name in _PATTERNS:
        if re.fullmatch(pattern, plain):
            return name
    return text.strip()


def chips_of(machine_type: MachineType) -> tuple[int, str]:
    """How many chips a machine type has, and which: Neuron machines count cores, and this counts chips."""
    name = DEVICES.get(machine_type.accelerator, machine_type.accelerator)
    cores = machine_type.resources.neuron_cores
    return (cores // CORES_PER_CHIP[name] if cores else machine_type.resources.accelerators), name


def asked_for(wanted: str, chips: Iterable[str]) -> set[str]:
    """Those of the chips that a person means: `H100` is every H100, `h100-80gb` is one of them. Empty: none."""
    known = {chip for chip in chips if chip}
    name = chip_name(wanted)
    if wanted.strip().lower() in {chip.lower() for chip in known}:
        return {chip for chip in known if chip.lower() == wanted.strip().lower()}
    start = re.sub(r"[-_ ]+", "-", wanted.strip().lower())
    family = {chip for chip in known if chip.lower().startswith(f"{start}-")}
    return family | ({name} if name in known else set())


def meant(wanted: str, chips: Iterable[str]) -> list[str]:
    """Names of chips that look like this one, the nearest first."""
    known = sorted({chip for chip in chips if chip})
    names = {chip.lower(): chip for chip in known} | {
        c.partition("-")[0].lower(): c.partition("-")[0] for c in known
    }
    close = difflib.get_close_matches(wanted.strip().lower(), names, 3, 0.4)
    return [names[found] for found in close]
