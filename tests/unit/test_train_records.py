"""Specifies how records of a user's become a run's data: what is trained on, what is kept out, in which files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from caudal.domain.errors import DataError, StorageFailed
from caudal.domain.workload import StageSpec, TokenizerSpec, TrainSpec
from caudal.ports import Blobs
from caudal.store.blobs import ObjectBlobs, open_blobs, open_store_at
from caudal.train.chat import ASSISTANT, END, USER, render
from caudal.train.data import from_records, making
from caudal.train.data.keep_out import choose, fingerprint
from caudal.train.data.prepare import prepare
from caudal.train.data.samples import Samples, read_tokens
from caudal.train.data.shards import Shards, named
from caudal.train.fetch import data_folder
from caudal.train.interface import DataManifest
from caudal.train.sources.base import Dialogue, Message, Text
from caudal.train.sources.corpus import open_corpus
from tests.support.object_stores import Server, s3

__all__ = ["s3"]

READ = StageSpec("read", tokens=3_000, sample_tokens=32)
CHAT = StageSpec("chat", tokens=2_000, kind="chat", sample_tokens=48)


def talk(number: int) -> dict[str, Any]:
    """A dialogue of two turns and a system's word."""
    said = (("system", "Be kind."), ("user", f"What is {number}? "), ("assistant", f"{number}, and no more."))
    more = (("user", "Thanks"), ("assistant", "Any time."))
    return {"messages": [{"role": role, "content": content} for role, content in said + more]}


def spec_of(data: Path, *stages: StageSpec, entries: int = 300) -> TrainSpec:
    """A run on the data."""
    return TrainSpec("mine", str(data), stages, tokenizer=TokenizerSpec(entries=entries))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Two hundred dialogues."""
    return write(tmp_path / "talks.jsonl", [talk(number) for number in range(200)])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three hundred texts."""
    return write(tmp_path / "texts.jsonl", [{"text": f"Text {n} is about {n * n}."} for n in range(300)])


def said(folder: Path, manifest: DataManifest, name: str) -> str:
    """A token file in words, who speaks and ends included."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words: str = tokenizer.decode(read_tokens(folder / name, manifest).tolist(), skip_special_tokens=False)
    return words


def made(spec: TrainSpec, cache: Path, blobs: Blobs | None = None) -> tuple[Path, DataManifest]:
    """The run's data in a folder."""
    blobs = blobs or open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    return data_folder(blobs, "r", manifest, cache / "cache"), manifest


def test_each_text_is_trained_on_or_kept_out_and_ends(tmp_path: Path, texts: Path) -> None:
    folder, manifest = made(spec_of(texts, READ), tmp_path)
    training = said(folder, manifest, "stage-0.tokens.bin").split(END)[:-1]
    validation = said(folder, manifest, "validation.tokens.bin").split(END)[:-1]
    all_of_it = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    assert sorted(training + validation) == sorted(all_of_it)
    assert 10 <= len(validation) <= 60, "about a tenth"
    assert manifest.details["chat"] is False


def test_a_text_stage_reads_dialogues_as_the_template_says_them(tmp_path: Path, talks: Path) -> None:
    folder, manifest = made(spec_of(talks, READ, CHAT), tmp_path)
    text = said(folder, manifest, "stage-0.tokens.bin") + said(folder, manifest, "validation.tokens.bin")
    for number in range(200):
        assert render(talk(number)["messages"]) in text
    assert manifest.details["chat"] is True


