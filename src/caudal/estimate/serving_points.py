"""One row of a table of serving points, as text, becomes a question, with notes on what was filled in.

The columns are those of `serving_points.csv`; measured ones are not read. What cannot be filled in honestly (a chip
or a model that nobody knows, no lengths) is a `Missing`. Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from caudal.catalog.chips import Chip
from caudal.domain.transformer import Transformer
from caudal.estimate.points import Missing, chip_of, count, model_of, number
from caudal.estimate.serving_case import LATEST, MEMORY_SHARE, Numbers, Question

Row = Mapping[str, str]

SHAREGPT = (220, 200)
SONNET = (550, 150)
"""Mean tokens in and out of the two sets that vLLM's benchmarks draw from."""
LONGEST = 4_000_000
MOST = 1_000_000


def numbers_of(text: str, model: Transformer, engine: str, which: Chip) -> Numbers:
    """How weights, cache and matrix products are kept, from how tables write it: `FP16/w:int8`, `fp8`, `w4a16`."""
    said = text.lower().replace(" ", "").replace("_", "-")
    act, _, weight = said.partition("/w:")
    kv = 1.0 if re.search(r"kv[:=-]?(cache)?[:=-]?(fp8|int8|8)", said) else 2.0
    if re.search(r"w4a16|awq|gptq|int4|4-?bit", weight or said) and "fp4" not in said:
        return Numbers(0.53, kv, "bf16", 0.53)
    if "fp4" in said or "w4a8" in said:
        # The usual checkpoints quantise the experts alone; the cache is fp8.
        # Chips without such units multiply in bf16: then it is the weights alone.
        beside = 0.5625 if not model.experts else 1.06
        return (
            Numbers(0.5625, 1.0, "fp4", beside)
            if "fp4" in which.peaks
            else Numbers(0.5625, kv, "bf16", beside)
        )
    if weight:
        low = 1.0 if re.search(r"8", weight) else 2.0
        return Numbers(low, kv, "fp8" if "8" in act and low == 1.0 else "bf16", low)
    if re.search(r"int8|w8a16", said):
        return Numbers(1.0, kv, "bf16" if "a16" in said else "fp8", 1.0)
    if re.search(r"fp8|float8|f8|w8a8", said):
        cache = 1.0 if engine == "trtllm" and not model.kv_lora else kv
        return Numbers(1.0, cache, "fp8", 1.0)
    if not said or re.search(r"16|half|mixed|auto|default|bfloat", said):
        return Numbers(2.0, kv, "bf16", 2.0)
    if "32" in said:
        return Numbers(4.0, 4.0, "fp32", 4.0)
    raise Missing(f"precision {text[:40]!r} is not known: bf16, fp16, fp8, fp4, int8, w4a16, FP16/w:int8")


def engine_of(name: str, version: str, which: Chip) -> tuple[str, float]:
    """Family of engine and its year. A version decides where it is one; else midway from the chip to the latest."""
    text = name.lower().replace(" ", "").replace("-", "")
    if which.vendor == "AWS" or "neuron" in text:
        kind = "neuron"
    elif "trt" in text or "tensorrt" in text or "nim" in text:
        kind = "trtllm"
    elif "sglang" in text:
        kind = "sglang"
    else:
        kind = "vllm" if "vllm" in text else "other"
    found = re.search(r"(\d+)\.(\d+)", version)
    year = (max(which.since, 2023.5) + LATEST) / 2
    if found and kind != "neuron":
        year = _released(kind, int(found[1]), int(found[2]), year)
    elif kind == "neuron" and found:
        year = 2023.8 + (int(found[2]) - 15) * 0.2
    return kind, min(LATEST, max(year, which.since))


def _released(kind: str, major: int, minor: int, otherwise: float) -> float:
    """When a release came out, from memory: TensorRT-LLM 0.5 in 10/2023, 1.0 in 9/2025; vLLM 0.2 in 9/2023, 0.10 in
    7/2025; SGLang 0.3 in 9/2024, 0.5 in 8/2025."""
    if kind == "trtllm":
        return 2025.7 + 0.2 * minor if major >= 1 else 2023.8 + 0.125 * max(0, minor - 5)
    if kind == "vllm":
        return 2025.9 + 0.2 * minor if major >= 1 else 2023.7 + 0.23 * max(0, minor - 2)
    if kind == "sglang":
        return 2024.7 + 0.45 * max(0, minor - 3) if major == 0 else 2026.0
    return otherwise


def load_of(row: Row) -> tuple[str, float, float]:
    """Kind of load, sequences in flight, requests a second."""
    text = (row.get("workload") or "").lower()
    endless = (row.get("qps") or "").strip().lower() in ("inf", "infinity")
    batch, qps = number(row, "batch_or_concurrency") or 0.0, 0.0 if endless else number(row, "qps") or 0.0
    if batch > MOST * 100:
        raise Missing(f"batch_or_concurrency is {batch:g}: at most {MOST * 100:g}")
    if "prefill" in text and "disagg" not in text:
        return "prefill", batch, qps
    if "decode" in text and "disagg" not in text:
        return "decode", batch, qps
    alone = "latency" in text and "conc" not in text and batch > 0
    if alone or "static" in text or text.startswith(("batch", "real time", "realtime")):
        return "static", batch or 1.0, qps
    if qps and not batch:
        return "qps", batch, qps
    if batch:
        return "concurrency", batch, qps
    return "max", 0.0, 0.0


