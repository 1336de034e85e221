"""Plain words: docstrings are sentences of their own, and a class name stands for one thing."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "index", "serving", "flows", "tests")
FRAGMENTS = frozenset(
    re.findall(r"\w+", "as at but for how likewise nothing of so such than that theirs those what which who whom whose")
)
"""First words that continue a name or another sentence; such a docstring cannot be read alone."""

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file's syntax tree, the module first; parsed once for all tests, which only read it."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def _location(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.fixture(scope="module", autouse=True)
def _free_trees() -> Iterator[None]:
    """Frees the syntax trees, some 200 MB, after the last test that reads them."""
    yield
    _nodes.cache_clear()


@cache
def _docstrings(path: Path) -> tuple[tuple[str, str], ...]:
    """Location and text of each string that is a statement: docstrings, those of attributes and constants too."""
    return tuple(
        (_location(path, statement.lineno), statement.value.value)
        for node in _nodes(path)
        if isinstance(body := getattr(node, "body", None), list)
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement.value.value, str)
    )


def _all_docstrings() -> Iterator[tuple[str, str]]:
    return (docstring for path in FILES for docstring in _docstrings(path))


def _first_word(docstring: str) -> str:
    match = re.match(r"\W*([A-Za-z]+)", docstring)
    return match[1].lower() if match else ""


def test_each_docstring_begins_like_a_sentence() -> None:
    starts = ((location, text.strip()[:60]) for location, text in _all_docstrings())
    assert [(location, start) for location, start in starts if _first_word(start) in FRAGMENTS] == []


def test_each_description_of_a_field_or_an_option_begins_like_a_sentence() -> None:
    values = [
        (_location(path, node.value.lineno), str(node.value.value))
        for path in FILES
        for node in _nodes(path)
        if isinstance(node, ast.keyword)
        and node.arg in ("description", "help")
        and isinstance(node.value, ast.Constant)
    ]
    assert [(location, text[:60]) for location, text in values if _first_word(text) in FRAGMENTS] == []


FRAGMENTS_OF_ARGUMENTS = frozenset(re.findall(r"\w+", "as at by for from in of on such those to whose with"))
"""First words that continue the name of a parameter; "what report.json holds" is a noun and stays."""


def test_each_argument_in_a_docstring_begins_with_what_it_is() -> None:
    fragments = []
    for location, text in _all_docstrings():
        section = re.search(r"^\s*Args:\n((?:[ ]+.*\n?)+)", text, re.MULTILINE)
        entries = re.findall(r"^\s*(\*{0,2}\w+(?:, \w+)*): (.*)$", section[1] if section else "", re.MULTILINE)
        fragments += [
            f"{location} {name}: {entry[:60]}"
            for name, entry in entries
            if _first_word(entry) in FRAGMENTS_OF_ARGUMENTS
        ]
    assert fragments == []


def test_each_error_in_a_docstring_says_when_it_is_raised() -> None:
    bare = []
    for location, text in _all_docstrings():
        section = re.search(r"^\s*Raises:\n((?:[ ]+.*\n?)+)", text, re.MULTILINE)
        bare += [
            f"{location}: {entry}"
            for entry in re.findall(r"^\s+(\w+(?:, \w+)*)$", section[1] if section else "", re.MULTILINE)
        ]
    assert bare == []


def test_a_docstring_names_the_number_that_it_means() -> None:
    """An amount that is called "so many" sends the reader to the signature."""
    docstrings = [docstring for path in FILES if path != Path(__file__) for docstring in _docstrings(path)]
    vague = re.compile(r"\bso (?:many|much)\b(?! that)")
    assert [(location, text[:60]) for location, text in docstrings if vague.search(text)] == []


UNUSUAL_TERMS = {
    r"\bbehind (?:the|its|all) (?:last|end|padding|pair|point)\b": "after",
    r"\bappear(?:s|ing)? whole\b": "atomically",
    r"\bperson's word\b": "confirmation, or vote",
    r"\bgoes without saying\b": "is left out",
}
"""Phrases of our own for which the field has a term, given as the value."""


@pytest.mark.parametrize(("phrase", "term"), UNUSUAL_TERMS.items())
def test_docstrings_use_the_terms_of_the_field(phrase: str, term: str) -> None:
    unusual = [location for location, text in _all_docstrings() if re.search(phrase, text)]
    assert unusual == [], f"say {term!r}"


def test_a_docstring_about_a_section_of_a_recipe_names_it() -> None:
    """A docstring that begins with "The section" of no name sends the reader to the type in the signature."""
    about = re.compile(r"\s*(?:The lines of )?the section\b(?! `)", re.IGNORECASE)
    assert [(location, text[:60]) for location, text in _all_docstrings() if about.match(text)] == []


def _documented_parameters(docstring: str) -> list[str]:
    """The names before the colons of a docstring's section Args."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?)+)", docstring, re.MULTILINE)
    names = re.findall(r"^ {4}(\*{0,2}\w+(?:, \w+)*): ", section[1], re.MULTILINE) if section else []
    return [name.lstrip("*") for listed in names for name in listed.split(", ")]


