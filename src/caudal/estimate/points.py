"""One row of a table of training steps, as text, becomes a job and a layout, with notes on what was filled in.

The columns are those of `training_points.csv`; measured ones are not read. What a row leaves out is filled in by
rules that every note names: an architecture by its name or its size, data parallelism from the chips, the best
micro-batch, recomputation as memory asks for it. What cannot be filled in honestly (a chip that nobody knows, no
batch) is a `Missing`. Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from caudal.catalog.architectures import architecture
from caudal.catalog.chips import Chip, chip, close_names
from caudal.domain.transformer import Transformer
from caudal.estimate.case import AS_NEEDED, Job, Layout, Software
from caudal.estimate.shapes import shape_of_size, with_experts_of_size
from caudal.estimate.software import software_of

Row = Mapping[str, str]

LARGEST = 10**12


class Missing(ValueError):
    """The row cannot be estimated; the message says why."""


@dataclass(frozen=True)
class Point:
    """What is estimated, and what was filled in. `micro_batch` or `layout` in `open`: choose the best."""

    job: Job
    layout: Layout
    notes: tuple[str, ...] = ()
    open: frozenset[str] = frozenset()


def number(row: Row, name: str) -> float | None:
    """The column as a number; None where it is empty. Bad ones say which."""
    text = (row.get(name) or "").strip().replace(",", "").replace("_", "")
    if not text or text.lower() in ("nan", "na", "n/a", "-", "none", "null", "unknown", "?"):
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise Missing(f"{name} is not a number: {text[:40]!r}") from error
    if not 0 <= value <= LARGEST:
        raise Missing(f"{name} is {value:g}: it must be from 0 to {LARGEST:.0e}")
    return value


def count(row: Row, name: str) -> int | None:
    """The column as a whole number of at least 1; None where it is empty."""
    value = number(row, name)
    if value is None or value == 0:
        return None
    if value < 1 or value != int(value):
        raise Missing(f"{name} is {value:g}: it must be a whole number")
    return int(value)


def _gated(text: str, otherwise: bool) -> bool:
    text = text.lower()
    if not text:
        return otherwise
    return "glu" in text or "gated" in text


def model_of(row: Row, notes: list[str]) -> Transformer:
    """The architecture: the row's columns over what is known by name, else a shape made from a size."""
    name = (row.get("model") or "").strip()
    known = architecture(name) if name else None
    size, active = number(row, "params_b"), number(row, "active_params_b")
    layers, hidden = count(row, "layers"), count(row, "hidden")
    if known and layers and hidden and hidden != known.hidden:
        known = None
    if known and size and not layers and not 0.85 < known.parameters / (size * 1e9) < 1.18:
        known = None
    if known is None and (layers is None or hidden is None):
        said = re.search(r"(?i)(?<![0-9.])(\d+(?:\.\d+)?) ?([bt])(?![a-z0-9])", name)
        if size is None and said:
            size = float(said[1]) * (1000 if said[2].lower() == "t" else 1)
        if size is None:
            raise Missing(f"no layers and hidden, no params_b, and no known architecture {name!r}")
        notes.append(f"architecture made from its size of {size:g}B")
        made = shape_of_size(size * 1e9, gpt=bool(re.match(r"(?i)gpt|opt|bloom|mpt", name)))
        experts = count(row, "experts")
        return with_experts_of_size(made, size * 1e9, (active or size) * 1e9, experts, count(row, "top_k"))
    if known is not None and layers is None:
        notes.append(f"architecture of {known.name} ({known.source})")
    return _with_columns(row, name, known, layers, hidden, size)


