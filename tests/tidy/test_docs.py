"""The docs say what is true today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_fresh(tmp_path: Path) -> None:
    # In a process of its own, as `make docs` does it: what other tests have imported does not show.
    command = [sys.executable, str(ROOT / "docs" / "build_reference.py"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    built = {page.name: page.read_text() for page in tmp_path.iterdir()}
    assert set(built) == {page.name for page in (ROOT / "docs" / "reference").iterdir()}
    for name, text in built.items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text, f"{name} is stale: run `make docs`"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [p for p in tracked() if p.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_the_readme_tree_names_every_package() -> None:
    readme = (ROOT / "README.md").read_text()
    packages = [p.parent.name for p in (ROOT / "src" / "caudal").glob("*/__init__.py")]
    assert [name for name in packages if f"{name}/" not in readme] == []


def test_every_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {
        t for t in targets if not re.search(rf"^{t}:", makefile, re.M) and not t.startswith("bench-")
    } == set()
