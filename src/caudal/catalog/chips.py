"""Chips as estimates need them: peaks, memory, links, power; every row with its source and its date.

Peaks are dense FLOP/s. `achieved` is what large matrix products reached at best in a public measurement (MAMF:
maximum achievable matmul FLOP/s), empty where nobody published one. Links are per chip and one way. `None` is
unknown and stays unknown. `unsure` names the values that no text was seen for. `like` is
the measured chip of the same design where there is one. Peaks in bf16 are those of
`accelerators.py` where it has the chip: a fact stands once. Knows no prices; measures nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from caudal.catalog.accelerators import GB, GIB, TERA, accelerator

_MLENG = "stas00/ml-engineering, compute/accelerator and network chapters"
_NEURON = "AWS Neuron SDK docs, architecture pages"
_MAIA = "Microsoft, Azure Maia announcements"
_AMD = "amd.com: Instinct data sheets"
_GOOGLE = "cloud.google.com: TPU system architecture"
SEEN = "2026-11"


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip as a cloud rents it. `peaks` and `achieved` by precision: `bf16`, `fp8`, `fp4` (FLOP/s, dense).

    `cores` is how many devices a framework sees in one chip: the topology of a run on Trainium counts those (of
    Trainium 2 and 3 four, each of two physical cores, unless they are set up otherwise).
    `since` is the year of its general availability, in decimals: software for a new chip is slower.
    """

    name: str
    vendor: str
    since: float
    memory_bytes: int
    memory_bytes_per_s: float
    peaks: Mapping[str, float]
    scaleup_bytes_per_s: float | None
    scaleup_chips: int | None
    scaleout_bytes_per_s: float | None
    watts: float | None
    source: str
    as_of: str = SEEN
    achieved: Mapping[str, float] = field(default_factory=dict)
    aliases: str = ""
    cores: int = 1
    unsure: tuple[str, ...] = ()
    like: str = ""


def _tera(bf16: float, fp8: float = 0, fp4: float = 0) -> dict[str, float]:
    said = {"bf16": bf16, "fp8": fp8, "fp4": fp4}
    return {precision: tera * TERA for precision, tera in said.items() if tera}


def _of(name: str) -> float:
    known = accelerator(name)
    assert known is not None, name
    return known.peaks["bfloat16"] / TERA


_ALL = ("peaks", "memory_bytes_per_s", "scaleup_bytes_per_s", "scaleout_bytes_per_s", "watts")


def _nvidia(
    name: str,
    since: float,
    gib: float,
    tb_s: float,
    peaks: Mapping[str, float],
    up_gb_s: float,
    out_gbit_s: float,
    watts: float,
    *,
    domain: int = 8,
    achieved: Mapping[str, float] | None = None,
    aliases: str = "",
    unsure: tuple[str, ...] = (),
    like: str = "",
) -> Chip:
    """HBM that is sold in GB is what the driver shows in GiB, less a little."""
    return Chip(
        name, "NVIDIA", since, int(gib * GIB), tb_s * 1e12, peaks, up_gb_s * GB, domain,
        out_gbit_s * 1e9 / 8, watts, _MLENG, SEEN, achieved or {}, aliases, 1, unsure, like,
    )  # fmt: skip