def test_a_chat_stage_counts_the_assistants_words_alone(tmp_path: Path, talks: Path) -> None:
    folder, manifest = made(spec_of(talks, READ, CHAT), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = Samples(folder, manifest, 1, seed=1).batch(range(manifest.stages[1].samples))
    words = tokenizer.decode(batch.targets.tolist(), skip_special_tokens=False)
    assert "and no more." in words and "Any time." in words
    for others in ("What is", "Thanks", "Be kind", USER, ASSISTANT):
        assert others not in words
    assert words.count(END) == words.count("no more.") + words.count("Any time.")


def test_one_dialogue_of_few_is_kept_out(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [talk(number) for number in range(3)])
    folder, manifest = made(spec_of(few, CHAT), tmp_path)
    validation = read_tokens(folder / "validation.tokens.bin", manifest)
    assert len(validation) >= CHAT.sample_tokens + 1, "something to evaluate"
    assert said(folder, manifest, "stage-0.tokens.bin").count("and no more.") == 2


def test_without_a_fraction_nothing_is_kept_out(tmp_path: Path, texts: Path) -> None:
    spec = dataclasses.replace(spec_of(texts, READ), validation_fraction=0.0)
    folder, manifest = made(spec, tmp_path)
    assert said(folder, manifest, "stage-0.tokens.bin").count(END) == 300
    assert len(read_tokens(folder / "validation.tokens.bin", manifest)) == 0


def test_characters_know_what_is_kept_out_too(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", [{"text": chr(0x4E00 + n) * 9} for n in range(400)])
    spec = dataclasses.replace(spec_of(rows, READ), tokenizer=TokenizerSpec(kind="characters"))
    folder, manifest = made(spec, tmp_path)
    both = said(folder, manifest, "stage-0.tokens.bin") + said(folder, manifest, "validation.tokens.bin")
    assert len(both.replace(END, "")) == 400 * 9


@pytest.mark.parametrize(
    ("rows", "stage", "what"),
    [
        ([{"text": "a"}] * 9, CHAT, "no dialogues"),
        ([{"text": "a"}] * 9, READ, "too short"),
        ([{"messages": [{"role": "user", "content": "alone"}]}] * 9, CHAT, "no dialogue has an answer"),
        ([{"prompt": " ".join(map(str, range(999))), "completion": "y"}], CHAT, "no dialogue has an answer"),
        ([talk(1), {"text": "a"}], CHAT, "mixes texts and dialogues"),
    ],
)
def test_data_that_does_not_fit_the_stages_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], stage: StageSpec, what: str
) -> None:
    data = write(tmp_path / "a.jsonl", rows)
    blobs = open_blobs("memory://")
    with pytest.raises(DataError, match=what) as caught:
        prepare(spec_of(data, stage), blobs, "r")
    assert str(data) in caught.value.where and caught.value.remedy
    assert "r/data/manifest.json" not in blobs.list("r/")


def test_only_what_the_stages_need_is_read(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "USED_WHOLE_TOKENS", 0)
    monkeypatch.setattr(from_records, "USED_WHOLE_TOKENS", 0)
    monkeypatch.setattr(from_records, "_RECORDS_AT_ONCE", 10)
    with texts.open("a") as file:
        file.write("{broken")
    stage = StageSpec("read", tokens=500, sample_tokens=16)
    data = spec_of(texts, stage)
    monkeypatch.setattr("caudal.train.data.own.TOKENIZER_CHARACTERS", 100)
    monkeypatch.setattr("caudal.train.data.keep_out._FIRST_RECORDS", 100)
    folder, manifest = made(data, tmp_path)
    assert len(read_tokens(folder / "stage-0.tokens.bin", manifest)) == 500 + 2 * 16


class Dies(ObjectBlobs):
    """A store whose process dies after so many writes."""

    writes = 5

    def put_file(self, path: str, file: Path, *, if_absent: bool = False) -> None:
        """The last one is not made."""
        self.writes -= 1
        if not self.writes:
            raise StorageFailed("killed")
        super().put_file(path, file, if_absent=if_absent)


def objects(blobs: Blobs) -> dict[str, bytes]:
    """All that a run has."""
    return {path: blobs.get(path) for path in blobs.list("r/")}


def test_what_died_half_way_is_made_again_with_the_same_bytes(tmp_path: Path, talks: Path) -> None:
    spec, whole = spec_of(talks, READ, CHAT), open_blobs("memory://")
    prepare(spec, whole, "r", shard_bytes=1_000)
    half = open_blobs((tmp_path / "half").as_uri())
    dying = Dies(half.url, half._store, tmp_path / "half")  # type: ignore[attr-defined]
    with pytest.raises(StorageFailed, match="killed"):
        prepare(spec, dying, "r", shard_bytes=1_000)
    assert objects(half) and "r/data/manifest.json" not in objects(half)
    prepare(spec, half, "r", shard_bytes=1_000)
    assert objects(half) == objects(whole)
    assert len(objects(whole)) > 10


