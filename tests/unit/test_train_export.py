"""Specifies train/export: the folder that transformers loads with the same logits, and the GGUF beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from caudal.domain.errors import StorageFailed
from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.train.chat import CHAT_TEMPLATE, render
from caudal.train.data.prepare import TINYWORLD, prepare
from caudal.train.export import GGUF, export
from caudal.train.gguf_file import gguf_name, side_by_side
from caudal.train.interface import DataManifest, Flat
from caudal.train.layout import initial_state, tensors, views
from caudal.train.model import Llama
from caudal.train.model_card import Facts

SPEC = TrainSpec(
    name="tiny",
    data=TINYWORLD,
    stages=(StageSpec("read", tokens=8_000), StageSpec("chat", tokens=4_000, kind="chat")),
    tokenizer=TokenizerSpec(entries=400),
    model=ModelShape(layers=2, heads=4, kv_heads=2, width=64, ffn_width=96, context=128),
    publish="tiny-model",
)
FACTS = Facts(tokens=12_000, rounds=3, sites=("north", "south"), loss=1.25, val_loss=2.5,
              heldout={"correct": 7, "of": 20, "kinds": {"sound": {"correct": 7, "of": 20}}})  # fmt: skip


class Exported:
    """A model of first values, exported."""

    def __init__(self, folder: Path, spec: TrainSpec) -> None:
        self.blobs: Blobs = open_blobs("memory://")
        self.spec, self.folder = spec, folder
        self.manifest: DataManifest = prepare(spec, self.blobs, "r")
        self.state: Flat = initial_state(spec.model, self.manifest.vocab, 1)
        self.files = export(self.state, spec, self.manifest, self.blobs, "r", folder, FACTS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The chat model."""
    return Exported(tmp_path_factory.mktemp("export"), SPEC)


def test_the_folder_is_complete(exported: Exported) -> None:
    assert exported.files == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", GGUF, "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    weights = load_file(exported.folder / "model.safetensors")
    parameters = tensors(SPEC.model, exported.manifest.vocab)
    expected = views(exported.state, parameters)
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in weights)


def test_transformers_gives_the_same_logits(exported: Exported) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported.folder)
    tokens = torch.randint(0, exported.manifest.vocab, (3, SPEC.model.context))
    with torch.no_grad():
        theirs = model(tokens).logits.reshape(-1, exported.manifest.vocab)
    ours = Llama(SPEC.model, exported.manifest.vocab).logits(torch.from_numpy(exported.state), tokens)
    assert theirs.std() > 0.1, "logits that are all alike would agree too"
    assert (theirs - ours).abs().max() < 1e-4


def test_transformers_tokenises_and_renders_chat_as_the_trainer_does(exported: Exported) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " ¿Qué tal? "},
        {"role": "assistant", "content": "Bien."},
        {"role": "user", "content": "Adiós"},
    ]
    for prompt in (False, True):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert text == render(messages, add_generation_prompt=prompt)
    assert text == "<|user|>¿Qué tal?<|assistant|>Bien.<|end|><|user|>Adiós<|assistant|>"
    ours = exported.blobs.get("r/data/tokenizer.json").decode()
    from tokenizers import Tokenizer

    assert tokenizer(text)["input_ids"] == Tokenizer.from_str(ours).encode(text).ids
    assert tokenizer.eos_token == "<|end|>"


def test_the_card_says_what_is_known_and_unknown(exported: Exported, tmp_path: Path) -> None:
    card = (exported.folder / "README.md").read_text()
    assert "# tiny-model" in card and "license: cc0-1.0" in card
    assert "12,000 tokens in 3 rounds over 2 site(s): north, south" in card
    assert "2.5000 nats" in card and "7 of 20 (35 %)" in card
    export(exported.state, SPEC, exported.manifest, exported.blobs, "r", tmp_path, Facts(1, 1, ("north",)))
    assert "| validation loss | unknown |" in (tmp_path / "README.md").read_text()


def test_the_card_of_a_users_dialogues_says_nothing_of_the_tiny_world(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n' * 99)
    spec = dataclasses.replace(SPEC, data=str(tmp_path / "a.jsonl"), stages=SPEC.stages[1:])
    card = (Exported(tmp_path / "model", spec).folder / "README.md").read_text()
    assert "language:" not in card and "tiny world" not in card and "manner of the dialogues" in card
    assert f"a.jsonl` ({99 * 7} characters)" in card


def test_the_same_run_exports_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    export(exported.state, SPEC, exported.manifest, exported.blobs, "r", tmp_path, FACTS)
    for name in exported.files:
        assert (tmp_path / name).read_bytes() == (exported.folder / name).read_bytes(), name


def test_a_folder_that_cannot_be_written_is_said(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageFailed, match="could not be written"):
        export(exported.state, SPEC, exported.manifest, exported.blobs, "r", tmp_path / "file", FACTS)


def test_a_model_of_text_goes_on_with_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("To be, or not to be, «é». " * 200)
    spec = TrainSpec(
        name="letters", data=str(tmp_path / "data.txt"), stages=(StageSpec("read", tokens=100, sample_tokens=16),),
        tokenizer=TokenizerSpec(kind="characters"), model=SPEC.model,
    )  # fmt: skip
    exported = Exported(tmp_path / "out", spec)
    config = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] != CHAT_TEMPLATE
    assert "license:" not in (exported.folder / "README.md").read_text()


def test_names_and_rotary_order_for_llama_cpp() -> None:
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.12.mlp.down_proj.weight") == "blk.12.ffn_down.weight"
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert side_by_side(rows, 4).reshape(-1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
