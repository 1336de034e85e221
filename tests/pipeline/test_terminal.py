"""Output for a person: each text stands as it is, whatever Rich would make of it."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.table import Table

from flows.cli import options
from pipeline import progress, terminal

ROOT = Path(__file__).resolve().parents[2]

PIECES = ("[old]", "[/old]", "[", "]", "[/]", "\\[", "[b]", "[@click=f]", ":key:", ":", "a", "/", "[1]", "é")
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


@given(text=texts)
def test_a_text_is_shown_as_it_is_wherever_it_stands(text: str) -> None:
    table = Table(title=f"{text}1", box=None)
    table.add_column(f"{text}2")
    table.add_row(f"{text}3")
    shown = io.StringIO()
    console = terminal.plain_console(file=shown, width=200)
    console.print(Group(table, f"{text}4"))
    console.print(f"{text}5")
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    assert lines == [f"{text}{number}" for number in range(1, 6)]


@given(text=texts)
def test_a_bar_shows_label_and_note_as_they_are(text: str) -> None:
    shown = io.StringIO()
    console = terminal.plain_console(file=shown, width=200, force_terminal=True, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "plain_console", lambda **_: console)
        with progress.bar(f"{text}1", 2, "pairs") as advance:
            advance(1, f"{text}2")
    assert f"{text}1" in shown.getvalue()
    assert f"{text}2" in shown.getvalue()


def test_a_command_prints_a_path_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    options.show("data/[old]/a.csv, data/[/old]/b.csv", False)
    assert capsys.readouterr().out == "data/[old]/a.csv, data/[/old]/b.csv\n"


def test_all_consoles_are_plain() -> None:
    files = [file for package in ("pipeline", "index", "serving", "flows") for file in (ROOT / package).rglob("*.py")]
    built = {str(file.relative_to(ROOT)) for file in files if re.search(r"\bConsole\(", file.read_text("utf-8"))}
    assert built == {"pipeline/terminal.py"}