def test_shards_are_fetched_and_a_damaged_one_is_not_used(tmp_path: Path, talks: Path) -> None:
    blobs = open_blobs("memory://")
    manifest = prepare(spec_of(talks, READ, CHAT), blobs, "r", shard_bytes=1_000)
    names = named(manifest.stages[0].files, "stage-0.tokens")
    assert len(names) > 3 and names[1] == "stage-0.tokens-00001.bin"
    folder = data_folder(blobs, "r", manifest, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(before) == {*manifest.files, *(name for stage in manifest.stages for name in stage.files)}
    (folder / names[1]).write_bytes(b"touched")
    data_folder(blobs, "r", manifest, tmp_path)
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {names[1]}
    blobs.put(f"r/data/{names[2]}", b"touched")
    (folder / names[2]).unlink()
    with pytest.raises(StorageFailed, match="not what the manifest says"):
        data_folder(blobs, "r", manifest, tmp_path)
    assert not (folder / names[2]).exists() and not list(folder.glob("*.unchecked"))


def test_a_long_record_is_cut_into_pieces_but_is_one_document(tmp_path: Path) -> None:
    long = "word " * 60_000
    rows = write(tmp_path / "a.jsonl", [{"text": long}, {"text": "short"}, {"text": "other"}])
    spec = dataclasses.replace(spec_of(rows, READ), validation_fraction=0.0)
    folder, manifest = made(spec, tmp_path)
    assert said(folder, manifest, "stage-0.tokens.bin").split(END) == [long, "short", "other", ""]


def test_the_same_words_are_kept_out_wherever_they_stand() -> None:
    one, other = Text("a"), Dialogue((Message("user", "a"), Message("assistant", "b")))
    assert fingerprint(one) == fingerprint(Text("a", ends=False)) != fingerprint(other)
    records = [Text(str(number)) for number in range(2_000)]
    kept_out = choose(records, 0.1)
    assert 120 < sum(record in kept_out for record in records) < 280
    assert choose(records[:1], 0.5).fraction == 0 and choose([], 0.5).fraction == 0
    assert sum(record in choose(records[:3], 1e-9) for record in records[:3]) == 1


def test_shards_read_as_one_array(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}").write_bytes(np.arange(number * 4, number * 4 + 4, dtype="<u2").tobytes())
    shards = Shards([tmp_path / f"{number}" for number in range(3)], np.dtype("<u2"))
    assert len(shards) == 12
    for start in range(13):
        for stop in range(start, 13):
            assert shards.read(start, stop).tolist() == list(range(start, stop))


def test_a_folder_of_texts_is_one_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"book {number} " * 200)
    assert open_corpus(str(folder)).single_text is None
    at, manifest = made(spec_of(folder, READ), tmp_path)
    text = said(at, manifest, "stage-0.tokens.bin")
    assert text.count(END) == 4 and text.endswith(END)
    (folder / "0.txt").rename(tmp_path / "one.txt")
    assert open_corpus(str(tmp_path / "one.txt")).single_text is not None


@pytest.mark.cluster
def test_data_in_an_object_store_is_prepared_as_on_disk(
    tmp_path: Path, talks: Path, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("caudal.train.sources.text.CHUNK_BYTES", 1_000)
    text = tmp_path / "one.txt"
    text.write_text("".join(f"{number} «é» and more\n" for number in range(2_000)))
    store = open_store_at("s3://fleet")
    for file, stages in ((text, (READ,)), (talks, (READ, CHAT))):
        store.put_file(f"data/{file.name}", file)
        here, there = open_blobs("memory://"), open_blobs("s3://fleet/caudal")
        manifest = prepare(spec_of(file, *stages), here, "r", shard_bytes=5_000)
        there_too = spec_of(Path("x"), *stages)
        address = f"s3://fleet/data/{file.name}"
        found = prepare(dataclasses.replace(there_too, data=address), there, file.stem, shard_bytes=5_000)
        assert (found.stages, found.files) == (manifest.stages, manifest.files)
        folder = data_folder(there, file.stem, found, tmp_path / "cache")
        for name in found.files:
            assert (folder / name).read_bytes() == here.get(f"r/data/{name}")