def lengths_of(row: Row, load: str, notes: list[str]) -> tuple[int, int]:
    """Tokens in and out."""
    isl, osl = count(row, "isl"), count(row, "osl")
    text = f"{row.get('workload') or ''} {row.get('notes') or ''}".lower()
    known = SHAREGPT if "sharegpt" in text else SONNET if "sonnet" in text else None
    if known and (isl is None or osl is None):
        notes.append(f"lengths of the set taken as {known[0]} in, {known[1]} out")
        isl, osl = isl or known[0], osl or known[1]
    if isl is None and osl is not None and load == "decode":
        isl = 1
    if isl is None:
        raise Missing("no isl (tokens of a prompt)")
    if osl is None and load in ("prefill", "decode"):
        osl = 1 if load == "prefill" else 100
    if osl is None:
        raise Missing("no osl (tokens of an answer)")
    if isl > LONGEST or osl > LONGEST:
        raise Missing(f"isl {isl} and osl {osl}: at most {LONGEST:,} tokens")
    return isl, osl


def _weights_bytes(model: Transformer, numbers: Numbers) -> float:
    experts = model.moe_layers * model.experts * model.expert_parameters
    each = numbers.beside_bytes if model.experts else numbers.weight_bytes
    return experts * numbers.weight_bytes + (model.parameters - experts) * each


def smallest_group(model: Transformer, which: Chip, numbers: Numbers, cores: int = 1) -> int:
    """Devices, a power of two, that hold the weights and leave a third of their memory for the cache."""
    room = which.memory_bytes / cores * MEMORY_SHARE * 2 / 3
    devices = 1
    while devices * room < _weights_bytes(model, numbers) and devices < 4096:
        devices *= 2
    return devices


def placed(
    row: Row, model: Transformer, which: Chip, numbers: Numbers, notes: list[str], unknown: set[str]
) -> tuple[int, int, int]:
    """Chips, tensor and expert parallelism."""
    chips, tp, ep = count(row, "chips"), count(row, "tp"), count(row, "ep") or 1
    cores = which.cores if which.vendor == "AWS" else 1
    pp = count(row, "pp") or 1
    for name, value in (("chips", chips), ("tp", tp), ("ep", ep)):
        if value is not None and value > MOST:
            raise Missing(f"{name} is {value}: at most {MOST:,}")
    if chips is None and tp is None:
        tp = smallest_group(model, which, numbers, cores)
        if model.experts and which.vendor != "AWS":
            tp = max(tp, 8 if (which.scaleup_chips or 8) <= 8 else 4)
        unknown.add("layout")
        notes.append(f"chips not stated: taken as {tp} devices")
    if chips is None:
        chips = -(-int(tp or 1) // cores)
    if tp is None:
        tp = chips * cores if ep == 1 or ep <= chips else min(ep, chips * cores)
        if which.vendor != "AWS" and ep <= chips:
            tp = min(chips, (which.scaleup_chips or 8))
        notes.append(f"tp not stated: taken as {tp}")
    if tp * pp > chips * cores * (2 if cores == 4 else 1) and tp * pp > chips * which.cores:
        raise Missing(f"tp {tp} is more than {chips} chips")
    if pp > 1:
        notes.append(f"pipeline of {pp} stages counted as tensor parallel")
        tp *= pp
    if ep > 1 and not model.experts:
        ep = 1
    return chips, tp, ep


def sized(row: Row) -> Row:
    """Total and active parameters from a name like `480B-A35B`, where nothing else says them."""
    found = re.search(r"(?i)(\d+(?:\.\d+)?)b-a(\d+(?:\.\d+)?)b", row.get("model") or "")
    if not found or (row.get("active_params_b") or "").strip():
        return row
    return {**row, "params_b": (row.get("params_b") or "").strip() or found[1], "active_params_b": found[2]}


def question_of(row: Row, model: Transformer | None = None) -> Question:
    """The whole row; raises `Missing`. `model` stands in for the row's."""
    notes: list[str] = []
    unknown: set[str] = set()
    which = chip_of(row)
    model = model or model_of(sized(row), notes)
    engine, year = engine_of(row.get("engine") or "", row.get("engine_version") or "", which)
    numbers = numbers_of(row.get("precision") or "", model, engine, which)
    load, batch, qps = load_of(row)
    isl, osl = lengths_of(row, load, notes)
    chips, tp, ep = placed(row, model, which, numbers, notes, unknown)
    split = "disagg" in (row.get("workload") or "").lower()
    if split:
        notes.append("prefill and decode on nodes of their own: how many of each is not stated")
        unknown.add("split")
    return Question(
        model, which, chips, tp, ep, numbers, engine, year, load, isl, osl, batch, qps, split, tuple(notes),
        frozenset(unknown),
    )  # fmt: skip
