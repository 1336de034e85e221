"""Checks of a command's surroundings before it begins: arguments, streams, folder, and variables of torchrun."""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ConfigError, InputError, MissingError

Data = TypeVar("Data", str, list[str])

_new_workspaces: list[Path] = []


def open_streams() -> None:
    """Gives the process streams that take every character, also where one is closed or not in UTF-8.

    A closed one becomes the null device, so that no file that is opened later gets its number. What the encoding of the
    output lacks is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115  As long as the process.
            setattr(sys, name, stream)
        elif number and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_utf8_output() -> bool:
    """Whether standard output takes every character as it is."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def check(arguments: Sequence[str]) -> None:
    """Checks that the arguments are text and that there is a current folder.

    Raises:
        InputError: the bytes of an argument are no text: it could be put into no recipe, manifest or log.
        MissingError: the current folder was removed; libraries fail there in ways that nobody can read.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(argument)
            raise InputError(f"the argument {shown!r} is not UTF-8; rename the file, or use a UTF-8 locale") from error
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise MissingError("the current folder was removed; go to one that is there, for example cd ~") from error


def prefect_home() -> Path:
    """The folder in which Prefect keeps its profiles and its database, by the environment."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")


def check_prefect_home() -> None:
    """Checks that Prefect can write into its folder; it would hang or end in a traceback where it cannot.

    Raises:
        ConfigError: it cannot; names the folder and the variable.
    """
    from pipeline import disk

    home = prefect_home()
    if reason := disk.writing_fault(home):
        raise ConfigError(
            f"{home}: Prefect keeps its database there, and it {reason}; set PREFECT_HOME to a folder that can"
        )


def note_workspace(workspace: Path) -> Path:
    """Notes a workspace that is not there yet; a command that fails before it writes anything leaves none behind."""
    if not workspace.exists():
        _new_workspaces.append(workspace)
    return workspace


def check_workspace(workspace: Path) -> Path:
    """Notes a workspace that a command writes into, and checks at once that it can.

    Raises:
        ConfigError: it cannot.
    """
    from pipeline import disk

    disk.check_writable(workspace)
    return note_workspace(workspace)


def remove_unused_workspaces() -> None:
    """Removes the workspaces that this command began and has put nothing into."""
    for workspace in _new_workspaces:
        from pipeline import locks

        locks.remove_if_unused(workspace)


def resolve_recipe(name: str) -> str:
    """The path of a recipe's file, looked up before anything heavy is imported.

    Args:
        name: a path, or the name of a built-in recipe.

    Raises:
        ConfigError, MissingError: see `built_in_recipes.recipe_path`.
    """
    from flows.built_in_recipes import recipe_path

    return str(recipe_path(name))


def check_data(paths: Data) -> Data:
    """The path of data, or several, after a check that a file or folder is there, before anything heavy is imported.

    An address and a pattern of files are left to their readers, which look at what they mean.

    Raises:
        MissingError: nothing is there.
    """
    for path in [paths] if isinstance(paths, str) else paths:
        if path and not ("://" in path or set(path) & set("*?[") or Path(path).exists()):
            raise MissingError(f"{path}: no such file or folder")
    return paths


def torchrun_rank() -> int | None:
    """The number of this process on its machine under torchrun; None where the command runs alone.

    Raises:
        ConfigError: some variables of torchrun are set, and others are missing or no whole numbers.
    """
    if _number("WORLD_SIZE", "1") < 2:
        return None
    _number("RANK")
    _number("MASTER_PORT")
    return _number("LOCAL_RANK", "0")


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable, default)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(
            f"the variable {variable} is {text!r} in the environment; torchrun sets WORLD_SIZE, RANK and MASTER_PORT "
            "to whole numbers. Start the command with torchrun, or unset WORLD_SIZE to run it alone"
        ) from error
