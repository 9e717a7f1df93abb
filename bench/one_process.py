"""One process, one thread: tokens per CPU-second of Caudal's inner steps against two loops that people use: one in
nanoGPT's style, and Hugging Face's Trainer.

The same model (10.6 M parameters in the Llama layout, context 256), first values, samples, order and AdamW; the
last step's loss is compared. Every loop is a process of its own, in turn; what is measured is its steps, without
start-up and the first two. REPEATS=3, STEPS=12 by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import figure, finish

REPEATS = int(os.environ.get("REPEATS", "3"))
STEPS = int(os.environ.get("STEPS", "12"))
KINDS = ("caudal", "nanogpt", "trainer")
GOAL = 1.2
SAME_LOSS = 0.02  # nats


def once(kind: str, folder: Path) -> dict[str, Any]:
    """One process's figures."""
    program = Path(__file__).with_name("one_process_loops.py")
    done = subprocess.run(
        [sys.executable, str(program), kind, str(STEPS), str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(kind, answer, flush=True)
    return answer


def main() -> None:
    """Print the figures; the last line is one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [{kind: once(kind, Path(folder)) for kind in KINDS} for _ in range(REPEATS)]
    losses = [run[kind]["loss"] for run in runs for kind in KINDS]
    assert max(losses) - min(losses) < SAME_LOSS, f"the loops do not train the same: {losses}"
    figures: dict[str, Any] = {"parameters": runs[0]["caudal"]["parameters"], "steps": STEPS}
    for kind in KINDS:
        figures[f"{kind}.tokens_per_cpu_s"] = figure(
            [run[kind]["tokens_per_cpu_s"] for run in runs], "tokens/s", 1
        )
        figures[f"{kind}.tokens_per_s"] = figure([run[kind]["tokens_per_s"] for run in runs], "tokens/s", 1)
        figures[f"{kind}.loss"] = round(runs[0][kind]["loss"], 4)
    for kind in KINDS[1:]:
        ratios = [run["caudal"]["tokens_per_cpu_s"] / run[kind]["tokens_per_cpu_s"] for run in runs]
        figures[f"ratio.{kind}"] = {**figure(ratios, "x"), "goal": GOAL, "met": min(ratios) >= GOAL}
    finish("one-process", figures)


if __name__ == "__main__":
    main()
