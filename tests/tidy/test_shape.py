"""The house keeps its sizes: small files, small functions, everything typed and documented, no cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "caudal"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 400
MEDIAN_FILE_LINES = 120
MAX_FUNCTION_LINES = 70
MIN_DOCUMENTED = 0.90

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_files_are_small() -> None:
    sizes = {path: path.read_text().count("\n") for path in SOURCES}
    assert {where(p, n) for p, n in sizes.items() if n > MAX_FILE_LINES} == set()
    assert median(sizes.values()) <= MEDIAN_FILE_LINES


def test_functions_are_small() -> None:
    long = {
        where(path, f.lineno): f.end_lineno - f.lineno + 1
        for path, tree in TREES.items()
        for f in functions(tree)
        if f.end_lineno and f.end_lineno - f.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [where(p, 1) for p, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_public_functions_are_documented() -> None:
    public = [
        (path, f) for path, tree in TREES.items() for f in functions(tree) if not f.name.startswith("_")
    ]
    bare = [where(path, f.lineno) for path, f in public if not ast.get_docstring(f)]
    assert len(bare) <= (1 - MIN_DOCUMENTED) * len(public), bare


def test_imports_inside_functions_say_why() -> None:
    silent = []
    for path, tree in TREES.items():
        lines = path.read_text().splitlines()
        for function in functions(tree):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom) and "PLC0415" not in lines[node.lineno - 1]:
                    silent.append(where(path, node.lineno))
    assert silent == []


@pytest.mark.parametrize(
    "word", ["NotImplementedError", "TODO", "FIXME", "XXX", "pickle.load", "TYPE_CHECKING"]
)
def test_nothing_unfinished_or_unsafe(word: str) -> None:
    assert [str(p.relative_to(ROOT)) for p in SOURCES if word in p.read_text()] == []


def imports_of(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            if name in known and name != module:
                found.add(name)
    return found


def test_no_module_needs_itself() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): tree
        for path, tree in TREES.items()
    }
    graph = {
        name: {i for i in imports_of(name, tree, set(modules)) if not name.startswith(f"{i}.")}
        for name, tree in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


MIN_TEST_LINES_PER_LINE = 0.55
"""The goal is 1. Raise it whenever there is room; never lower it."""


def test_tests_keep_up_with_the_code() -> None:
    source = sum(p.read_text().count("\n") for p in SOURCES)
    tests = sum(p.read_text().count("\n") for p in (ROOT / "tests").rglob("*.py"))
    assert tests >= MIN_TEST_LINES_PER_LINE * source
