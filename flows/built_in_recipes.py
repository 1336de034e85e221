"""Built-in recipes, and the file that a recipe's name means."""

import difflib
from pathlib import Path

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
        ConfigError: data; says how to make a recipe for it.
        MissingError: neither; lists the built-in ones.
    """
    path = Path(name)
    built_in = RECIPES / f"{name}.toml"
    if path.suffix != ".toml" and built_in.is_file():
        return built_in
    if "://" in name or path.is_dir() or (path.is_file() and path.suffix.lower() in DATA_SUFFIXES):
        raise ConfigError(
            f"{hide_passwords(name)}: is data, not a recipe; `relevance init {hide_passwords(name)}` writes a recipe "
            "for it, and then `relevance retrain recipe.toml` trains"
        )
    if not path.is_file():
        known = recipe_names()
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are: {', '.join(known)}"
        raise MissingError(f"{name}: no such recipe file; {hint}")
    return path
