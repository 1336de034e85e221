"""The sources that a command's argument means: a folder, a file, a database, or all sources of a recipe."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import recipe as recipes
from pipeline.config import ComputeConfig, Recipe, SourceConfig
from pipeline.errors import ConfigError


def named(path: str, format: str = "auto", overrides: Sequence[str] = ()) -> tuple[SourceConfig, ...]:
    """The source at a path, or for a recipe (a .toml file) the sources in its section data, with absolute paths.

    Args:
        overrides: values laid over a recipe, as --set does.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    if not is_recipe(path):
        return (SourceConfig(path=path, format=format),)
    data = recipes.load(Path(path), overrides).data
    return tuple(replace(source, path=absolute(source.path, Path(data.root))) for source in data.sources)


def compute_of(paths: Sequence[str], overrides: Sequence[str] = ()) -> ComputeConfig:
    """The section compute of the recipe among these paths, with overrides laid over it.

    Raises:
        ConfigError: two recipes differ in it; without a recipe, an override of another section.
    """
    configs = [recipes.load(Path(path), overrides).compute for path in paths if is_recipe(path)]
    if not configs:
        for text in overrides:
            if not text.strip().startswith("compute."):
                raise ConfigError(f"--set {text}: no recipe is given, so only the section compute can be set")
        return recipes.changed(Recipe(), overrides).compute
    if any(config != configs[0] for config in configs):
        raise ConfigError("the recipes differ in their section compute; say which with --set compute.engine=…")
    return configs[0]


def is_recipe(path: str) -> bool:
    """Whether a path is that of a recipe."""
    return path.endswith(".toml") and Path(path).is_file()


def absolute(source: str, root: Path = Path()) -> str:
    """A source of data that means the same from any working folder.

    Args:
        root: the folder that a relative path starts from.
    """
    sqlite = re.fullmatch(r"(sqlite[^:]*:///)([^/:].*)", source)  # A file name; a fourth slash begins an absolute one.
    if sqlite:
        return sqlite[1] + os.path.realpath(root / sqlite[2])
    return source if "://" in source else os.path.realpath(root / source)  # It takes a circle of links too.
