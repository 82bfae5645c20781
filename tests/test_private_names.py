"""
Tests promise what others may rely on, so they reach for public names only: what is private may change any day.

A name is private when it begins with one underscore. A test's own class may have such names, for itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Documented for anybody's use, whatever they are called.
ALLOWED = {"os._exit", "torch.utils._python_dispatch"}
REACHING = {"getattr", "setattr", "hasattr", "delattr", "patch", "object"}
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
IN_TEXT = re.compile(r"\b(?!self\b|cls\b)[A-Za-z]\w*\._[a-zA-Z]\w*")


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) wherever the source reaches for a private name of somebody else."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if PRIVATE.fullmatch(name):
                yield from _unless_allowed(node.lineno, ast.unparse(node))
            case ast.ImportFrom(module=module, names=names):
                yield from (
                    (node.lineno, f"{module}.{alias.name}")
                    for alias in names
                    if any(PRIVATE.fullmatch(part) for part in f"{module}.{alias.name}".split("."))
                )
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called in REACHING:
                texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                for text in texts:
                    if isinstance(text, str) and any(PRIVATE.fullmatch(part) for part in text.split(".")):
                        yield node.lineno, text
            case ast.Constant(value=str(text)):
                for found in IN_TEXT.findall(text):
                    yield from _unless_allowed(node.lineno, found)


def _unless_allowed(line: int, name: str) -> Iterator[tuple[int, str]]:
    if name not in ALLOWED:
        yield line, name


@pytest.mark.parametrize(
    "source",
    [
        "store._limits = 3",
        "self.parts.chunks._limits",
        "from app.jobs.records import Job, _row",
        "import app.jobs.records\napp.jobs.records._row()",
        "monkeypatch.setattr(runner, '_cut', None)",
        "monkeypatch.setattr('app.jobs.runner._digest', None)",
        "run(['python', '-c', 'import kernels; kernels._search()'])",
    ],
)
def test_every_way_to_a_private_name_is_seen(source):
    assert list(private_names(source)) != []


def test_names_of_a_tests_own_class_and_documented_ones_are_no_offence():
    source = "class Own:\n    def go(self):\n        self._begun = True\n        os._exit(0)\nobject.__new__(Own)"

    assert list(private_names(source)) == []


def test_no_test_reaches_for_a_private_name():
    files = [path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__)]
    found = [
        f"{path.relative_to(TESTS)}:{line} {name}"
        for path in files
        for line, name in private_names(path.read_text(encoding="utf-8"))
    ]

    assert len(files) > 50
    assert found == []
