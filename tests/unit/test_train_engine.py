"""Specifies that llama.cpp says what the trainer's own model says: the same tokens, the same greedy answers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.ports import EngineLaunch
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.store.blobs import open_blobs
from caudal.train.chat import END
from caudal.train.data import tinyworld
from caudal.train.data.prepare import TINYWORLD, prepare
from caudal.train.export import GGUF, export
from caudal.train.fetch import data_folder
from caudal.train.heldout import prompt_tokens
from caudal.train.inner import TorchInner
from caudal.train.interface import Flat, IdRange, plan
from caudal.train.layout import initial_state
from caudal.train.model import Llama
from caudal.train.model_card import Facts

xllamacpp = pytest.importorskip("xllamacpp")

SPEC = TrainSpec(
    name="tiny",
    data=TINYWORLD,
    stages=(StageSpec("chat", tokens=350_000, kind="chat", sample_tokens=128, batch=4, learning_rate=6e-3),),
    tokenizer=TokenizerSpec(entries=512),
    model=ModelShape(layers=2, heads=4, kv_heads=2, width=64, ffn_width=128, context=256),
)
ANSWER_TOKENS = 40


class Served:
    """A model in llama.cpp's server, and what trained it."""

    def __init__(self, url: str, model: Llama, state: Flat, tokenizer: Tokenizer) -> None:
        self.url, self.model, self.tokenizer = url, model, tokenizer
        self.flat = torch.from_numpy(state)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """One request."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokenise(self, text: str) -> list[int]:
        """What llama.cpp makes of a text."""
        body = {"content": text, "parse_special": True, "add_special": True}
        tokens: list[int] = self.post("/tokenize", body)["tokens"]
        return tokens

    def answer(self, question: str) -> str:
        """What the engine says, greedily."""
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS}
        said: str = self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        return said

    def own_answer(self, question: str) -> str:
        """What the trainer's model says, greedily."""
        end = self.tokenizer.token_to_id(END)
        prompt = prompt_tokens(self.tokenizer, question)
        said: str = self.tokenizer.decode(self.model.generate(self.flat, prompt, end, ANSWER_TOKENS))
        return said


def serve(spec: TrainSpec, folder: Path, train: bool) -> Iterator[Served]:
    """Train (or not), export, and serve on loopback."""
    blobs = open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    of = plan(spec, manifest)
    state = initial_state(of.shape, of.vocab, of.seed)
    if train:
        inner = TorchInner(of, manifest, data_folder(blobs, "r", manifest, folder / "cache"))
        inner.load(state)
        state = inner.run(0, [IdRange(0, of.total_ids)], (0.0, 1.0), lambda _: False).params
    export(state, spec, manifest, blobs, "r", folder / "model", Facts(of.total_tokens, 1, ("here",)))
    engine = LlamaCppEngine()
    engine.start(EngineLaunch("tiny", folder / "model" / GGUF, "127.0.0.1", 0, 256, 2, 1))
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    yield Served(engine.url, Llama(of.shape, of.vocab), np.array(state), tokenizer)
    engine.stop()


TEXTS = (
    "a  b\n\n\n c   ", "¿Qué? «¡Ay!» 1234 it's don't 12 ñÑ üéíóú —…  ", "<|user|>hi<|assistant|>yes<|end|>",
    "\t\ttabs  \n", " ", "日本語 🙂 ok", "x\u00a0y", "A'LL we'Ll",
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A chat model that was trained for some seconds, so that its answers are no ties."""
    yield from serve(SPEC, tmp_path_factory.mktemp("chat"), train=True)


@pytest.mark.slow
def test_llama_cpp_tokenises_alike(chat: Served) -> None:
    texts = [*TEXTS, *islice(tinyworld.documents(9), 100)]
    texts += [e.question + "\n" + e.answer for e in tinyworld.heldout(9, 100)]
    assert [chat.tokenise(text) for text in texts] == [chat.tokenizer.encode(text).ids for text in texts]


@pytest.mark.slow
def test_fifty_greedy_answers_are_the_trainers_own(chat: Served) -> None:
    known = [d[0] for d in islice(tinyworld.dialogues(9), 60)]
    questions = [exchange.question for exchange in [*known[:30], *tinyworld.heldout(9, 20)]]
    assert len(questions) == 50
    own = [chat.own_answer(question) for question in questions]
    assert len(set(own)) > 25, "a model that always says the same proves nothing"
    said = [chat.answer(question) for question in questions]
    assert said == own


def test_characters_reach_llama_cpp_one_by_one(tmp_path: Path) -> None:
    text = "To be, or not to be: «¿él?» 你好\n" * 40
    (tmp_path / "data.txt").write_text(text)
    spec = TrainSpec(
        name="letters", data=str(tmp_path / "data.txt"), stages=(StageSpec("read", tokens=100, sample_tokens=16),),
        tokenizer=TokenizerSpec(kind="characters"), model=SPEC.model,
    )  # fmt: skip
    for served in serve(spec, tmp_path, train=False):
        line = "to be «él» 你\n"
        assert served.tokenise(line) == served.tokenizer.encode(line).ids
        assert len(served.tokenise(line)) == len(line)
        assert (
            served.post("/apply-template", {"messages": [{"role": "user", "content": "To"}]})["prompt"]
            == "To"
        )
