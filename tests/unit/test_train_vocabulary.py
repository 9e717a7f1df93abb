"""Specifies train/data's vocabularies: a base's own tokenizer and template, and which of its tokens count."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from caudal.domain.errors import DataError
from caudal.domain.workload import BaseSpec, ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs, open_store_at
from caudal.train.chat import CHAT_TEMPLATE
from caudal.train.data.builtin import TINYWORLD
from caudal.train.data.own import OwnVocabulary, learn
from caudal.train.data.prepare import prepare
from caudal.train.data.pretrained import CHATML
from caudal.train.data.samples import Samples, read_tokens
from caudal.train.data.vocabularies import vocabulary_of
from caudal.train.data.vocabulary import Vocabulary
from caudal.train.export import GGUF, export
from caudal.train.fetch import data_folder
from caudal.train.layout import initial_state
from caudal.train.model_card import Facts
from caudal.train.sources.base import Message
from tests.support.object_stores import Server, s3

__all__ = ["s3"]

TALK = (
    Message("user", "What is it? "),
    Message("assistant", " A cat: ¡él!\n"),
    Message("user", "Sure?"),
    Message("assistant", "Yes."),
)
SYSTEM = (Message("system", "Be brief."), *TALK)
WORDS = [turn.content for turn in SYSTEM] * 3 + ["user assistant system think"] * 3

CHATML_WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
LEAVES_SYSTEM_OUT = CHATML.replace(
    "{{ '<|im_start|>'", "{% if message['role'] != 'system' %}{{ '<|im_start|>'"
).replace("{% endfor %}", "{% endif %}{% endfor %}")
THINKS = CHATML.replace(
    "message['content'] + '<|im_end|>'",
    "('think' if message['role'] == 'assistant' and loop.last else '') + message['content'] + '<|im_end|>'",
)


def base_at(
    folder: Path, template: str = "", special: list[str] | None = None, end: str = "<|im_end|>"
) -> Path:
    """A folder with a small tokenizer."""
    inner = learn(TokenizerSpec(entries=350), WORDS, chat=False).tokenizer
    inner.add_special_tokens(CHATML_WORDS if special is None else special)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, model_max_length=8)
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def of(path: Path | str, chat: bool = True) -> Vocabulary:
    """The base's vocabulary."""
    base = BaseSpec(path=str(path))
    spec = TrainSpec("b", TINYWORLD, (StageSpec("read", tokens=1_000),), base=base)
    return vocabulary_of(spec, chat=chat)


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """What lies beside the data."""
    return Tokenizer.from_str(vocabulary.files()["tokenizer.json"].decode())


def counted(vocabulary: Vocabulary, messages: tuple[Message, ...]) -> tuple[str, str]:
    """A dialogue in words: all of it, and what counts."""
    tokens, mask = vocabulary.dialogue(messages)
    assert len(tokens) == len(mask) and set(mask.tolist()) <= {0, 1}
    decode = tokenizer(vocabulary).decode
    return (
        decode(tokens.tolist(), skip_special_tokens=False),
        decode(tokens[mask == 1].tolist(), skip_special_tokens=False),
    )


def test_turns_with_a_system_message(tmp_path: Path) -> None:
    vocabulary = of(base_at(tmp_path, CHATML))
    whole, counts = counted(vocabulary, SYSTEM)
    assert whole == "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in SYSTEM)
    assert counts == " A cat: ¡él!\n<|im_end|>\nYes.<|im_end|>\n"
    assert vocabulary.size == len(tokenizer(vocabulary).get_vocab()) and vocabulary.end == vocabulary.size - 1
    assert vocabulary.encode(["A cat" * 20])[0].dtype == np.uint32, "nothing is cut at model_max_length"
    assert set(vocabulary.files()) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_several_are_each_as_one_alone(tmp_path: Path) -> None:
    vocabulary = of(base_at(tmp_path, CHATML))
    several = [SYSTEM, TALK, TALK[:2], TALK[:1]]
    for messages, (tokens, mask) in zip(several, vocabulary.dialogues(several), strict=True):
        alone = vocabulary.dialogue(messages)
        assert np.array_equal(alone[0], tokens) and np.array_equal(alone[1], mask)


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, LEAVES_SYSTEM_OUT])
def test_where_no_system_message_is_taken_the_user_says_it(tmp_path: Path, template: str) -> None:
    whole, counts = counted(of(base_at(tmp_path, template)), SYSTEM)
    assert whole.startswith("<|im_start|>user\nBe brief.\n\nWhat is it? <|im_end|>\n")
    assert counts == " A cat: ¡él!\n<|im_end|>\nYes.<|im_end|>\n"


def test_answers_that_a_later_turn_changes_do_not_count(tmp_path: Path) -> None:
    vocabulary = of(base_at(tmp_path, THINKS))
    assert counted(vocabulary, TALK)[1] == "thinkYes.<|im_end|>\n"
    assert counted(vocabulary, TALK[:2])[1] == "think A cat: ¡él!\n<|im_end|>\n"


