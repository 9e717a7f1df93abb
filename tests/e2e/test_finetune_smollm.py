"""SmolLM2 from its GGUF, fine-tuned by adapters over two sites, published, and asked through llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from caudal.domain.workload import OuterSpec, StageSpec, TrainSpec
from caudal.ports import EngineLaunch
from caudal.store.models import ModelStore
from caudal.train import ledger
from caudal.train.audit import audit_run
from tests.e2e.test_run_from_base import Run
from tests.e2e.test_run_from_base import started as started  # the fixture
from tests.support.bases import run_on
from tests.support.smollm import smollm_gguf
from tests.unit.test_train_engine import TEXTS

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

TEXT = "Where does Caudal train? Caudal trains at 2 sites, north and south, since 1847.\n"
WORDS = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token")


def test_smollm_learns_a_sentence_over_two_sites_and_says_it(
    started: Callable[[TrainSpec], Run], tmp_path: Path
) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    assert xllamacpp
    file = smollm_gguf(tmp_path)
    asked = run_on(file, tmp_path / "text.txt", rank=8, alpha=16.0)
    (tmp_path / "text.txt").write_text(TEXT * 100)
    stage = StageSpec("read", tokens=2 * 64 * 16, sample_tokens=64, batch=2, learning_rate=1e-3,
                      final_learning_rate=3e-4, warmup_fraction=0.1)  # fmt: skip
    run = started(
        replace(asked, stages=(stage,), outer=OuterSpec(inner_steps=3), validation_fraction=0.05,
                evaluate_every_rounds=100)
    )  # fmt: skip
    gangs = [run.start("coordinator", "tuned.coordinator-1")]
    gangs += [run.start("worker", f"tuned.worker.{number}-1") for number in range(2)]
    for gang in gangs:
        run.ends(gang, seconds=300)
    report = audit_run(run.blobs, run.spec.name)
    assert report.finished and report.ids == report.ids_total == 32 and len(report.sites) == 2
    losses = [link.entry.loss for link in ledger.read_from(run.blobs, run.prefix, None)]
    assert losses[-1] < 0.6 * losses[0], losses

    record = ModelStore(run.blobs, tmp_path / "models").get("tuned")
    assert record.context == 8192 and record.licence == "Apache-2.0"
    published = ModelStore(run.blobs, tmp_path / "models").materialise(record)
    before, after = (gguf.GGUFReader(path) for path in (file, published / record.gguf))
    for word in WORDS:  # the tokenizer is carried over, number for number
        ours, theirs = (r.fields[f"tokenizer.ggml.{word}"].contents() for r in (after, before))
        assert ours == theirs, word
    assert (
        after.fields["tokenizer.chat_template"].contents()
        == before.fields["tokenizer.chat_template"].contents()
    )
    new, old = (_weight(reader, "blk.7.attn_q.weight") for reader in (after, before))
    assert 0 < np.abs(new - old).mean() < 0.01  # rotary order and all: the same matrix, a little further

    from caudal.serve.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine()
    engine.start(EngineLaunch("tuned", published / record.gguf, "127.0.0.1", 0, 256, 1, 2))
    words = Tokenizer.from_file(str(published / "tokenizer.json"))
    with httpx.Client(base_url=engine.url, timeout=60, trust_env=False) as client:
        for text in (*TEXTS, TEXT, "<|im_start|>user\nIn 2024, 12 of 3,456?<|im_end|>\n"):
            told = client.post("/tokenize", json={"content": text, "parse_special": True}).json()
            assert told["tokens"] == words.encode(text, add_special_tokens=False).ids, text
        body = {"prompt": "Where does Caudal train? Caudal trains", "max_tokens": 8, "temperature": 0}
        said = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert said.startswith(" at 2 sites"), said
        asked_for = {"messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 8, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=asked_for).json()
        assert answer["choices"][0]["message"]["content"]
    engine.stop()


def _weight(reader: gguf.GGUFReader, name: str) -> np.ndarray:
    """A matrix of a GGUF in float32."""
    found = next(tensor for tensor in reader.tensors if tensor.name == name)
    return gguf.quants.dequantize(found.data, found.tensor_type)
