"""A process for a task that needs torch, so that the coordinator does without it: an order in, an answer out.

Order and answer are one line of JSON each. The process ends with the one that started it: its standard input is
closed then. What libraries print goes to standard error. Knows nothing of what the tasks are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import msgspec

from caudal.domain.errors import CaudalError, Failed, from_dict

Order = TypeVar("Order")


def run(module: str, order: object) -> dict[str, Any]:
    """Run `python -m module` with the order and wait for its answer. Raises the error that it met, and Failed
    where it died."""
    command = [sys.executable, "-m", module]
    env = {**os.environ, "TQDM_DISABLE": "1"}  # no progress bars in a log
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(msgspec.json.encode(order) + b"\n")
            child.stdin.flush()
            said = child.stdout.readline()
            child.stdin.close()
        except BrokenPipeError:
            said = b""
    if not said:
        raise Failed(
            f"{module} ended without an answer",
            why=f"its exit code is {child.returncode}; the lines above say more",
            remedy="-9 is mostly a machine without memory: a base is loaded whole, in float32",
        )
    answer: dict[str, Any] = msgspec.json.decode(said)
    if "error" in answer:
        raise from_dict(answer["error"])
    return answer


def serve(kind: type[Order], task: Callable[[Order], dict[str, Any]]) -> NoReturn:
    """Be that process: read the order, do the task, answer, end."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        answer = task(order)
    except CaudalError as error:
        answer = {"error": error.as_dict()}
    except BaseException:  # a bug: said here, since the thread that reads would not let the interpreter end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()
    sys.stderr.flush()
    os._exit(
        1 if "error" in answer else 0
    )  # at once: the thread that reads would hold up the interpreter's end


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
