"""A run that begins from a base, over two sites as real processes: killed and gone on, audited, taken again, published."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from caudal.domain.workload import InnerSpec, TrainSpec
from caudal.spec import load
from caudal.store.blobs import ObjectBlobs, open_blobs
from caudal.store.models import ModelStore
from caudal.train import checkpoint, epochs, ledger
from caudal.train.audit import audit_run
from caudal.train.base import layout, model
from tests.support.bases import run_on, write_base

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune"


class Run:
    """A run's gangs, started and killed by hand."""

    def __init__(self, folder: Path, spec: TrainSpec) -> None:
        self.folder, self.spec = folder, spec
        self.blobs: ObjectBlobs = open_blobs((folder / "blobs").as_uri())
        self.prefix = f"runs/{spec.name}/g1"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, role: str, gang: str, **more: object) -> subprocess.Popen[bytes]:
        """Start `python -m caudal.train.ROLE`."""
        config = {
            "run": self.spec.name,
            "generation": 1,
            "site": gang.rpartition("-")[0].rpartition(".")[2],
            "gang": gang,
            "blobs_url": (self.folder / "blobs").as_uri(),
            "cache_dir": str(self.folder / "cache"),
            "spec": msgspec.to_builtins(self.spec),
            "token": "secret",
            **({"threads": 1, "standby": False} if role == "worker" else {}),
            **more,
        }
        path = self.folder / f"{gang}.json"
        path.write_text(json.dumps(config))
        with (self.folder / f"{gang}.log").open("ab") as log:
            command = [sys.executable, "-m", f"caudal.train.{role}", str(path)]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.processes[-1]

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-4000:]}" for p in sorted(self.folder.glob("*.log")))

    def until(self, what: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)

    def ends(self, process: subprocess.Popen[bytes], code: int = 0, seconds: float = 120.0) -> None:
        self.until(lambda: process.poll() is not None, seconds)
        assert process.returncode == code, self.logs()

    def round(self) -> int:
        return len(self.blobs.list(f"{self.prefix}/ledger/"))

    def epoch(self) -> int:
        found = epochs.newest(self.blobs, self.prefix)
        return found.epoch if found else 0

    def replayed(self) -> dict[str, Any]:
        """What `caudal replay` says."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "caudal.cli",
                "--home",
                str(self.folder),
                "replay",
                self.spec.name,
                "--json",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[TrainSpec], Run]]:
    made: list[Run] = []

    def start(spec: TrainSpec) -> Run:
        made.append(Run(tmp_path, spec))
        return made[-1]

    yield start
    for run in made:
        for process in run.processes:
            process.kill()
            process.wait()


def test_adapters_over_two_sites_whatever_is_killed(
    started: Callable[[TrainSpec], Run], tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    asked = run_on(base, tmp_path / "text.txt")
    samples = 4 * 500  # long enough that the killed worker comes back before the end
    stage = replace(asked.stages[0], tokens=32 * samples)
    run = started(replace(asked, stages=(stage,), checkpoint_every_rounds=10))
    boss = run.start("coordinator", "tuned.coordinator-1")
    run.until(lambda: bool(psutil.Process(boss.pid).children()))
    (child,) = psutil.Process(boss.pid).children()
    boss.kill()  # while its process that needs torch brings the base in
    boss.wait()
    assert not psutil.wait_procs([child], timeout=20.0)[1]
    boss = run.start("coordinator", "tuned.coordinator-2")
    workers = [run.start("worker", f"tuned.worker.{number}-1") for number in range(2)]
    run.until(lambda: run.round() > 5)
    workers[1].kill()
    reached = run.round()
    run.until(lambda: run.round() > reached + 2)  # the other goes on
    workers[1] = run.start("worker", "tuned.worker.1-2")
    for process in (boss, *workers):
        run.ends(process)
    report = audit_run(run.blobs, run.spec.name)
    assert report.finished and not report.missing and report.ids == report.ids_total == samples
    assert report.sites == ("0", "1")
    again = run.replayed()
    assert again["comparable"] and not again["differs"] and again["compared"] == report.rounds
    assert again["state_sha256"] == report.state_sha256

    links = ledger.read_from(run.blobs, run.prefix, None)
    assert links[-1].entry.loss < links[0].entry.loss
    update = run.blobs.get(ledger.update_path(run.prefix, 1, links[0].entry.update_sha256))
    found = layout.begun(run.blobs, run.prefix)
    assert found is not None and len(update) < 2 * found.trained < found.whole  # adapters alone travel

    record = ModelStore(run.blobs, tmp_path / "models").get("tuned")
    assert record.run == "tuned" and record.gguf and "adapter/adapter_model.safetensors" in dict(record.files)
    published = ModelStore(run.blobs, tmp_path / "models").materialise(record)
    state, _ = checkpoint.at_round(run.blobs, run.prefix, links, len(links))
    merged = model.built(base, found)
    model.write(merged, state, found.parameters)
    tokens = torch.arange(10).reshape(1, 10)
    with torch.no_grad():
        wanted = merged(input_ids=tokens).logits
        got = AutoModelForCausalLM.from_pretrained(published).eval()(input_ids=tokens).logits
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)


def test_a_coordinator_that_comes_back_needs_no_torch_and_a_wrong_base_is_said(
    started: Callable[[TrainSpec], Run], tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", "gpt2")
    run = started(run_on(base, tmp_path / "text.txt", "full"))
    first = run.start("coordinator", "tuned.coordinator-1")
    run.until(lambda: run.epoch() == 1)
    first.kill()
    second = run.start("coordinator", "tuned.coordinator-2")
    begun_at = time.monotonic()
    run.until(lambda: run.epoch() == 2)
    assert not psutil.Process(second.pid).children() and time.monotonic() - begun_at < 10
    other = replace(run.spec, base=replace(run.spec.base, method="lora"))
    run.ends(run.start("worker", "tuned.worker.0-1", spec=msgspec.to_builtins(other)), 5)
    assert "begun with another base" in run.logs() and "its data says full" in run.logs()
    second.kill()
    wrong = started(replace(run.spec, name="wrong", base=replace(run.spec.base, path=str(tmp_path))))
    wrong.ends(wrong.start("coordinator", "wrong.coordinator-1"), 1)
    assert "neither a GGUF file nor a Hugging Face directory" in wrong.logs()


def test_the_example_with_two_processes_a_site(started: Callable[[TrainSpec], Run], tmp_path: Path) -> None:
    """Its own base takes minutes: a tiny one stands in, of an architecture that llama.cpp is not told of here."""
    asked = next(s for s in load(EXAMPLE) if isinstance(s, TrainSpec))
    assert asked.base.method == "lora" and asked.base.path.startswith("pypi:")
    base = replace(asked.base, path=str(write_base(tmp_path / "base", "gpt2")), rank=4)
    stage = replace(asked.stages[0], tokens=64 * 2 * 24, sample_tokens=64)
    text = tmp_path / "text.txt"
    text.write_text(Path(asked.data).read_text()[:50_000])
    inner = InnerSpec(processes=2, strategy="fsdp2")
    run = started(replace(asked, data=str(text), base=base, stages=(stage,), inner=inner, sites=1))
    boss, worker = run.start("coordinator", "x.coordinator-1"), run.start("worker", "x.worker.0-1")
    run.ends(boss)
    run.ends(worker)
    report = audit_run(run.blobs, run.spec.name)
    assert report.finished and report.ids == report.ids_total == 48
    record = ModelStore(run.blobs, tmp_path / "models").get("finetune")
    assert not record.gguf and "no GGUF is published" in run.logs()  # it can be loaded, and not be served
    card = (ModelStore(run.blobs, tmp_path / "models").materialise(record) / "README.md").read_text()
    assert "GPT2LMHeadModel" in card and "There is no GGUF file: it is written for LlamaForCausalLM" in card
