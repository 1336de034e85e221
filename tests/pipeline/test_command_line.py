"""Commands in messages: complete, so that they can be copied."""

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.command import app
from pipeline.command_line import typed, workspace_of
from tests.test_messages import ROOT


def test_a_command_names_the_workspace_unless_it_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELEVANCE_WORKSPACE", raising=False)
    assert typed("serve", Path("workspace")) == "relevance serve"
    assert typed("serve", Path("workspace").absolute()) == typed("serve") == "relevance serve"
    assert typed("serve", Path("other")) == "relevance serve --workspace other"
    assert shlex.split(typed("serve", Path("my models")))[-1] == "my models"
    monkeypatch.setenv("RELEVANCE_WORKSPACE", "other")
    assert typed("serve", Path("other")) == "relevance serve"
    assert typed("serve", Path("workspace")) == "relevance serve --workspace workspace"


def test_the_program_is_named_as_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "venv" / "bin" / "relevance")])
    assert typed("serve", Path("workspace")) == "venv/bin/relevance serve"
    monkeypatch.setattr("sys.argv", ["/usr/bin/prefect"])
    assert typed("serve", Path("workspace")) == "relevance serve"


def test_the_workspace_of_a_file_is_that_of_its_release_or_artifact(tmp_path: Path) -> None:
    assert workspace_of(Path("shop/artifacts/release/abc/lexical/terms.bin")) == Path("shop")
    assert workspace_of(Path("shop/releases/abc")) == Path("shop")
    assert workspace_of(Path("elsewhere/file")) == Path("workspace")


def commands_with(takes: Callable[[Any], bool]) -> str:
    """A pattern of the names of the commands with such a parameter, such as `retrain` and `releases list`."""
    names: set[str] = set()
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        prefix, command = waiting.pop()
        waiting += [(f"{prefix}{name} ", below) for name, below in getattr(command, "commands", {}).items()]
        if any(takes(parameter) for parameter in command.params):
            names.add(prefix.strip())
    return "|".join(sorted(names))


def texts_beside_docstrings(tree: ast.AST) -> list[str]:
    """The strings of a module that are no docstrings."""
    nodes = list(ast.walk(tree))
    docstrings = {
        id(statement.value)
        for node in nodes
        if isinstance(body := getattr(node, "body", None), list)
        for statement in body
        if isinstance(statement, ast.Expr)
    }
    constants = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_commands_that_are_printed_name_their_workspace() -> None:
    """They are written by `pipeline.command_line.typed`, so that a person can copy them."""
    with_workspace = commands_with(lambda parameter: parameter.name == "workspace")
    incomplete = re.compile(rf"relevance (?:{with_workspace})\b")
    assert incomplete.search("run `relevance releases list` first")
    assert not incomplete.search("`relevance key` makes one")
    assert [text for text in printed_texts() if incomplete.search(text)] == []


def test_commands_that_are_printed_name_the_data_or_recipe_that_they_need() -> None:
    """The name stands in the command, or a word in capitals in its place: a command without it cannot be copied."""
    with_argument = commands_with(lambda parameter: parameter.param_type_name == "argument" and parameter.required)
    bare = re.compile(rf"relevance (?:{with_argument})`")
    assert bare.search("`relevance data check` lists them all")
    assert not bare.search("`relevance data check DATA` lists them all")
    assert [text for text in printed_texts() if bare.search(text)] == []


def printed_texts() -> list[str]:
    """The strings of all packages, without docstrings and examples."""
    files = [
        path
        for package in ("pipeline", "index", "serving", "flows")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "examples" not in path.parts
    ]
    return [text for path in files for text in texts_beside_docstrings(ast.parse(path.read_text("utf-8")))]
