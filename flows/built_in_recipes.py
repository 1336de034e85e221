"""Built-in recipes, and the file that a recipe's name means."""

import difflib
import shlex
from pathlib import Path

from pipeline.command_line import typed
from pipeline.errors import ConfigError, MissingError
from pipeline.secrets import hide_passwords

RECIPES = Path(__file__).with_name("recipes")
"""The folder of the built-in recipes."""
UNNAMED = "recipe.toml"
"""File name of a recipe that `relevance init` names after its data; any other file name is the recipe's own."""
DATA_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".db", ".sqlite")
"""Endings of files that hold data and no recipe."""


def recipe_names() -> list[str]:
    """The names of the built-in recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of one that is built in.

    Raises:
        ConfigError: the name is that of data; the message says how to make a recipe for it.
        MissingError: there is neither; the message names the built-in recipe that is most alike, or all of them.
    """
    path, known = Path(name), recipe_names()
    if name in known:
        return RECIPES / f"{name}.toml"
    if "://" in name or path.is_dir() or (path.is_file() and path.suffix.lower() in DATA_SUFFIXES):
        shown = hide_passwords(name)
        init, retrain = typed(f"init {shlex.quote(shown)}"), typed(f"retrain {UNNAMED}")
        raise ConfigError(
            f"{shown}: is data, not a recipe; `{init}` writes a recipe for it, and then `{retrain}` trains"
        )
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are: {', '.join(known)}"
        raise MissingError(f"{name}: no such recipe file; {hint}")
    return path
