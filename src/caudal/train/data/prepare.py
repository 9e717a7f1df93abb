"""Makes a run's data once: words become tokens in files of the run's object store, and a manifest names them all.

Below `PREFIX/data/`: `tokenizer.json` (and what else its vocabulary brings); for each stage `stage-N.tokens.bin` (and
`stage-N.mask.bin` for chat), or `stage-N.tokens-00000.bin` ... where it is larger than a shard;
`validation.tokens.bin`; `heldout.json` for built-in data; and last `manifest.json`. Token files are flat arrays of
uint16, or uint32 for large vocabularies. The same spec and the same data give the same bytes, so doing it twice does
no harm, nor does dying half-way. No data but the built-in is ever whole in memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec

from caudal.domain.errors import AlreadyExists, NotFound, StorageFailed
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.train.base.layout import DETAILS, FOLDER, Base, begun
from caudal.train.data import builtin, from_records, from_text, keep_out
from caudal.train.data.making import SHARD_BYTES, Maker
from caudal.train.data.vocabularies import vocabulary_of
from caudal.train.interface import DataManifest
from caudal.train.sources.corpus import open_corpus

TINYWORLD = builtin.TINYWORLD

MANIFEST = "data/manifest.json"
TOKENIZER = "data/tokenizer.json"


def prepare(spec: TrainSpec, blobs: Blobs, prefix: str, shard_bytes: int = SHARD_BYTES) -> DataManifest:
    """Make the data of a run below `prefix` (`runs/<run>/g<generation>`), or find it made. Shards of at most
    `shard_bytes` lie in the system's folder for temporary files until the store has them.

    Raises DataError where the spec's data is missing, not what it should be, or too short; StorageFailed.
    """
    found = load_manifest(blobs, prefix)
    if found is not None:
        return found
    try:
        with tempfile.TemporaryDirectory(prefix="caudal-data-") as folder:
            base = begun(blobs, prefix) if spec.base.path else None
            asked = spec if base is None else _words_of(spec, base, blobs, prefix, Path(folder))
            manifest = _made(asked, blobs, prefix, Path(folder), shard_bytes)
    except OSError as error:
        raise StorageFailed(
            "the data cannot be written down",
            where=error.filename or tempfile.gettempdir(),
            why=error.strerror or str(error),
            remedy="make room, or name another folder in TMPDIR",
        ) from error
    if base is not None:
        manifest = _with_base(manifest, base)
    try:
        blobs.put(f"{prefix}/{MANIFEST}", msgspec.json.encode(manifest), if_absent=True)
    except AlreadyExists:  # another coordinator was as far: the same spec gave the same bytes
        return load_manifest(blobs, prefix) or manifest
    return manifest


def _words_of(spec: TrainSpec, base: Base, blobs: Blobs, prefix: str, folder: Path) -> TrainSpec:
    """The spec with the base's small files, which say what its words are, in `folder`: those that were brought in, from
    wherever that was."""
    for name in base.files:
        if not name.endswith(".safetensors"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            blobs.get_file(f"{prefix}/data/{name}", target)
    return replace(spec, base=replace(spec.base, path=str(folder / FOLDER)))


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


def _made(spec: TrainSpec, blobs: Blobs, prefix: str, folder: Path, shard_bytes: int) -> DataManifest:
    """All files but the manifest are in the store."""
    chat = any(stage.kind == "chat" for stage in spec.stages)
    if spec.data == TINYWORLD:
        texts = [] if spec.base.path else builtin.texts_of(spec)
        vocabulary = vocabulary_of(spec, lambda: builtin.words_of(spec, texts), chat)
        maker = Maker(blobs, prefix, vocabulary, folder, shard_bytes)
        return maker.manifest(builtin.make(spec, maker, texts))
    corpus = open_corpus(spec.data)
    kind = corpus.kind()
    from_records.check_kind(spec, kind)
    part = corpus.single_text
    if part is not None:
        seen = from_text.scan(part, spec.validation_fraction)
        vocabulary = vocabulary_of(spec, lambda: from_text.words_of(spec, part, seen), chat=False)
        maker = Maker(blobs, prefix, vocabulary, folder, shard_bytes)
        return maker.manifest(from_text.make(spec, part, maker, seen))
    kept_out = keep_out.choose(corpus.records(), spec.validation_fraction)
    dialogues = kind == "dialogues"
    vocabulary = vocabulary_of(spec, lambda: from_records.words_of(spec, corpus, kept_out), dialogues)
    maker = Maker(blobs, prefix, vocabulary, folder, shard_bytes)
    return maker.manifest(from_records.make(spec, corpus, kind, maker, kept_out))
