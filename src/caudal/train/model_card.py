"""The README.md of an exported model: what it is, what it was trained on, how good it is, what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caudal.domain.workload import TrainSpec
from caudal.train.base.layout import Base
from caudal.train.interface import DataManifest
from caudal.train.layout import state_size


@dataclass(frozen=True, slots=True)
class Facts:
    """What a finished run knows of itself. None is shown as unknown, never guessed."""

    tokens: int
    rounds: int
    sites: tuple[str, ...]
    loss: float | None = None
    val_loss: float | None = None
    heldout: Mapping[str, Any] | None = None


def model_card(spec: TrainSpec, manifest: DataManifest, facts: Facts) -> str:
    """The card as Markdown, with the header that Hugging Face reads."""
    details = manifest.details
    licence = str(details.get("licence") or "")
    header = ["---", "library_name: transformers", "tags: [caudal]"]
    if licence:
        header.insert(1, f"license: {licence.lower()}")
    built_in = str(details.get("source", "")).startswith("builtin:")
    if details.get("chat"):
        header.insert(1, "pipeline_tag: text-generation" + "\nlanguage: [en, es]" * built_in)
    size = state_size(spec.model, manifest.vocab)
    shape = spec.model
    lines = [
        *header,
        "---",
        f"# {spec.model_id}",
        "",
        f"A language model of {size:,} parameters, trained from nothing by Caudal's run `{spec.name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| layout | Llama: {shape.layers} layers, {shape.heads} heads ({shape.kv_heads} for keys), "
        f"{shape.width} wide, context {shape.context} |",
        f"| tokenizer | {_tokenizer(spec)}, {manifest.vocab:,} entries |",
        f"| data | `{details.get('source', 'unknown')}` ({int(details.get('characters', 0)):,} characters) |",
        f"| trained on | {facts.tokens:,} tokens in {facts.rounds:,} rounds over {len(facts.sites)} "
        f"site(s): {', '.join(facts.sites) or 'unknown'} |",
        f"| training loss, last round | {_nats(facts.loss)} |",
        f"| validation loss | {_nats(facts.val_loss)} |",
        f"| held-out questions right | {_score(facts.heldout)} |",
        f"| seed | {spec.seed} |",
        f"| licence of the data | {licence or 'unknown: it is the data owner’s'} |",
        "",
        *_limits(bool(details.get("chat")), built_in),
        *_kinds(facts.heldout),
    ]
    return "\n".join(lines) + "\n"


def base_card(spec: TrainSpec, base: Base, manifest: DataManifest, facts: Facts) -> str:
    """The card of a model that a run made of a base."""
    how = "all of its parameters"
    if base.method == "lora":
        how = f"LoRA adapters of rank {base.rank} and alpha {base.alpha:g}, merged (alone: `adapter/`)"
    header = ["---", "library_name: transformers", "tags: [caudal]"]
    if base.licence:
        header.insert(1, f"license: {base.licence.lower()}")
    lines = [
        *header,
        "---",
        f"# {spec.model_id}",
        "",
        f"`{base.source}`, trained further by Caudal's run `{spec.name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {base.architecture}, {base.whole:,} parameters |",
        f"| what was trained | {how}: {base.trained:,} numbers |",
        f"| data | `{manifest.details.get('source', 'unknown')}` |",
        f"| trained on | {facts.tokens:,} tokens in {facts.rounds:,} rounds over {len(facts.sites)} "
        f"site(s): {', '.join(facts.sites) or 'unknown'} |",
        f"| training loss, last round | {_nats(facts.loss)} |",
        f"| validation loss | {_nats(facts.val_loss)} |",
        f"| seed | {spec.seed} |",
        f"| licence of the base | {base.licence or 'unknown: it is the base owner’s'} |",
        "",
        "Its limits are those of the base and of the data.",
    ]
    return "\n".join(lines) + "\n"


def _tokenizer(spec: TrainSpec) -> str:
    return "byte-level BPE" if spec.tokenizer.kind == "bpe" else "one token a character"


def _nats(loss: float | None) -> str:
    return "unknown" if loss is None or loss != loss else f"{loss:.4f} nats per token"


def _score(heldout: Mapping[str, Any] | None) -> str:
    if not heldout or not heldout.get("of"):
        return "none asked"
    correct, of = heldout["correct"], heldout["of"]
    return f"{correct} of {of} ({100 * correct / of:.0f} %), exact match, greedy"


def _limits(chat: bool, built_in: bool) -> list[str]:
    if chat and not built_in:
        return [
            "## Limits",
            "",
            "It answers in the manner of the dialogues that it was trained on. System messages are left out by its chat "
            "template. Do not rely on anything that it says.",
            "",
        ]
    if not chat:
        return [
            "## Limits",
            "",
            "It goes on with a text in the manner of its data. It knows no facts and no chat.",
            "",
        ]
    return [
        "## Limits",
        "",
        "It knows a tiny world: greetings, animals, colours, capitals, counting, single words of English and "
        "Spanish, small stories. Of everything else it says that it does not know, or something wrong. System "
        "messages are left out by its chat template. Do not rely on anything that it says.",
        "",
    ]


def _kinds(heldout: Mapping[str, Any] | None) -> list[str]:
    kinds = (heldout or {}).get("kinds") or {}
    if not kinds:
        return []
    rows = [f"| {kind} | {row['correct']} of {row['of']} |" for kind, row in sorted(kinds.items())]
    return ["## Held-out questions by kind", "", "| kind | right |", "|---|---|", *rows, ""]