CHIPS = (
    _nvidia(
        "A100-40GB", 2020.4, 39.4, 1.555, _tera(_of("A100-40GB")), 300, 50, 400,
        achieved=_tera(271), aliases=r"a100[- ]?sxm4?[- ]?40(gb)?", unsure=("memory_bytes_per_s",),
    ),
    _nvidia(
        "A100-80GB", 2020.9, 79.2, 2.0, _tera(_of("A100-80GB")), 300, 200, 400,
        achieved=_tera(271), aliases=r"a100([- ]?sxm4?)?([- ]?80(gb)?)?",
    ),
    _nvidia(
        "H100-80GB", 2022.8, 79.6, 3.35, _tera(_of("H100-SXM"), 1979), 450, 400, 700,
        achieved=_tera(794.5, 1402), aliases=r"h100([- ]?sxm5?)?([- ]?80(gb)?)?",
    ),
    _nvidia("H800", 2023.2, 79.6, 3.35, _tera(989, 1979), 200, 400, 700, aliases=r"h800([- ]?80(gb)?)?",
            like="H100-80GB"),
    _nvidia(
        "H200-141GB", 2024.0, 139.8, 4.8, _tera(_of("H200"), 1979), 450, 400, 700,
        achieved=_tera(794.5), aliases=r"h200([- ]?sxm5?)?([- ]?141(gb)?)?",
    ),
    _nvidia("H20", 2023.9, 95.6, 4.0, _tera(148, 296), 450, 400, 400, aliases=r"h20([- ]?96(gb)?)?", unsure=_ALL),
    _nvidia(
        "A800-80GB", 2022.9, 79.2, 2.0, _tera(312), 200, 200, 400, aliases=r"a800([- ]?(sxm4?|80(gb)?))*",
        like="A100-80GB", unsure=_ALL,
    ),
    _nvidia(
        "H100-PCIe", 2022.9, 79.6, 2.0, _tera(_of("H100-PCIe"), 1513), 64, 100, 350, domain=8,
        aliases=r"h100[- ]?pcie([- ]?80(gb)?)?", like="H100-80GB", unsure=_ALL,
    ),
    _nvidia(
        "L40S", 2023.6, 44.5, 0.864, _tera(_of("L40S"), 733), 32, 100, 350, domain=8, aliases=r"l40s([- ]?48(gb)?)?",
        unsure=_ALL,
    ),
    Chip(
        "GH200", "NVIDIA", 2023.8, int(94.5 * GIB), 4.0e12, _tera(989, 1979), 450 * GB, 1, 50e9, 900,
        "NVIDIA GH200 data sheet (96 GB HBM3)", SEEN, {}, r"gh200([- ]?96(gb)?)?",
        unsure=("memory_bytes_per_s", "scaleup_chips", "scaleout_bytes_per_s"), like="H100-80GB",
    ),
    _nvidia(
        "B200", 2025.0, 178.4, 8.0, _tera(_of("B200"), 4500, 9000), 900, 400, 1000,
        achieved=_tera(1745, 3432), aliases=r"b200([- ]?180(gb)?|[- ]?192(gb)?)?", unsure=("peaks.fp4",),
    ),
    _nvidia(
        "B300", 2025.8, 267.0, 8.0, _tera(2250, 4500, 13500), 900, 800, 1200,
        aliases=r"b300([- ]?288(gb)?)?", unsure=("peaks.fp4", "watts"), like="B200",
    ),
    _nvidia(
        "GB200", 2025.1, 184.5, 8.0, _tera(_of("GB200"), 5000, 10000), 900, 400, 1200, domain=72,
        achieved=_tera(1822, 3616), aliases=r"gb200([- ]?(186|192)(gb)?|[- ]?nvl72)?",
        unsure=("peaks.fp4", "watts"),
    ),
    _nvidia(
        "GB300", 2025.7, 276.0, 8.0, _tera(2500, 5000, 15000), 900, 800, 1400, domain=72,
        aliases=r"gb300([- ]?288(gb)?|[- ]?nvl72)?", unsure=("peaks.fp4", "watts"), like="GB200",
    ),
    Chip(
        "MI250X", "AMD", 2021.9, 128 * GIB, 3.2e12, _tera(383), 150 * GB, 4, 25e9, 560, _AMD, SEEN, {},
        r"mi250x?", 2, ("scaleup_bytes_per_s", "scaleup_chips", "scaleout_bytes_per_s"),
    ),
    Chip(
        "MI300X", "AMD", 2023.9, int(191.5 * GIB), 5.3e12, _tera(_of("MI300X"), 2610), 448 * GB, 8, 50e9, 750,
        _MLENG, SEEN, _tera(668), r"mi300x?([- ]?192(gb)?)?", unsure=("scaleup_bytes_per_s",),
    ),
    Chip(
        "MI325X", "AMD", 2024.8, int(255.5 * GIB), 6.0e12, _tera(1307, 2614), 448 * GB, 8, 50e9, 1000,
        _AMD, SEEN, {}, r"mi325x?([- ]?256(gb)?)?", unsure=("scaleup_bytes_per_s", "scaleout_bytes_per_s"),
        like="MI300X",
    ),
    Chip(
        "MI355X", "AMD", 2025.5, int(287.5 * GIB), 8.0e12, _tera(2500, 5000, 10000), 538 * GB, 8, 50e9, 1400,
        _AMD, SEEN, {}, r"mi35[05]x?([- ]?288(gb)?)?", unsure=("scaleup_bytes_per_s", "scaleout_bytes_per_s"),
        like="MI300X",
    ),
    Chip(
        "Trainium1", "AWS", 2022.8, 32 * GIB, 0.88e12, _tera(_of("Trainium1"), 190), 192 * GB, 16, 6.25e9, None,
        _NEURON, SEEN, {}, r"trn1n?(\.32xlarge)?|trainium", 2,
    ),
    Chip(
        "Trainium2", "AWS", 2024.9, 96 * GIB, 2.9e12, _tera(_of("Trainium2"), 1299), 512 * GB, 16, 25e9, 500,
        _NEURON, SEEN, {}, r"trn2(\.48xlarge)?", 4, ("watts",),
    ),
    Chip(
        "Trainium3", "AWS", 2025.9, 144 * GIB, 4.9e12, _tera(671, 2517), None, 144, 25e9, None,
        _NEURON, SEEN, {}, r"trn3", 4,
    ),
    Chip(
        "Inferentia2", "AWS", 2023.3, 32 * GIB, 0.88e12, _tera(_of("Inferentia2"), 190), 96 * GB, 12, 1e9, None,
        _NEURON, SEEN, {}, r"inf2(\.48xlarge)?", 2,
    ),
    Chip(
        "Maia100", "Microsoft", 2023.9, 64 * GIB, 1.8e12, _tera(800, 1600), None, None, 600e9, 500,
        _MAIA, SEEN, {}, r"maia([- ]?100)?", unsure=("peaks.bf16", "peaks.fp8"),
    ),
    Chip(
        "Maia200", "Microsoft", 2026.1, 216 * GIB, 7.0e12, {"fp8": 5e15, "fp4": 1e16}, 1400 * GB, None, None, 750,
        _MAIA, SEEN, {}, r"maia[- ]?200",
    ),
    Chip(
        "TPUv3", "Google", 2018.8, 32 * GIB, 0.9e12, _tera(123), 70 * GB, 1024, 3e9, 450,
        _GOOGLE, SEEN, {}, r"tpu[- ]?v3", unsure=("peaks.bf16", "watts", "scaleup_bytes_per_s"),
    ),
    Chip(
        "TPUv4", "Google", 2021.4, 32 * GIB, 1.2e12, _tera(275), 150 * GB, 4096, 6e9, 192,
        _MLENG, SEEN, {}, r"tpu[- ]?v4", unsure=("watts", "scaleup_chips", "scaleup_bytes_per_s"),
    ),
    Chip(
        "TPUv5e", "Google", 2023.7, 16 * GIB, 0.82e12, _tera(197), 100 * GB, 256, 6e9, None,
        _MLENG, SEEN, {}, r"tpu[- ]?v5e|v5litepod", unsure=("scaleup_bytes_per_s",),
    ),
    Chip(
        "TPUv5p", "Google", 2023.9, 95 * GIB, 2.76e12, _tera(459), 300 * GB, 8960, 6e9, None,
        _MLENG, SEEN, {}, r"tpu[- ]?v5p", unsure=("scaleup_chips", "scaleup_bytes_per_s"),
    ),
    Chip(
        "TPUv6e", "Google", 2024.9, 32 * GIB, 1.64e12, _tera(918), 224 * GB, 256, 12e9, None,
        _MLENG, SEEN, {}, r"tpu[- ]?v6e|trillium", unsure=("memory_bytes_per_s", "scaleup_bytes_per_s"),
    ),
    Chip(
        "TPUv7", "Google", 2025.8, 192 * GIB, 7.4e12, _tera(2307, 4614), 600 * GB, 9216, 12e9, None,
        _MLENG, SEEN, {}, r"tpu[- ]?v7|ironwood", unsure=("memory_bytes", "scaleup_chips", "scaleup_bytes_per_s"),
    ),
    Chip(
        "V100-32GB", "NVIDIA", 2017.9, int(31.7 * GIB), 0.9e12, _tera(125), 150 * GB, 8, 12.5e9, 300,
        "NVIDIA V100 data sheet; its half precision is fp16", SEEN, {}, r"v100([- ]?sxm2)?([- ]?(16|32)(gb)?)?",
    ),
)  # fmt: skip


DEVICES = {"H100-SXM": "H100-80GB", "H200": "H200-141GB", "V100-SXM2-32GB": "V100-32GB"}
"""Names in `accelerators.py` of what goes by another one here."""


def chip(name: str) -> Chip | None:
    """The chip of that name: ours, the catalogue of devices', or one of its usual spellings; None if unknown."""
    wanted = re.sub(
        r"^(nvidia|aws|amd instinct|amd|google|azure) ", "", name.strip().lower().replace("_", "-")
    )
    plain = wanted.replace(" ", "")
    device = accelerator(name.strip())
    as_device = DEVICES.get(device.name, device.name) if device is not None else ""
    for known in CHIPS:
        if known.name == as_device or known.name.lower() in (wanted, plain):
            return known
        if known.aliases and re.fullmatch(known.aliases, wanted):
            return known
    return None


def close_names(name: str) -> list[str]:
    """Names of chips that look like this one, nearest first: for `did you mean`."""
    names = {known.name.lower(): known.name for known in CHIPS}
    return [names[found] for found in difflib.get_close_matches(name.lower(), names, 3, 0.4)]