def _with_columns(
    row: Row, name: str, known: Transformer | None, layers: int | None, hidden: int | None, size: float | None
) -> Transformer:
    experts, ffn = count(row, "experts"), count(row, "ffn")
    if known is None:
        assert layers and hidden
        heads = count(row, "heads") or max(1, hidden // 128)
        gated = _gated(row.get("ffn_type") or "", True)
        width = ffn or (4 * hidden if not gated else int(8 * hidden / 3))
        known = Transformer(
            name, layers, hidden, heads, count(row, "kv_heads") or heads, 0 if experts else width,
            count(row, "vocab") or (51200 if not gated else 128256), gated=gated,
            experts=experts or 0, top_k=(count(row, "top_k") or 2) if experts else 0,
            expert_ffn=width if experts else 0,
        )  # fmt: skip
        return _tied(known, size)
    made = replace(
        known,
        layers=layers or known.layers,
        heads=count(row, "heads") or known.heads,
        kv_heads=known.heads if known.kv_lora else count(row, "kv_heads") or known.kv_heads,
        vocab=count(row, "vocab") or known.vocab,
        gated=_gated(row.get("ffn_type") or "", known.gated),
    )
    made = replace(made, dense_layers=min(made.dense_layers, made.layers))
    if ffn and not made.experts:
        made = replace(made, ffn=ffn)
    if made.experts:
        made = replace(made, experts=experts or made.experts, top_k=count(row, "top_k") or made.top_k)
    return made


def _tied(made: Transformer, size: float | None) -> Transformer:
    """Tied embeddings where the stated size says so."""
    if size is None:
        return made
    other = replace(made, tied=True)
    nearer = abs(other.parameters - size * 1e9) < abs(made.parameters - size * 1e9)
    return other if nearer else made


def precision_of(text: str) -> str:
    """`fp32`, `bf16`, `fp8`, `mxfp8` or `fp4` from how papers write it; fp16 counts as bf16."""
    text = text.lower()
    if "fp4" in text:
        return "fp4"
    if "mxfp8" in text or "mx-fp8" in text:
        return "mxfp8"
    if "fp8" in text or "float8" in text or "f8" in text:
        return "fp8"
    if re.search(r"bf16|bfloat16|fp16|float16|half|mixed", text) or not text:
        return "bf16"
    if "32" in text:
        return "fp32"
    return "bf16"


def recompute_of(text: str) -> float:
    """0 none, 1 selective, 2 full, or as memory asks for it where the text does not decide."""
    text = text.lower().strip()
    if text in ("none", "no", "off", "false", "0"):
        return 0.0
    if text in ("full", "yes", "on", "true", "block", "full (all layers)") or text.startswith("full"):
        return 2.0
    if text.startswith("selective"):
        return 1.0
    return AS_NEEDED


def sharding_of(text: str, software: Software, tp: int, pp: int, dp: int) -> tuple[int, int]:
    """ZeRO's stage, and over how many ranks it shards (0: all)."""
    text = text.lower()
    shard = 0
    found = re.search(r"(\d+) intra ?x ?(\d+)", text)
    if found:
        shard = int(found[1]) * int(found[2])
    found = re.search(
        r"x ?(\d+) fsdp|fsdp[ =:]?(\d+)|shard(?:ing)?[ _-]?(?:group|size|degree)?[ =:](\d+)", text
    )
    if found and not shard:
        shard = int(next(part for part in found.groups() if part))
    if "hsdp" in text or "hybrid" in text:
        return 3, shard or min(dp, 8)
    if "zero" in text or text in ("0", "1", "2", "3"):
        stage = re.search(r"[0-3]", text)
        return (int(stage[0]) if stage else 1), shard
    if "grad_op" in text:
        return 2, shard
    if "fsdp" in text or "full_shard" in text or "fully" in text:
        return 3, shard if shard <= dp else 0
    if text in ("none", "no_shard", "ddp"):
        return 0, 0
    if software.kind in ("eager", "compiled") and pp == 1 and dp > 1:
        return 3, 0
    return (1 if software.year >= 2022.5 else 0), 0


def chip_of(row: Row) -> Chip:
    """The row's chip, or `Missing` with the nearest names."""
    name = (row.get("chip") or "").strip()
    found = chip(name)
    if found is None:
        close = close_names(name)
        raise Missing(f"unknown chip {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    if not found.peaks:
        raise Missing(f"the peak of {found.name} is not known")
    return found


def point_of(row: Row) -> Point:
    """The whole row; raises `Missing`."""
    notes: list[str] = []
    hardware = chip_of(row)
    model = model_of(row, notes)
    software = software_of(
        row.get("framework") or "", f"{row.get('source') or ''} {row.get('source_url') or ''}", hardware.since
    )
    seq = count(row, "seq_len")
    if seq is None:
        seq = 2048 if software.year < 2023 else 4096
        notes.append(f"sequence length taken as {seq}")
    layout, chips, unknown = _layout(row, hardware, software, notes)
    batch, unknown = _batch(row, layout, seq, unknown, notes)
    layout = replace(layout, vp=_chunks(row, layout, model, software, batch, notes))
    if layout.dp * layout.micro_batch > batch and "layout" not in unknown:
        layout = replace(layout, micro_batch=max(1, batch // layout.dp))
    if not (row.get("precision") or "").strip():
        unknown.add("precision")
        notes.append("precision not stated: taken as bf16")
    precision = precision_of(row.get("precision") or "")
    job = Job(model, hardware, chips, seq, batch, precision, software)
    return Point(job, layout, tuple(notes), frozenset(unknown))


def _batch(row: Row, layout: Layout, seq: int, unknown: set[str], notes: list[str]) -> tuple[int, set[str]]:
    batch = count(row, "global_batch_seqs")
    if batch is None:
        if count(row, "micro_batch") is None or layout.pp > 1:
            raise Missing("no global_batch_seqs, and it does not follow from micro_batch")
        batch = layout.dp * layout.micro_batch
        notes.append(f"global batch taken as dp x micro-batch = {batch}")
    return batch, unknown


def _layout(row: Row, hardware: Chip, software: Software, notes: list[str]) -> tuple[Layout, int, set[str]]:
    unknown: set[str] = set()
    tp, pp, dp = count(row, "tp"), count(row, "pp"), count(row, "dp")
    cp, ep, chips = count(row, "cp") or 1, count(row, "ep") or 1, count(row, "chips")
    if chips is None:
        if not (tp and pp and dp):
            raise Missing("neither chips nor tp, pp and dp")
        chips = tp * pp * dp * cp
        notes.append(f"chips taken as tp x pp x dp x cp = {chips}")
    if tp is None and pp is None:
        if dp == chips or (software.kind == "eager" and dp is None):
            tp, pp = 1, 1
        else:
            unknown.add("layout")
            notes.append("layout not stated: the best that was found")
    elif dp and not (tp and pp):
        rest = max(1, chips // ((tp or pp or 1) * dp * cp))
        tp, pp = tp or rest, pp or rest
        notes.append(f"tp {tp} x pp {pp} taken from the chips")
    tp, pp = tp or 1, pp or 1
    units, dp = _ranks(hardware, chips, tp * pp * cp, cp, dp, unknown, notes)
    micro = count(row, "micro_batch")
    if micro is None:
        unknown.add("micro_batch")
        notes.append("micro-batch not stated: the best that fits")
    if not (row.get("fsdp_zero") or "").strip():
        unknown.add("zero")
    zero, shard = sharding_of(row.get("fsdp_zero") or "", software, tp, pp, dp)
    sequence = tp > 1 and software.year >= 2022.4
    recompute = recompute_of(row.get("recompute") or "")
    made = Layout(tp, pp, dp, ep, cp, 1, zero, shard, micro or 1, recompute, sequence)
    assert made.chips == units
    return made, chips, unknown


def _ranks(
    hardware: Chip, chips: int, inside: int, cp: int, dp: int | None, unknown: set[str], notes: list[str]
) -> tuple[int, int]:
    """Devices (chips, or their cores where the layout counts those), and data-parallel ranks on them."""
    units, stated = chips, inside * (dp or 1)
    # Of chips with logical cores some count the physical ones, twice as many.
    by_core = dp is not None and stated in (chips * hardware.cores, chips * 8 if hardware.cores == 4 else 0)
    if hardware.cores > 1 and by_core:
        units = stated
    elif hardware.vendor == "AWS" and stated != chips:
        units = chips * hardware.cores
    if inside > units:
        raise Missing(f"tp x pp x cp = {inside} is more than {units} chips")
    if units % inside:
        raise Missing(f"tp x pp x cp = {inside} does not divide {units} chips")
    taken = units // inside
    if dp is not None and dp != taken and dp != taken * cp:  # some tables count cp in dp
        notes.append(f"dp {dp} does not fit {units} devices: taken as {taken}")
        unknown.add("contradicted")
    return units, taken


def _chunks(
    row: Row, layout: Layout, model: Transformer, software: Software, batch: int, notes: list[str]
) -> int:
    """Virtual stages per pipeline stage: Megatron's recipes interleave down to one or two layers a chunk."""
    stated = count(row, "vp")
    if stated is not None or layout.pp == 1:
        return stated or 1
    # Interleaving wants whole groups of pp micro-batches.
    grouped = batch // max(1, layout.dp * layout.micro_batch) % layout.pp == 0
    if software.kind != "megatron" or software.year < 2023 or not grouped:
        return 1
    per_stage = -(-model.layers // layout.pp)
    chosen = max(
        (
            v
            for v in range(1, per_stage + 1)
            if model.layers % (layout.pp * v) == 0
            or (model.layers % layout.pp and (model.layers + 2) % (layout.pp * v) == 0)
        ),
        default=1,
    )
    if chosen > 1:
        notes.append(f"interleaving not stated: {chosen} chunks a stage")
    return chosen
