"""Rules for the messages of the whole repository."""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DESTROYS = re.compile(r"\b(?:delete|erase|remove|wipe) (?:it|its|them|the|that|this|these|\{)|\brm -", re.IGNORECASE)


def messages(tree: ast.AST) -> list[str]:
    """Texts of all raised errors, log records and printed lines of a module; values stand as `{}`."""
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    shown = {"warning", "error", "info", "exception", "critical", "print", "echo"}
    calls += [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in shown
    ]
    texts = []
    for call in calls:
        for part in ast.walk(call):
            if isinstance(part, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in part.values))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                texts.append(part.value)
    return texts


@pytest.mark.parametrize("package", ["pipeline", "index", "serving", "flows"])
def test_no_message_tells_anybody_to_delete_anything(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            assert not DESTROYS.search(text), f"{path}: {text}"


@pytest.mark.parametrize("package", ["pipeline", "index", "serving", "flows"])
def test_no_message_advises_to_install_a_package_whose_name_somebody_typed(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            assert not re.search(r"\binstall '?\{", text), f"{path}: {text}"


def test_the_scan_sees_an_advice_that_destroys() -> None:
    texts = messages(ast.parse("raise ValueError(f'{path}: damaged; delete {path} and run again')"))
    assert any(map(DESTROYS.search, texts))


NOUNS = """
row query document judgment grade pair text file line field release label shard word item source collection request
student thumb impression click result
"""
"""Nouns that a count often stands before."""
PLURALS = "|".join(f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s" for noun in NOUNS.split())
BEFORE = "valid |test |train |judged |unlabelled |training |whole |different |more |such |unusable |"
PLURAL = re.compile(rf" (?:{BEFORE})(?:{PLURALS})\b(?!')")
NO_COUNTS = {"name", "', '.join(SUFFIXES)", "rates"}
"""Values before a plural that are no counts."""


def is_count(value: ast.expr) -> bool:
    """Whether a part of an f-string may be a whole number: it has no format but the comma of thousands."""
    if not isinstance(value, ast.FormattedValue) or value.conversion != -1:
        return False
    shown = ast.unparse(value.value)
    plain = value.format_spec is None or ast.unparse(value.format_spec) in ("f','", 'f","')
    return plain and shown not in NO_COUNTS and not shown.startswith("counted(")


def uncounted(tree: ast.AST) -> list[str]:
    """Texts in which a whole number stands before a noun that is always in the plural: "1 rows"."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, after in itertools.pairwise(node.values):
                if is_count(value) and isinstance(after, ast.Constant):
                    texts += [ast.unparse(node)] * bool(PLURAL.match(after.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts += [node.value] * any(PLURAL.match(node.value, end.end()) for end in re.finditer("%d", node.value))
    return texts


@pytest.mark.parametrize("package", ["pipeline", "index", "serving", "flows"])
def test_a_count_agrees_with_its_noun(package: str) -> None:
    """`pipeline.text.counted` writes both: "1 row", "2 rows"."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if "examples" not in path.parts:
            assert uncounted(ast.parse(path.read_text(encoding="utf-8"))) == [], path


@pytest.mark.parametrize("text", ["f'{n} rows'", "f'has {len(x):,} judged queries'", "log.info('%d more texts', n)"])
def test_the_scan_sees_a_count_before_a_plural(text: str) -> None:
    assert len(uncounted(ast.parse(text))) == 1


@pytest.mark.parametrize(
    "text",
    ["f'{name} queries'", "f'{mean:.1f} texts'", "f'{counted(n, noun)}, files'", "f'{n} tokens'", "f'{q} files\\''"],
)
def test_the_scan_takes_other_values_for_no_count(text: str) -> None:
    assert uncounted(ast.parse(text.replace("{q}", "{name}"))) == []
