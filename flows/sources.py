"""The sources that a command's argument means: a folder, a file, a database, or all sources of a recipe."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from flows.source_columns import samples_of, with_columns, with_usual_columns
from pipeline import recipe as recipes
from pipeline.config import ComputeConfig, DataConfig, Recipe, SourceConfig
from pipeline.config_checks import check_path
from pipeline.errors import ConfigError, SchemaError, UnavailableError
from pipeline.secrets import hide_passwords

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
"""A map of columns that is not given."""
NO_LABELS: Mapping[str, int] = MappingProxyType({})
"""Grades of words that are not given."""

log = logging.getLogger(__name__)


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


def of_documents(
    documents: Sequence[str | SourceConfig],
    format: str = "auto",
    columns: Mapping[str, str] = NO_COLUMNS,
    overrides: Sequence[str] = (),
) -> list[SourceConfig]:
    """The sources of documents that a command means, each table with a map of its columns.

    The sources of a recipe keep their maps; a table of theirs without one is mapped by the usual names of its columns.

    Args:
        documents: folders, files, SQLAlchemy URLs, sources, or recipes, whose sources are meant.
        format: the format of folders, files and URLs; sources and recipes name their own.
        columns: the column map of tables that no recipe names; if empty, each is mapped by its columns' names.
        overrides: values laid over a recipe, as --set does.

    Raises:
        ConfigError: `columns` is given, but all documents come from recipes, which have maps of their own.
        SchemaError: see `source_columns.with_columns`.
    """
    if columns and all(isinstance(item, str) and is_recipe(item) for item in documents):
        raise ConfigError("--columns: the sources of a recipe have maps of their own; write it there, as columns")
    chosen: list[SourceConfig] = []
    for item in documents:
        if isinstance(item, SourceConfig):
            chosen.append(with_columns(item, "documents"))
        elif is_recipe(item):
            chosen += [with_usual_columns(source) for source in named(item, format, overrides)]
        else:
            chosen.append(with_columns(SourceConfig(path=item, format=format, columns=columns), "documents"))
    return chosen


def of_any_data(
    path: str,
    format: str = "auto",
    columns: Mapping[str, str] = NO_COLUMNS,
    labels: Mapping[str, int] = NO_LABELS,
    overrides: Sequence[str] = (),
) -> tuple[SourceConfig, ...]:
    """The sources at a path, whatever they hold; a table that stands in no recipe gets a map of its columns.

    Args:
        path: a folder, a file, a SQLAlchemy URL, or a recipe, whose sources are meant.
        format: the format of all but a recipe.
        columns: the map of a table that stands in no recipe; the usual names of columns complete it.
        labels: the grade of each word in that table's column of grades.
        overrides: values laid over a recipe, as --set does.

    Raises:
        ConfigError: a map or labels for a recipe, whose sources have their own.
        SchemaError: see `source_columns.with_columns`.
    """
    if not is_recipe(path):
        return (with_columns(SourceConfig(path=path, format=format, columns=columns, labels=labels), None),)
    if columns or labels:
        option = "--columns" if columns else "--labels"
        raise ConfigError(f"{option}: the sources of a recipe have their own; write it there, as {option[2:]}")
    return named(path, format, overrides)


def of_judgments(
    path: str,
    format: str = "auto",
    columns: Mapping[str, str] = NO_COLUMNS,
    labels: Mapping[str, int] = NO_LABELS,
) -> tuple[SourceConfig, ...]:
    """The sources at a path, to judge by; arguments and errors as of `of_any_data`.

    A table must have grades or clicks. A short click log that stands in no recipe is judged by the evidence it allows.
    """
    from pipeline.data.clicks import short_logs

    chosen = of_any_data(path, format, columns, labels)
    if is_recipe(path) or not chosen[0].columns:
        return chosen
    source = with_columns(chosen[0], "judgments") if "grade" not in chosen[0].columns else chosen[0]
    return (short_logs.fitted(source, Path())[0] if "clicked" in source.columns else source,)


def refuse_absent(source: SourceConfig, root: Path) -> None:
    """Raises the errors by which reading a source would fail at once, without reading its rows.

    Data in an object store is not looked at, as it would be copied. A database that cannot be reached now may be there
    later, which is a warning.

    Args:
        source: what is looked for.
        root: the folder that its path is relative to.

    Raises:
        MissingError: nothing is there, or no such table.
        ConfigError: an unknown format, or an environment variable that an address names and that is not set.
        SchemaError: no known format, a column that is not there, or a query that the database refuses.
    """
    from pipeline import storage
    from pipeline.data.formats import column_advice, registry, sql

    if storage.is_address(source.path):
        return
    there = replace(source, path=absolute(source.path, root))
    if "://" in there.path:
        try:
            sql.check(there, Path())
        except UnavailableError as error:
            log.warning("%s", error)
        return
    registry.find(there, Path())
    samples = samples_of(there) if there.columns else {}
    if samples and (problem := column_advice.fault(there.columns, samples)):
        raise SchemaError(f"{hide_passwords(source.path)}: {problem}")


def recipe_at(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path; the default recipe where the path is that of data.

    Raises:
        ConfigError: the recipe cannot be read, or there are overrides and the path is that of data.
    """
    if is_recipe(path):
        return recipes.load(Path(path), overrides)
    if overrides:
        raise ConfigError(f"{hide_passwords(path)}: is no recipe, and --set changes the values of one")
    return Recipe()


def rules_of(path: str) -> DataConfig | None:
    """The section `data` of the recipe at a path; None where the path is that of data."""
    return recipes.load(Path(path)).data if is_recipe(path) else None


def compute_of(paths: Sequence[str], overrides: Sequence[str] = ()) -> ComputeConfig:
    """The section `compute` of the recipe among these paths, with overrides laid over it.

    Raises:
        ConfigError: two recipes differ in it, or there is no recipe and an override changes another section.
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

    Raises:
        ConfigError: it is empty, which would mean the working folder.
    """
    check_path(source)
    sqlite = re.fullmatch(r"(sqlite[^:]*:///)([^/:].*)", source)  # A file name; a fourth slash begins an absolute one.
    if sqlite:
        return sqlite[1] + os.path.realpath(root / sqlite[2])
    return source if "://" in source else os.path.realpath(root / source)  # It takes a circle of links too.
