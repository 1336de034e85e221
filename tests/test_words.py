"""Plain words: docstrings are sentences of their own, and a class name stands for one thing."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "index", "serving", "flows", "tests")
FRAGMENTS = frozenset(
    re.findall(r"\w+", "as at but for how likewise nothing of so such than that theirs those what which who whom whose")
)
"""First words that continue a name or another sentence; such a docstring cannot be read alone."""

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string that stands as a statement: docstrings, those of attributes and constants too."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def _first_word(docstring: str) -> str:
    match = re.match(r"\W*([A-Za-z]+)", docstring)
    return match[1].lower() if match else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_docstring_begins_like_a_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fragments = [(line, text.strip()[:60]) for line, text in _docstrings(tree) if _first_word(text) in FRAGMENTS]
    assert fragments == []


def _documented_parameters(docstring: str) -> list[str]:
    """The names before the colons of a docstring's section Args."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?)+)", docstring, re.MULTILINE)
    names = re.findall(r"^ {4}(\*{0,2}\w+(?:, \w+)*): ", section[1], re.MULTILINE) if section else []
    return [name.lstrip("*") for listed in names for name in listed.split(", ")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arguments_in_docstrings_are_those_of_the_function(path: Path) -> None:
    stale = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
            documented = _documented_parameters(ast.get_docstring(node) or "")
            stale += [f"{node.lineno} {node.name}: {name}" for name in documented if name not in parameters]
    assert stale == []


def test_each_class_name_is_defined_once() -> None:
    definitions = defaultdict(list)
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                definitions[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in definitions.items() if len(where) > 1} == {}


UNCLEAR = frozenset(
    re.findall(
        r"\w+", "place places found facts told made asked said one whole others taught lesson lessons dose doses"
    )
)
"""Names that do not say what they hold; a value has the name of its content, such as indices, scores or manifest."""
ALLOWED_NAMES = {
    ("pipeline/data/unlabelled.py", "asked"),  # Names of a stage's inputs are part of its fingerprint.
    ("pipeline/training/teacher_scores.py", "others"),
}


def _bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, parameter, attribute, function and class that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("package", PACKAGES)
def test_values_have_the_name_of_what_they_hold(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    unclear = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in files
        for line, name in _bound_names(ast.parse(path.read_text(encoding="utf-8")))
        if name.strip("_") in UNCLEAR and (str(path.relative_to(ROOT)), name) not in ALLOWED_NAMES
    ]
    assert unclear == []
