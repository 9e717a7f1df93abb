"""Specifies train/group: several processes of a site compute what one would, whichever way they share the model."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import torch

from caudal.domain.errors import UsageError
from caudal.domain.workload import InnerSpec
from caudal.store.blobs import open_blobs
from caudal.train.data.prepare import prepare
from caudal.train.fetch import data_folder
from caudal.train.group.inner import GroupInner
from caudal.train.group.member import Setup, computes_in
from caudal.train.inner import TorchInner
from caudal.train.interface import IdRange, InnerResult, plan
from caudal.train.layout import initial_state
from tests.unit.test_train_inner import SPEC, never


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    blobs, cache = open_blobs("memory://"), tmp_path_factory.mktemp("cache")
    manifest = prepare(SPEC, blobs, "r")
    folder = data_folder(blobs, "r", manifest, Path(cache))
    return Setup(plan(SPEC, manifest), manifest, str(folder), InnerSpec(precision="float32"), 1, str(cache))


@pytest.fixture(scope="module")
def alone(setup: Setup) -> tuple[InnerResult, InnerResult, InnerResult, dict[str, float]]:
    return trained(TorchInner(setup.plan, setup.manifest, Path(setup.folder)), setup)


def trained(
    inner: TorchInner | GroupInner, setup: Setup
) -> tuple[InnerResult, InnerResult, InnerResult, dict[str, float]]:
    """Twelve steps of text (the last batch short) with a change from outside among them, three of chat, and one more
    with its gradient."""
    inner.load(initial_state(setup.plan.shape, setup.plan.vocab, setup.plan.seed))
    change = np.linspace(-0.01, 0.01, 5000, dtype=np.float32)

    def between(step: int) -> bool:
        if step == 6:
            inner.add(300, change)
        return False

    first = inner.run(0, [IdRange(0, 45)], (0.0, 0.2), between, 1.4)
    chat = setup.plan.stages[1].first_id
    second = inner.run(1, [IdRange(chat, chat + 11)], (0.0, 0.1), never)
    third = inner.gradient(1, [IdRange(chat + 11, chat + 14)], (0.1, 0.2), never, 1.4)
    return first, second, third, inner.evaluate()


@pytest.mark.parametrize(
    "inner",
    [
        InnerSpec(precision="float32", accumulate=2),
        InnerSpec(precision="float32", accumulate=2, checkpoint_activations=True),
        InnerSpec(precision="float32", processes=2),
        InnerSpec(precision="float32", processes=2, strategy="fsdp2"),
        InnerSpec(
            precision="float32", processes=2, strategy="fsdp2", accumulate=2, checkpoint_activations=True
        ),
        InnerSpec(precision="float32", processes=3, accumulate=2),
    ],
)
def test_however_it_is_shared_the_steps_are_the_same(
    inner: InnerSpec, setup: Setup, alone: tuple[InnerResult, InnerResult, InnerResult, dict[str, float]]
) -> None:
    script = Path(setup.folder).parent / "group.json"
    script.write_bytes(msgspec.json.encode(replace(setup, inner=inner)))
    # In a process of its own: torch has one process group a process.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_train_group", str(script)], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    found = msgspec.json.decode(done.stdout)
    for got, wanted in zip(found["results"], alone[:3], strict=True):
        assert got["loss"] == pytest.approx(wanted.loss, rel=2e-4)
        assert (got["steps"], got["tokens"]) == (wanted.steps, wanted.tokens)
        there = np.array(got["params"], dtype=np.float32)
        # AdamW's first steps have the sign of a gradient: near zero, the order of additions decides it
        assert np.mean(np.abs(there - wanted.params)) < 2e-4
    gradient = np.array(found["gradient"], dtype=np.float32)
    assert alone[2].gradient is not None
    assert np.linalg.norm(gradient - alone[2].gradient) < 0.02 * np.linalg.norm(gradient)
    assert found["values"] == pytest.approx(alone[3], rel=2e-3)


def test_the_other_processes_end_with_the_first(setup: Setup) -> None:
    path = Path(setup.folder).parent / "killed.json"
    path.write_bytes(msgspec.json.encode(replace(setup, inner=InnerSpec(precision="float32", processes=3))))
    first = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.test_train_group", str(path), "wait"], stdout=subprocess.PIPE
    )
    assert first.stdout is not None and first.stdout.readline() == b"ready\n"
    others = psutil.Process(first.pid).children()
    assert len(others) == 2
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(others, timeout=20.0)
    assert not alive


def test_torchrun_starts_them_as_well(setup: Setup) -> None:
    path = Path(setup.folder).parent / "torchrun.json"
    path.write_bytes(msgspec.json.encode(replace(setup, inner=InnerSpec(precision="float32", processes=2))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.unit.test_train_group", str(path)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert math.isfinite(msgspec.json.decode(done.stdout)["values"]["val_loss"])


def test_bfloat16_is_never_used_where_the_hardware_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert computes_in("auto", cpu) is torch.float32
    with pytest.raises(UsageError, match="no bfloat16"):
        computes_in("bf16", cpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert computes_in("auto", cpu) is torch.float32 and computes_in("bf16", cpu) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert computes_in("auto", cpu) is torch.bfloat16 and computes_in("float32", cpu) is torch.float32


def test_bfloat16_learns_the_same_within_its_precision(
    setup: Setup, alone: tuple[InnerResult, InnerResult, InnerResult, dict[str, float]]
) -> None:
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("this processor has no bfloat16")
    first, _, _, values = trained(GroupInner(replace(setup, inner=InnerSpec(precision="bf16"))), setup)
    assert first.loss == pytest.approx(alone[0].loss, rel=0.01) and first.loss != alone[0].loss
    assert values["val_loss"] == pytest.approx(alone[3]["val_loss"], rel=0.02)


def test_what_was_compiled_is_kept(setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / "compiled.json"
    wanted = replace(setup, inner=InnerSpec(precision="float32", compile=True), cache=str(tmp_path))
    path.write_bytes(msgspec.json.encode(wanted))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_train_group", str(path), "short"],
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    plain = GroupInner(replace(setup, inner=InnerSpec(precision="float32", accumulate=2)))
    plain.load(initial_state(setup.plan.shape, setup.plan.vocab, setup.plan.seed))
    wanted_loss = plain.run(0, [IdRange(0, 8)], (0.0, 0.2), never).loss
    assert msgspec.json.decode(done.stdout) == pytest.approx(wanted_loss, rel=1e-4)
    assert list((tmp_path / "compiled").rglob("*.so"))


def main() -> None:
    """A site's first process (or, under torchrun, any of them)."""
    if int(os.environ.get("RANK", "0")):
        from caudal.train.group.ranks import Ranks, follow

        follow(Ranks.join())
        return
    setup = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Setup)
    inner = GroupInner(setup)
    if "wait" in sys.argv:
        print("ready", flush=True)
        time.sleep(60.0)
    if "short" in sys.argv:
        inner.load(initial_state(setup.plan.shape, setup.plan.vocab, setup.plan.seed))
        print(inner.run(0, [IdRange(0, 8)], (0.0, 0.2), never).loss)
        return
    first, second, third, values = trained(inner, setup)
    assert third.gradient is not None
    results = [
        {"loss": r.loss, "steps": r.steps, "tokens": r.tokens, "params": r.params.tolist()}
        for r in (first, second, third)
    ]
    sys.stdout.buffer.write(
        msgspec.json.encode({"results": results, "values": values, "gradient": third.gradient.tolist()})
    )
    sys.stdout.flush()
    inner.close()
    os._exit(0)  # as a worker does


if __name__ == "__main__":
    main()
