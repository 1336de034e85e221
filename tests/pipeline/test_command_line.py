"""Commands in messages: complete, so that they can be copied."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from pipeline.command_line import typed
from tests.test_messages import ROOT, messages

OF_A_WORKSPACE = re.compile(
    r"`relevance (?:releases|serve|search|rerank|quickstart|demo|index|export) |^relevance (?:releases|serve)"
)


def test_a_command_names_the_workspace_unless_it_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELEVANCE_WORKSPACE", raising=False)
    assert typed("serve", Path("workspace")) == "relevance serve"
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


@pytest.mark.parametrize("package", ["pipeline", "flows"])
def test_no_message_writes_a_command_without_its_workspace(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            assert not OF_A_WORKSPACE.search(text), f"{path}: {text}; use pipeline.command_line.typed"
