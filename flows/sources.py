"""The sources that a command's argument means: a folder, a file, a database, or all sources of a recipe."""

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from flows import data_advice
from pipeline import recipe as recipes
from pipeline import text
from pipeline.config import ComputeConfig, DataConfig, Recipe, SourceConfig
from pipeline.config_checks import check_path
from pipeline.errors import ConfigError, RelevanceError, SchemaError, UnavailableError
from pipeline.secrets import hide_passwords

if TYPE_CHECKING:
    from pipeline.data.formats.column_advice import Contents

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
        SchemaError: see `with_columns`.
    """
    if columns and all(isinstance(item, str) and is_recipe(item) for item in documents):
        raise ConfigError("--columns: the sources of a recipe have maps of their own; write it there, as columns")
    chosen: list[SourceConfig] = []
    for item in documents:
        if isinstance(item, SourceConfig):
            chosen.append(with_columns(item, "documents"))
        elif is_recipe(item):
            chosen += [_with_usual_columns(source) for source in named(item, format, overrides)]
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
        SchemaError: see `with_columns`.
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
        SchemaError: no known format, or a map that names a column which is not there.
    """
    from pipeline import storage
    from pipeline.data.formats import column_advice, registry, sql

    if storage.is_address(source.path):
        return
    there = replace(source, path=absolute(source.path, root))
    if "://" not in there.path:
        registry.find(there, Path())
        samples = _samples(there) if there.columns else {}
    elif there.query:
        sql.locate(there.path, Path())
        return
    else:
        try:
            samples = sql.samples_of(there, Path())
        except UnavailableError as error:
            log.warning("%s", error)
            return
    if samples and (problem := column_advice.fault(there.columns, samples)):
        raise SchemaError(f"{hide_passwords(source.path)}: {problem}")


def _with_usual_columns(source: SourceConfig) -> SourceConfig:
    """A recipe's source of documents, mapped by the names of its columns where it has no map and needs one."""
    from pipeline.data.formats import column_advice

    if source.columns or ("://" not in source.path and _is_known_file(source)):
        return source
    names = list(_samples(source))
    columns = column_advice.guess(names, "documents")
    if not {"title", "text"} & set(columns):
        return source
    shown = hide_passwords(source.path)
    log.info("%s: %s", shown, _as_read(columns, names, "columns in the recipe's source"))
    return replace(source, columns=columns)


def with_columns(source: SourceConfig, contents: "Contents | None") -> SourceConfig:
    """The source with a column map if it is a single table: the given map, or the one that fits its columns best.

    Keys that the given map leaves out are guessed too for judgments, and for documents of which it names no text.

    Args:
        contents: what the table holds, which decides the keys that the map needs; None leaves it to the columns, see
            `column_advice.fitted`.

    Raises:
        SchemaError: the map names a column that is not there, or lacks one that is needed and has no usual name; the
            message has the map to type.
        ConfigError, MissingError: a database or a file that cannot be read.
    """
    from pipeline.data.formats import column_advice

    shown = hide_passwords(source.path)
    samples = _samples(source, known_first=contents is None)
    if not samples:
        return source
    columns = dict(source.columns)
    if contents is None:
        columns, contents = column_advice.fitted(columns, list(samples))
    elif contents == "judgments" or not {"title", "text"} & set(columns):  # A re-index keeps to the texts of its map.
        columns = column_advice.completed(columns, list(samples), contents)
    if not columns and (problem := column_advice.separator(list(samples))):
        raise SchemaError(f"{shown}: {problem}")
    if problem := column_advice.fault(columns, samples, contents, guessed=not source.columns):
        first_line = f"\n  {column_advice.FIRST_LINE}" if not columns and "://" not in source.path else ""
        raise SchemaError(f"{shown}: {problem}{first_line}{_other_way(source, columns, contents)}")
    if columns != dict(source.columns):
        kept = _to_filter_by(columns, list(samples)) if contents == "documents" else ""
        log.info("%s: %s%s", shown, _as_read(columns, list(samples), "--columns"), kept)
    return replace(source, columns=columns)


