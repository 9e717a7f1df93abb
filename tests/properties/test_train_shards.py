"""Properties of a run's data: how it is cut into files changes nothing, and no record is on two sides or on none."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from caudal.domain.workload import StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.chat import END
from caudal.train.data.prepare import prepare
from caudal.train.data.samples import Samples, read_tokens
from caudal.train.fetch import data_folder

TALKS = [{"prompt": f"{n} and {n}?", "completion": "is " + "x" * (n % 17)} for n in range(120)]
STAGES = (
    StageSpec("read", tokens=1_000, sample_tokens=16),
    StageSpec("chat", tokens=1_000, kind="chat", sample_tokens=24),
)


@settings(max_examples=10, deadline=None)
@given(
    shard_bytes=st.integers(150, 4_000),
    positions=st.lists(st.integers(0, 2_000), min_size=1, max_size=9),
)
def test_shards_of_any_size_give_the_same_batches(shard_bytes: int, positions: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "a.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in TALKS))
        spec = TrainSpec("a", str(data), STAGES, tokenizer=TokenizerSpec(kind="characters"))
        read = []
        for size in (1 << 30, shard_bytes):
            blobs = open_blobs("memory://")
            manifest = prepare(spec, blobs, "r", size)
            folder = data_folder(blobs, "r", manifest, Path(name) / str(size))
            assert all((folder / f).stat().st_size <= size for stage in manifest.stages for f in stage.files)
            read.append([Samples(folder, manifest, stage, 1).batch(positions) for stage in (0, 1)])
        for flat, cut in zip(*read, strict=True):
            assert np.array_equal(flat.tokens, cut.tokens)
            assert np.array_equal(flat.targets, cut.targets)
            assert (flat.rows is None and cut.rows is None) or np.array_equal(flat.rows, cut.rows)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=12, max_size=60),
    fraction=st.sampled_from([0.0, 0.05, 0.3, 0.6]),
)
def test_every_record_is_in_exactly_one_of_training_and_validation(texts: list[str], fraction: float) -> None:
    texts = [*texts, *("abc" * 20 + "abc"[n % 3] * n for n in range(12))]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "a.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        stage = StageSpec("read", tokens=64, sample_tokens=4, batch=1)
        characters = TokenizerSpec(kind="characters")
        spec = TrainSpec("a", str(data), (stage,), tokenizer=characters, validation_fraction=fraction)
        blobs = open_blobs("memory://")
        manifest = prepare(spec, blobs, "r")
        folder = data_folder(blobs, "r", manifest, Path(name) / "cache")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        sides = [
            tokenizer.decode(read_tokens(folder / file, manifest).tolist(), skip_special_tokens=False)
            for file in ("stage-0.tokens.bin", "validation.tokens.bin")
        ]
        training, validation = (side.split(END)[:-1] for side in sides)
        assert Counter(training + validation) == Counter(texts)
        assert not set(training) & set(validation)
        assert bool(validation) == bool(fraction)
