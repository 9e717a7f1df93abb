"""How heavy Caudal is: seconds of `caudal --help` and of `import caudal`, what they import, installed bytes."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT, figure, finish, timed

REPEATS = int(os.environ.get("REPEATS", "15"))
HEAVY = ("torch", "ray", "boto3", "azure", "sqlalchemy", "numpy", "fastapi", "nicegui", "pydantic", "httpx")
EXTRAS = {
    "core": (),
    "train": ("torch",),
    "serve": ("xllamacpp", "gguf", "huggingface_hub"),
    "console": ("nicegui",),
}


def run(*words: str) -> None:
    """One process, its output dropped."""
    subprocess.run([sys.executable, *words], check=True, capture_output=True)


def heavy_modules() -> list[str]:
    """Heavy packages that `caudal --help` imports: none is the promise."""
    code = (
        "import sys, contextlib, io\n"
        "from caudal.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return [name for name in HEAVY if name in loaded]


def size_of(package: str) -> int:
    """Installed bytes of one distribution."""
    total = 0
    for file in importlib.metadata.files(package) or ():
        path = Path(str(file.locate()))
        total += path.stat().st_size if path.is_file() else 0
    return total


def main() -> None:
    """Measure, print one JSON line."""
    run("-m", "caudal.cli", "--help")
    helps, imports, bare = [], [], []
    for _ in range(REPEATS):
        helps.append(timed(lambda: run("-m", "caudal.cli", "--help")))
        imports.append(timed(lambda: run("-c", "import caudal")))
        bare.append(timed(lambda: run("-c", "pass")))
    own = sum(p.stat().st_size for p in (ROOT / "src").rglob("*.py"))
    mib = 1 << 20
    finish(
        "footprint",
        {
            "help_s": figure(helps, "s"),
            "import_s": figure(imports, "s"),
            "bare_python_s": figure(bare, "s"),
            "heavy_modules_imported_by_help": heavy_modules(),
            "source_mib": round(own / mib, 2),
            "installed_mib": {k: round(sum(size_of(p) for p in v) / mib, 1) for k, v in EXTRAS.items() if v},
            "venv_mib": round(
                sum(p.stat().st_size for p in Path(sys.prefix).rglob("*") if p.is_file()) / mib, 1
            ),
        },
    )


if __name__ == "__main__":
    main()
