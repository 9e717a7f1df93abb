"""Specifies train/data: what is made, what is kept out, how it is packed, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from caudal.domain.errors import DataError
from caudal.domain.workload import StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.chat import ASSISTANT, END, USER
from caudal.train.data import tinyworld
from caudal.train.data.builtin import messages_of
from caudal.train.data.own import OwnVocabulary
from caudal.train.data.pack import Packer
from caudal.train.data.prepare import TINYWORLD, load_manifest, prepare
from caudal.train.data.samples import Samples, read_tokens, windows
from caudal.train.data.tokenizer import train_tokenizer
from caudal.train.fetch import data_folder

CHAT = TrainSpec(
    name="tiny",
    data=TINYWORLD,
    stages=(
        StageSpec("read", tokens=20_000, sample_tokens=64),
        StageSpec("chat", tokens=8_000, kind="chat", sample_tokens=96),
    ),
    tokenizer=TokenizerSpec(entries=400),
)


def text_spec(path: Path, **kind: str) -> TrainSpec:
    """A run on a text file, by characters."""
    stage = StageSpec("read", tokens=1_000, sample_tokens=16, **kind)  # type: ignore[arg-type]
    return TrainSpec(name="text", data=str(path), stages=(stage,), tokenizer=TokenizerSpec(kind="characters"))


def test_the_tiny_world_is_the_same_for_the_same_seed() -> None:
    assert list(islice(tinyworld.documents(3), 50)) == list(islice(tinyworld.documents(3), 50))
    assert list(islice(tinyworld.dialogues(3), 50)) == list(islice(tinyworld.dialogues(3), 50))
    assert tinyworld.heldout(3, 50) == tinyworld.heldout(3, 50)
    assert list(islice(tinyworld.documents(3), 50)) != list(islice(tinyworld.documents(4), 50))


def test_no_dialogue_asks_what_is_held_out() -> None:
    unseen = {exchange.question for exchange in tinyworld.heldout(1, 200)}
    assert len(unseen) == 200
    for dialogue in islice(tinyworld.dialogues(2), 10_000):
        for exchange in dialogue:
            assert not exchange.held_out
            assert exchange.question not in unseen


def test_the_tiny_world_speaks_both_languages_and_greets() -> None:
    asked = {turn.question: turn.answer for d in islice(tinyworld.dialogues(1), 20_000) for turn in d}
    assert asked["Hello!"] == "Hello! How can I help you?"
    assert asked["hola, qué tal"] == "¡Hola! ¿En qué puedo ayudarte?"
    assert "Caudal" in asked["who are you"]
    assert asked["What sound does a cow make?"] == "The cow says moo."


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b" \n ", "empty"), (b"ab\0c", "binary"), (b"caf\xe9 con leche", "not UTF-8")],
)
def test_what_is_not_text_is_refused_with_a_remedy(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "data.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        prepare(text_spec(file), open_blobs("memory://"), "r")
    assert caught.value.remedy
    assert caught.value.where == str(file)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    for name, said in (("none.txt", "no such file"), ("void", "folder is empty")):
        with pytest.raises(DataError, match=said):
            prepare(text_spec(tmp_path / name), open_blobs("memory://"), "r")


def test_the_end_of_a_text_is_kept_for_validation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 100 + "XYZ" * 50 + "é" * 50)
    blobs = open_blobs("memory://")
    manifest = prepare(
        dataclasses.replace(text_spec(tmp_path / "a.txt"), validation_fraction=0.2), blobs, "r"
    )
    folder = data_folder(blobs, "r", manifest, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    said = {
        name: tokenizer.decode(read_tokens(folder / name, manifest).tolist())
        for name in ("stage-0.tokens.bin", "validation.tokens.bin")
    }
    assert said["stage-0.tokens.bin"] == "abcdefgh" * 100
    assert said["validation.tokens.bin"] == "XYZ" * 50 + "é" * 50


def test_a_text_shorter_than_two_samples_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("hardly anything")
    with pytest.raises(DataError, match="too short"):
        prepare(text_spec(file), open_blobs("memory://"), "runs/r/g1")


def test_a_text_file_has_no_chat(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("words " * 1000)
    with pytest.raises(DataError, match="no dialogues"):
        prepare(text_spec(file, kind="chat"), open_blobs("memory://"), "runs/r/g1")


def test_a_bpe_that_cannot_hold_all_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="cannot hold all bytes"):
        train_tokenizer(TokenizerSpec(entries=100), ["text"], chat=True)


def test_both_tokenizers_give_the_text_back() -> None:
    text = "¿Qué dijo él? «¡Ay!», 你好 — it's 12\n\n\tfine  "
    for spec in (TokenizerSpec(entries=300), TokenizerSpec(kind="characters")):
        tokenizer = train_tokenizer(spec, [text], chat=True)
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id(END) == 0
    assert len(tokenizer.encode(text).ids) == len(text), "one token a character"


def test_dialogues_are_packed_whole_and_only_the_assistants_words_count() -> None:
    said = [messages_of(dialogue) for dialogue in islice(tinyworld.dialogues(1), 500)]
    words = [turn.content for messages in said for turn in messages]
    tokenizer = train_tokenizer(TokenizerSpec(entries=500), words, chat=True)
    packer = Packer(200, tokenizer.token_to_id(END))
    for tokens, mask in OwnVocabulary(tokenizer).dialogues(said):
        packer.add(tokens, mask)
    rows = packer.take()
    user, assistant, end = (tokenizer.token_to_id(name) for name in (USER, ASSISTANT, END))
    assert len(rows) > 50 and packer.take() == []
    for tokens, masks in rows:
        assert len(tokens) == len(masks) == 200
        assert tokens[0] == user
        counts = False
        for token, mask in zip(tokens, masks, strict=True):
            assert mask == int(counts), "from after <|assistant|> up to <|end|>, and nothing else"
            if token == assistant:
                counts = True
            elif token == end:
                counts = False


def test_prepare_is_done_once_and_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = open_blobs("memory://"), open_blobs((tmp_path / "blobs").as_uri())
    assert load_manifest(first, "runs/r/g1") is None
    manifest = prepare(CHAT, first, "runs/r/g1")
    assert prepare(CHAT, second, "runs/r/g1") == manifest
    assert load_manifest(first, "runs/r/g1") == manifest
    paths = first.list("runs/r/g1/")
    assert paths == second.list("runs/r/g1/")
    assert all(first.get(path) == second.get(path) for path in paths)
    first.put("runs/r/g1/data/tokenizer.json", b"touched")
    assert prepare(CHAT, first, "runs/r/g1") == manifest
    assert first.get("runs/r/g1/data/tokenizer.json") == b"touched", "what is made is not made again"


def test_the_held_out_questions_lie_beside_the_data(tmp_path: Path) -> None:
    blobs = open_blobs("memory://")
    folder = data_folder(blobs, "r", prepare(CHAT, blobs, "r"), tmp_path)
    asked = json.loads((folder / "heldout.json").read_text())
    assert len(asked) == 200
    assert {"kind", "question", "answer"} <= asked[0].keys()


def test_targets_are_the_next_tokens(tmp_path: Path) -> None:
    blobs = open_blobs("memory://")
    manifest = prepare(CHAT, blobs, "r")
    folder = data_folder(blobs, "r", manifest, tmp_path)
    stream = read_tokens(folder / "stage-0.tokens.bin", manifest)
    batch = Samples(folder, manifest, 0, seed=1).batch([0, 1, 5])
    assert batch.tokens.shape == (3, 64) and batch.rows is None
    for row, targets in zip(batch.tokens, batch.targets.reshape(3, 64), strict=True):
        start = next(i for i in range(len(stream)) if np.array_equal(stream[i : i + 64], row))
        assert np.array_equal(stream[start + 1 : start + 65], targets)


def test_chat_targets_are_answers(tmp_path: Path) -> None:
    blobs = open_blobs("memory://")
    manifest = prepare(CHAT, blobs, "r")
    folder = data_folder(blobs, "r", manifest, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = Samples(folder, manifest, 1, seed=1).batch([0, 1])
    assert batch.rows is not None and len(batch.rows) == len(batch.targets) > 0
    assert np.array_equal(batch.tokens.reshape(-1)[batch.rows[1:]][np.diff(batch.rows) == 1],
                          batch.targets[:-1][np.diff(batch.rows) == 1])  # fmt: skip
    assert USER not in tokenizer.decode(batch.targets.tolist(), skip_special_tokens=False)


def test_validation_windows_follow_each_other() -> None:
    batches = windows(np.arange(100), 16, 4)
    assert [batch.tokens.shape for batch in batches] == [(4, 16), (2, 16)]
    assert np.array_equal(np.concatenate([b.targets for b in batches]), np.arange(1, 97))


@pytest.mark.parametrize(
    ("kind", "digest"),
    [("bpe", "84fc141ae6eb4984"), ("characters", "7d14c72184ecf747"), ("tinyworld", "b3a46408e64bb0cc")],
)
def test_a_run_of_long_ago_would_be_prepared_alike(tmp_path: Path, kind: str, digest: str) -> None:
    """Digests of what the first version made, before data was streamed."""
    file = tmp_path / "a.txt"
    lines = (f"Line {n * n % 977} of «{n}»,\r\n  and  more." + "\n" * (n % 4) for n in range(9_000))
    file.write_bytes(("\ufeff" + "".join(lines)).encode())
    stages = (
        StageSpec("read", tokens=9_000, sample_tokens=64),
        StageSpec("chat", tokens=4_000, kind="chat", sample_tokens=96),
    )
    spec = TrainSpec("a", TINYWORLD, stages, tokenizer=TokenizerSpec(entries=400))
    if kind != "tinyworld":
        spec = dataclasses.replace(spec, data=str(file), stages=stages[:1])
    if kind == "characters":
        spec = dataclasses.replace(spec, tokenizer=TokenizerSpec(kind="characters"))
    blobs, found = open_blobs("memory://"), hashlib.sha256()
    prepare(spec, blobs, "r")
    for path in blobs.list("r/data/"):
        if path != "r/data/manifest.json":
            found.update(path.encode() + blobs.get(path))
    assert found.hexdigest()[:16] == digest