def test_arguments_in_docstrings_are_those_of_the_function() -> None:
    stale = []
    for path in FILES:
        for node in _nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
                documented = _documented_parameters(ast.get_docstring(node) or "")
                location = f"{_location(path, node.lineno)} {node.name}"
                stale += [f"{location}: {name}" for name in documented if name not in parameters]
    assert stale == []


def test_each_class_name_is_defined_once() -> None:
    definitions = defaultdict(list)
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in _nodes(path):
            if isinstance(node, ast.ClassDef):
                definitions[node.name].append(_location(path, node.lineno))
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


def _bound_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, parameter, attribute, function and class that these nodes define."""
    for node in nodes:
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
        f"{_location(path, line)} {name}"
        for path in files
        for line, name in _bound_names(_nodes(path))
        if name.strip("_") in UNCLEAR and (str(path.relative_to(ROOT)), name) not in ALLOWED_NAMES
    ]
    assert unclear == []


FOREIGN_CLASSES = frozenset({"Series", "DataFrame", "Request"})
"""Classes of other libraries whose members docstrings name."""


def _members(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that the nodes of a class or module define, import or set, at any depth."""
    names = {name for _, name in _bound_names(nodes)}
    return names | {
        (alias.asname or alias.name).rpartition(".")[2]
        for statement in nodes
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for alias in statement.names
    }


def _stale(reference: str, classes: dict[str, tuple[set[str], list[str]]]) -> bool:
    """Whether a class and its member, or a path of a module and a name in it, stands nowhere in the repository."""
    first, *rest = reference.split(".")
    if first in classes and rest:
        own, bases = classes[first]
        return rest[0] not in own and all(_stale(f"{base}.{rest[0]}", classes) for base in bases if base in classes)
    if first not in PACKAGES:
        return first[0].isupper() and first not in FOREIGN_CLASSES
    path = ROOT / first
    for number, name in enumerate(rest):
        if (path / name).is_dir():
            path /= name
            continue
        file = (path / name).with_suffix(".py") if (path / name).with_suffix(".py").is_file() else path / "__init__.py"
        members = rest[number + (file.name != "__init__.py") :]
        return bool(members) and members[0] not in _members(_nodes(file))
    return False


def test_names_in_docstrings_exist() -> None:
    """A docstring that names a member of a class or a name in a module follows when either is renamed.

    Paths that begin with `index` are left out: `index.fields` may be a key of a recipe.
    """
    classes = {
        node.name: (
            _members(list(ast.walk(node))),
            [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases],
        )
        for path in FILES
        for node in _nodes(path)
        if isinstance(node, ast.ClassDef)
    }
    stale = [
        f"{location} {reference}"
        for location, docstring in _all_docstrings()
        for reference in re.findall(r"`((?:[A-Z]\w*[a-z]\w*|pipeline|serving|flows)(?:\.\w+)+)", docstring)
        if _stale(reference, classes)
    ]
    assert stale == []


def test_each_docstring_says_more_than_its_errors() -> None:
    """A docstring that begins with its section Args or Raises does not say what the function does."""
    silent = [
        _location(path, node.lineno)
        for path in FILES
        for node in _nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name != "__init__"
        if re.match(r"\s*(Args|Raises|Returns|Yields):", ast.get_docstring(node) or "")
    ]
    assert silent == []