def test_without_a_template_chatml_where_its_words_are_known(tmp_path: Path) -> None:
    assert counted(of(base_at(tmp_path / "a")), SYSTEM) == counted(
        of(base_at(tmp_path / "b", CHATML)), SYSTEM
    )


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    folder = base_at(tmp_path, special=["</s>"], end="</s>")
    assert tokenizer(of(folder, chat=False)).id_to_token(of(folder, chat=False).end) == "</s>"
    with pytest.raises(DataError, match="no chat template") as caught:
        of(folder)
    assert caught.value.where == str(folder) and "instruct" in caught.value.remedy


def test_a_template_that_refuses_a_dialogue_says_so(tmp_path: Path) -> None:
    picky = "{% if messages | length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"does not take(?s:.)*too many turns"):
        of(base_at(tmp_path, picky)).dialogue(TALK)


def test_bases_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        of(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    for name in ("empty", "broken", "broken.gguf"):
        with pytest.raises(DataError, match="tokenizer cannot be read") as caught:
            of(tmp_path / name)
        assert caught.value.remedy and caught.value.where == str(tmp_path / name)


def test_the_end_may_stand_in_the_models_configuration(tmp_path: Path) -> None:
    inner = learn(TokenizerSpec(entries=350), WORDS, chat=False).tokenizer
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="names no token that ends a text"):
        of(tmp_path, chat=False)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert of(tmp_path, chat=False).end == 7


def test_a_tokenizer_without_offsets(tmp_path: Path) -> None:
    slow = ByT5Tokenizer()
    slow.chat_template = CHATML
    slow.save_pretrained(tmp_path)
    vocabulary = of(tmp_path)
    tokens, mask = vocabulary.dialogue(SYSTEM)
    assert slow.decode(tokens[mask == 1].tolist()) == " A cat: ¡él!\n<|im_end|>\nYes.<|im_end|>\n"
    assert np.array_equal(vocabulary.encode([slow.decode(tokens.tolist())])[0], tokens)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Caudal's own, as the folder that a run leaves, with its GGUF."""
    folder = tmp_path_factory.mktemp("base")
    spec = TrainSpec(
        name="tiny",
        data=TINYWORLD,
        stages=(StageSpec("chat", tokens=4_000, kind="chat"),),
        tokenizer=TokenizerSpec(entries=400),
        model=ModelShape(layers=1, heads=2, kv_heads=1, width=16, ffn_width=32, context=128),
    )
    blobs = open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    state = initial_state(spec.model, manifest.vocab, 1)
    export(state, spec, manifest, blobs, "r", folder, Facts(1, 1, ("here",)))
    return folder


def same(vocabulary: Vocabulary, folder: Path) -> None:
    """The vocabulary says what the one says that the model was trained with."""
    own = OwnVocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")))
    for messages in (TALK, TALK[:2]):
        for one, other in zip(vocabulary.dialogue(messages), own.dialogue(messages), strict=True):
            assert np.array_equal(one, other)
    assert (vocabulary.size, vocabulary.end) == (own.size, own.end)
    assert np.array_equal(vocabulary.encode(WORDS)[0], own.encode(WORDS)[0])


def test_a_model_of_our_own_as_base(exported: Path) -> None:
    same(of(exported), exported)
    same(of(exported.as_uri()), exported)


def test_a_gguf_as_base(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    vocabulary = of(exported / GGUF)
    same(vocabulary, exported)
    said = json.loads(vocabulary.files()["tokenizer_config.json"])
    assert said["chat_template"] == CHAT_TEMPLATE and said["eos_token"] == "<|end|>"


@pytest.mark.cluster
def test_a_base_in_an_object_store(exported: Path, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    store = open_store_at("s3://fleet/bases/tiny")
    for file in exported.iterdir():
        store.put_file(file.name, file)
    same(of("s3://fleet/bases/tiny"), exported)
    same(of(f"s3://fleet/bases/tiny/{GGUF}"), exported)
    with pytest.raises(DataError, match="not there"):
        of("s3://fleet/bases/none.gguf")


@pytest.mark.parametrize("data", ["records", "builtin"])
def test_a_run_on_a_base_uses_its_tokens(tmp_path: Path, data: str) -> None:
    folder = base_at(tmp_path / "base", CHATML)
    file = tmp_path / "talks.jsonl"
    rows = [[turn._asdict() for turn in SYSTEM[: 3 + number % 2 * 2]] for number in range(40)]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    spec = TrainSpec(
        "b",
        str(file) if data == "records" else TINYWORLD,
        (StageSpec("read", tokens=900, sample_tokens=64), StageSpec("chat", 900, "chat", sample_tokens=96)),
        base=BaseSpec(path=str(folder)),
    )
    blobs = open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    at = data_folder(blobs, "r", manifest, tmp_path / "cache")
    learnt = Tokenizer.from_file(str(at / "tokenizer.json"))
    assert manifest.vocab == learnt.get_vocab_size() and {
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= set(manifest.files)
    text = learnt.decode(read_tokens(at / "stage-0.tokens.bin", manifest).tolist(), skip_special_tokens=False)
    assert "<|im_start|>user\n" in text and "<|im_end|>\n<|im_start|>assistant\n" in text
    targets = Samples(at, manifest, 1, 1).batch([0, 1]).targets.tolist()
    assert "<|im_start|>" not in learnt.decode(targets, skip_special_tokens=False)
