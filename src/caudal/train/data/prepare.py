"""Makes a run's data once: text, tokenizer, token files, and the manifest that names them all.

Below `PREFIX/data/`: `tokenizer.json`; for each stage `stage-N.tokens.bin` (and `stage-N.mask.bin` for chat);
`validation.tokens.bin`; `heldout.json`; and last `manifest.json`. Token files are flat arrays of uint16, or
uint32 for large vocabularies. The same spec gives the same bytes, so doing it twice does no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from random import Random
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from caudal.domain.errors import AlreadyExists, DataError, NotFound
from caudal.domain.workload import StageSpec, TrainSpec
from caudal.ports import Blobs
from caudal.train.base.layout import DETAILS, FOLDER, Base, begun
from caudal.train.chat import ASSISTANT, END, USER
from caudal.train.data import tinyworld
from caudal.train.data.pack import Packed, pack_dialogues
from caudal.train.data.text import read_text, split
from caudal.train.data.tokenizer import train_tokenizer
from caudal.train.interface import DataManifest, StageData

TINYWORLD = "builtin:tinyworld"

MANIFEST = "data/manifest.json"
TOKENIZER = "data/tokenizer.json"
HELDOUT = "data/heldout.json"
VALIDATION = "data/validation.tokens.bin"

HELDOUT_QUESTIONS = 200
VALIDATION_TOKENS = 24_576
"""Of built-in data, which has no end to keep: enough for a standard error below 0.01 nats."""

MAX_UNIQUE_TOKENS = 3_000_000
"""Built-in data is made up to this size and then repeated: more would only take time to make."""

_CHARACTERS_PER_TOKEN = 3.2
"""Of built-in text under 1,024 entries, a little low, so that enough is made (measured: 3.5)."""

_DOCUMENT_SHARE = 0.25
"""Documents among the texts of a text stage; the others are dialogues (half of the tokens each)."""

_TOKENIZER_CHARACTERS = 2_000_000
"""The BPE learns from the first part of the text: more changes nothing and takes seconds."""

_ENCODED_AT_ONCE = 2_000


def prepare(spec: TrainSpec, blobs: Blobs, prefix: str) -> DataManifest:
    """Make the data of a run below `prefix` (`runs/<run>/g<generation>`), or find it made.

    Raises DataError where the spec's data is missing, not text, or too short; StorageFailed.
    """
    found = load_manifest(blobs, prefix)
    if found is not None:
        return found
    base = begun(blobs, prefix) if spec.base.path else None
    if base is not None:
        made = _text_file(spec, _words_of(blobs, prefix))
    else:
        made = _tinyworld(spec) if spec.data == TINYWORLD else _text_file(spec)
    for path, data in made.files.items():
        blobs.put(f"{prefix}/{path}", data)
    manifest = made.manifest() if base is None else _with_base(made.manifest(), base)
    try:
        blobs.put(f"{prefix}/{MANIFEST}", msgspec.json.encode(manifest), if_absent=True)
    except AlreadyExists:  # another coordinator was as far: the same spec gave the same bytes
        pass
    return manifest


def _words_of(blobs: Blobs, prefix: str) -> Tokenizer:
    """The base's own tokenizer, without what some files say of cutting texts short."""
    tokenizer = Tokenizer.from_str(blobs.get(f"{prefix}/data/{FOLDER}/tokenizer.json").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _with_base(manifest: DataManifest, base: Base) -> DataManifest:
    """With the base's files, so that every site fetches and checks them, and its layout."""
    return replace(
        manifest,
        vocab=base.vocabulary,
        files={**manifest.files, **base.files},
        details={**manifest.details, DETAILS: msgspec.to_builtins(base)},
    )


def load_manifest(blobs: Blobs, prefix: str) -> DataManifest | None:
    """What `prepare` wrote, or None where it has not finished."""
    try:
        return msgspec.json.decode(blobs.get(f"{prefix}/{MANIFEST}"), type=DataManifest)
    except NotFound:
        return None


class _Made:
    """Files by path below the prefix, and what the manifest says of them."""

    def __init__(self, tokenizer: Tokenizer, details: dict[str, Any]) -> None:
        self.vocabulary: int = tokenizer.get_vocab_size()
        self.dtype = np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32).newbyteorder("<")
        self.details = {"dtype": self.dtype.name, **details}
        self.files: dict[str, bytes] = {TOKENIZER: tokenizer.to_str(pretty=True).encode()}
        self.stages: list[StageData] = []

    def tokens(self, path: str, tokens: NDArray[Any]) -> None:
        """Keep a token file."""
        self.files[path] = tokens.astype(self.dtype).tobytes()

    def text_stage(self, stage: StageSpec, tokens: NDArray[Any], where: str) -> None:
        """Add a stage that reads a stream of tokens. Raises DataError where it is too short."""
        samples = len(tokens) // stage.sample_tokens - 1  # each pass starts somewhere in the first sample
        if samples < 1:
            raise DataError(
                "the text is too short to train on",
                where=where,
                why=f"it has {len(tokens)} tokens; a sample has {stage.sample_tokens}",
                remedy="use more text, or a smaller `sample_tokens`",
            )
        path = f"data/stage-{len(self.stages)}.tokens.bin"
        self.tokens(path, tokens)
        self._add(stage, samples, path)

    def chat_stage(self, stage: StageSpec, packed: Packed) -> None:
        """Add a stage of whole dialogues: [samples, sample_tokens + 1] tokens and the mask of what counts."""
        number = len(self.stages)
        paths = f"data/stage-{number}.tokens.bin", f"data/stage-{number}.mask.bin"
        self.tokens(paths[0], packed.tokens)
        self.files[paths[1]] = packed.mask.tobytes()
        self._add(stage, len(packed.mask), *paths)

    def _add(self, stage: StageSpec, samples: int, *paths: str) -> None:
        hashes = {path.removeprefix("data/"): _sha256(self.files[path]) for path in paths}
        self.stages.append(StageData(stage.name, stage.kind, samples, stage.sample_tokens, hashes))

    def manifest(self) -> DataManifest:
        """All of it in words."""
        ours = {name for stage in self.stages for name in stage.files}
        others = {path.removeprefix("data/"): _sha256(data) for path, data in self.files.items()}
        return DataManifest(
            vocab=self.vocabulary,
            stages=tuple(self.stages),
            files={name: digest for name, digest in others.items() if name not in ours},
            details=self.details,
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text_file(spec: TrainSpec, tokenizer: Tokenizer | None = None) -> _Made:
    if spec.data.startswith("builtin:"):
        raise DataError(
            "built-in data is made for models that begin from nothing",
            where=spec.data,
            why=f"run {spec.name} begins from {spec.base.path}",
            remedy="name a text file in `data`",
        )
    text = read_text(spec.data)
    if any(stage.kind == "chat" for stage in spec.stages):
        raise DataError(
            "a text file has no dialogues for a chat stage",
            where=spec.data,
            why=f"run {spec.name} has a stage of kind `chat`",
            remedy=f"leave the chat stage out, or use `{TINYWORLD}`",
        )
    training, validation = split(text, spec.validation_fraction)
    sample = text if spec.tokenizer.kind == "characters" else training[:_TOKENIZER_CHARACTERS]
    tokenizer = tokenizer or train_tokenizer(spec.tokenizer, [sample], chat=False)
    made = _Made(tokenizer, {"source": spec.data, "licence": "", "characters": len(text), "chat": False})
    tokens = _encode(tokenizer, _lines(training))
    for stage in spec.stages:
        made.text_stage(stage, tokens, spec.data)
    made.tokens(VALIDATION, _encode(tokenizer, _lines(validation)))
    return made


def _lines(text: str, characters: int = 1 << 16) -> list[str]:
    """The text in pieces that end with a line where they can, so that they are encoded side by side."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + characters)
        end = len(text) if end < 0 else end + 1
        pieces.append(text[start:end])
        start = end
    return pieces


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.uint32]:
    """All texts one after the other. Some at a time: an encoding holds a hundred bytes a token."""
    parts: list[NDArray[np.uint32]] = []
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        some = tokenizer.encode_batch_fast(
            list(texts[start : start + _ENCODED_AT_ONCE]), add_special_tokens=False
        )
        parts.extend(np.array(encoding.ids, dtype=np.uint32) for encoding in some)
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def _tinyworld(spec: TrainSpec) -> _Made:
    chat = any(stage.kind == "chat" for stage in spec.stages)
    wanted = [min(stage.tokens, MAX_UNIQUE_TOKENS) for stage in spec.stages]
    longest = max(
        [n for n, stage in zip(wanted, spec.stages, strict=True) if stage.kind == "text"], default=0
    )
    texts = _characters_of(_mixed(spec.seed, chat), longest * _CHARACTERS_PER_TOKEN)
    learn = texts or [_said(d) for d in islice(tinyworld.dialogues(spec.seed), 20_000)]
    sample = _characters_of(iter(learn), _TOKENIZER_CHARACTERS)
    if spec.tokenizer.kind == "characters":
        sample = learn
    tokenizer = train_tokenizer(spec.tokenizer, sample, chat)
    made = _Made(
        tokenizer,
        {"source": TINYWORLD, "licence": "CC0-1.0", "characters": sum(map(len, texts)), "chat": chat},
    )
    stream = _encode(tokenizer, texts)
    for number, (stage, tokens) in enumerate(zip(spec.stages, wanted, strict=True)):
        if stage.kind == "text":
            made.text_stage(stage, stream[: tokens + 2 * stage.sample_tokens], TINYWORLD)
        else:
            samples = -(-tokens // stage.sample_tokens)
            dialogues = tinyworld.dialogues(spec.seed + 1000 + number)
            packed = pack_dialogues(tokenizer, dialogues, stage.sample_tokens + 1, samples)
            made.chat_stage(stage, packed)
    unseen = _characters_of(_mixed(spec.seed + 500, chat), VALIDATION_TOKENS * _CHARACTERS_PER_TOKEN)
    made.tokens(VALIDATION, _encode(tokenizer, unseen)[:VALIDATION_TOKENS])
    if chat:
        asked = [asdict(exchange) for exchange in tinyworld.heldout(spec.seed, HELDOUT_QUESTIONS)]
        made.files[HELDOUT] = json.dumps(asked, ensure_ascii=False).encode()
    return made


def _said(dialogue: tinyworld.Dialogue) -> str:
    return "".join(f"{USER}{turn.question}{ASSISTANT}{turn.answer}{END}" for turn in dialogue)


def _mixed(seed: int, chat: bool) -> Iterator[str]:
    """Documents, and dialogues among them where the run is to chat, each with its end."""
    random, documents, dialogues = Random(f"mix {seed}"), tinyworld.documents(seed), tinyworld.dialogues(seed)
    while True:
        if not chat or random.random() < _DOCUMENT_SHARE:
            yield next(documents) + END
        else:
            yield _said(next(dialogues))


def _characters_of(texts: Iterator[str], characters: float) -> list[str]:
    """The first texts that have so many characters together."""
    taken, total = [], 0
    for text in texts:
        if total >= characters:
            break
        taken.append(text)
        total += len(text)
    return taken