def _other_way(source: SourceConfig, columns: Mapping[str, str], contents: "Contents | None") -> str:
    """The lines on another way than a map for a table that lacks a part of judged data; empty without any."""
    from pipeline.data.formats import column_map

    judged, described = column_map.JUDGED & set(columns), {"title", "text"} & set(columns)
    if contents == "judgments" and described and not judged and "query" not in columns:
        return f"\n  {data_advice.without_judgments(source)}"
    return f"\n  {data_advice.ways_to_join(source, columns)}" if judged and not described else ""


def _as_read(columns: Mapping[str, str], names: Sequence[str], key: str) -> str:
    """A log line on a guessed column map: the columns read, the option that changes them, and the columns not read.

    Args:
        columns: the map.
        names: all columns of the table.
        key: the option or recipe key that sets a map.
    """
    from pipeline.data.formats import column_advice, option_text

    unread = [name for name in names if name.strip() and name not in columns.values()]
    most = column_advice.SHOWN_COLUMNS
    more = f", and {len(unread) - most:,} more" if len(unread) > most else ""
    left = f" (not read: {text.printable(', '.join(unread[:most]))}{more})" if unread else ""
    log_of = " (a click log)" if "clicked" in columns else ""
    return f"columns read as {option_text.option(columns)}{log_of}; {key} names others{left}"


def _to_filter_by(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """The words on keeping a column that a guessed map of documents leaves out; empty where there is none."""
    from pipeline.data.formats import column_map, option_text

    free = (name for name in names if name.strip() and name not in columns.values())
    name = next((name for name in free if not column_map.role_meant(name, column_map.ROLES)), "")
    return f"; to filter by one, keep it: {option_text.option({name: name})}" if name else ""


def _samples(source: SourceConfig, *, known_first: bool = False) -> dict[str, str]:
    """The columns of a table, each with a value; empty for what needs no map: a folder, a file of a known format."""
    from pipeline import storage
    from pipeline.data.formats import column_map, qrels_file, sql

    if storage.is_address(source.path) or source.format not in ("auto", "table", "sql"):
        return {}
    if "://" in source.path:
        samples = {} if source.query else sql.samples_of(source, Path())
        return {} if not source.columns and set(sql.OWN_COLUMNS) <= set(samples) else samples
    path = Path(source.path)
    if source.format == "sql" or not path.is_file() or path.suffix.lower() not in column_map.SUFFIXES:
        return _samples_of_alike(source) if source.format != "sql" and not source.columns else {}
    is_trec = source.format == "auto" and not source.columns and (qrels_file.is_qrels(path) or qrels_file.is_run(path))
    samples = column_map.samples_of(path, list(source.columns.values()))
    if source.columns and column_map.has_later_keys(path):
        samples |= {name: "" for name in source.columns.values() if name not in samples}  # Its reader sees all lines.
    if is_trec or not any(name.strip() for name in samples):
        return {}
    has_usual = bool(column_map.suggest(list(samples))) and not (known_first and _needs_no_map(source, samples))
    if source.columns or source.format == "table" or has_usual:
        return samples
    return {} if _is_known_file(source) else samples


def _samples_of_alike(source: SourceConfig) -> dict[str, str]:
    """The columns of the tables of a folder or a pattern if all have the same; empty for a folder of a known format."""
    from pipeline.data.formats import column_map, trec_collection

    files = column_map.files_of(Path(source.path))
    is_part = bool(trec_collection.lacking(Path(source.path)))
    if not files or is_part or Path(source.path).is_file() or _is_known_file(source):
        return {}
    try:
        samples = [column_map.samples_of(file) for file in files]
    except RelevanceError:  # What is wrong with one file is said when the folder is read.
        return {}
    return samples[0] if all(other.keys() == samples[0].keys() for other in samples) else {}


def _needs_no_map(source: SourceConfig, names: Collection[str]) -> bool:
    """Whether a file is of a known format; of Parquet only one that has the columns of our documents is."""
    from pipeline.data.formats import sql

    is_parquet = Path(source.path).suffix.lower() == ".parquet"
    return _is_known_file(source) and (not is_parquet or set(sql.OWN_COLUMNS) <= set(names))


def _is_known_file(source: SourceConfig) -> bool:
    """Whether this is a file or folder of a format that needs no map of columns."""
    from pipeline.data.formats import registry

    return source.format == "auto" and any(known.find(source, Path()) for known in registry.FORMATS)


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
