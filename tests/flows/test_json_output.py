"""A script that asks for JSON gets one object on standard output, whether the command succeeds or fails."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import command, json_output, options
from pipeline.errors import GateError

Run = Callable[..., tuple[int, str, str]]

NEVER_FAILS = {"key", "stages", "recipe list"}
"""Commands that take no name of anything that could be missing."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process: the exit code, standard output and standard error."""

    def start(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["relevance", *map(str, arguments)])
        monkeypatch.setattr(command, "write_log", lambda: None)
        monkeypatch.setattr(json_output, "_printed", [])
        with pytest.raises(SystemExit) as end:
            command.main()
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    return start


def commands_with_json() -> Iterator[tuple[str, Any]]:
    """The name and the command of each that takes --json."""
    waiting = [("", typer.main.get_command(command.app))]
    while waiting:
        name, known = waiting.pop()
        waiting += [(f"{name} {inner}".strip(), below) for inner, below in getattr(known, "commands", {}).items()]
        if any(json_output.OPTION in parameter.opts for parameter in known.params):
            yield name, known


COMMANDS = dict(commands_with_json())


def test_all_commands_were_met() -> None:
    assert {"retrain", "search", "releases list", "data check", "index verify", "key", "study"} <= set(COMMANDS)
    assert set(COMMANDS) >= NEVER_FAILS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_one_object_too(name: str, run: Run) -> None:
    code, out, error = run(*name.split(), "--json", "--zzz")
    assert (code, json.loads(out)) == (2, {"error": "No such option: --zzz", "exit_code": 2})
    assert "No such option: --zzz" in error


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NEVER_FAILS))
def test_a_command_that_fails_prints_its_message_as_one_object(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments: list[str | Path] = []
    for parameter in COMMANDS[name].params:
        if parameter.name == "workspace":
            arguments += ["--workspace", tmp_path / "file" / "below"]
        elif parameter.required:
            arguments += [*parameter.opts[:1] * (parameter.param_type_name == "option"), tmp_path / "none"]
    code, out, error = run(*name.split(), "--json", *arguments)
    failure = json.loads(out)
    assert (failure["exit_code"], code) == (2, 2), failure
    assert error == f"relevance: {failure['error']}\n"
    assert str(tmp_path) in failure["error"]
    assert run(*name.split(), *arguments) == (2, "", error)


def test_a_result_that_was_printed_stays_the_only_object(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        options.show({"live": False}, as_json=True)
        raise GateError("the gate said no")

    monkeypatch.setattr("flows.cli.recipe.recipe_names", refuse)
    code, out, error = run("recipe", "list", "--json")
    assert (code, json.loads(out), error) == (3, {"live": False}, "relevance: the gate said no\n")


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped; start the same command again to go on"),
        (OSError(28, "No space left"), 1, "[Errno 28] No space left; look at the path, its permissions and the free"),
        (ValueError("at sqlite://me:secret@host/x"), 1, "ValueError: at sqlite://me:***@host/x"),
    ],
    ids=["interrupted", "full disk", "a fault of ours"],
)
def test_other_ends_are_one_object_without_passwords(
    failure: BaseException, code: int, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise failure

    monkeypatch.setattr("flows.cli.recipe.recipe_names", fail)
    ended, out, error = run("recipe", "list", "--json")
    failure_object = json.loads(out)
    assert (ended, failure_object["exit_code"]) == (code, code)
    assert failure_object["error"].startswith(message)
    assert "secret" not in out + error


def test_a_word_after_two_dashes_is_no_option(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    code, out, error = run("search", "--workspace", tmp_path, "--", "--json")
    assert (code, out) == (2, "")
    assert "no such workspace" in error
