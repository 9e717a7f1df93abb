"""Models for embeddings: known by their file, warmed up by what they can, and right also for texts side by side."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from caudal.domain.errors import Failed
from caudal.ports import EngineLaunch
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.serve.replica import warm_up
from caudal.store.gguf_header import read_gguf
from tests.support.models import write_gguf
from tests.support.real_replica import real_replica, write_model
from tests.support.tiny_bert import CONTEXT, write_bert

pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")


def test_a_file_says_whether_it_embeds_and_generates(tmp_path: Path) -> None:
    plain = read_gguf(write_gguf(tmp_path / "a.gguf"))
    both = read_gguf(write_model(tmp_path / "b.gguf"))
    bert = read_gguf(write_bert(tmp_path / "c.gguf"))
    assert [(i.embeds, i.generates) for i in (plain, both, bert)] == [
        (False, True),
        (True, True),
        (True, False),
    ]


def test_a_model_that_only_embeds(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf")
    engine = LlamaCppEngine()
    engine.start(EngineLaunch("bert", path, "127.0.0.1", 0, CONTEXT, 2, 1))
    able = engine.capabilities()
    assert (able.embeddings, able.chat, able.completions, able.tools) == (True, False, False, False)
    warm_up(engine.url, "bert", generates=False)
    with pytest.raises(Failed):
        warm_up(engine.url, "bert", generates=True)
    engine.stop()


@pytest.mark.parametrize("write", [write_model, write_bert])
def test_texts_side_by_side_have_the_vectors_that_they_have_alone(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with real_replica(write(tmp_path / "model.gguf")) as replica:

        def vectors(texts: list[str]) -> list[list[float]]:
            asked = {"model": "m", "input": texts}
            answer = httpx.post(f"{replica.url}/v1/embeddings", json=asked, timeout=60)
            return [row["embedding"] for row in answer.json()["data"]]

        texts = ["the cat", "the year", "hello the cat the year", "the cat", "hello"]
        alone = [vectors([text])[0] for text in texts]
        for got, wanted in zip(vectors(texts), alone, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)
