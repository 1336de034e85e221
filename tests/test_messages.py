"""Rules for the messages of the whole repository."""

import ast
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
