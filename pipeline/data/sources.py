"""The sources of a recipe: found, read, and checked against the contracts of `pipeline.schema`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.data.formats import registry
from pipeline.data.formats.tables import FoundSource, Tables, is_text
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import MAX_GRADE, InvalidRow, NameRows
from pipeline.text import counted

log = logging.getLogger(__name__)

GROWING = "thumbs"
"""The format whose files may be without rows: it holds users' thumbs up and down on results, which the service adds to
and a user can take back."""


@dataclass(frozen=True, slots=True)
class Source:
    """One collection as it was read, rows in the order of its files."""

    name: str
    documents: pa.Table
    """Columns doc_id, title, text, and all others of the source."""
    queries: pa.Table
    judgments: pa.Table
    """Columns query_id, doc_id, grade, and where the source has them split (train, valid, test or null) and source."""
    digest: str
    """A hash of the content that was read."""
    format: str = ""
    faults: tuple[InvalidRow, ...] = ()
    """Rows of these tables with a value that could not be used as it was read, so that a placeholder stands there."""
    clicks: tuple[Mapping[str, Any], ...] = ()
    """Counts and thresholds that grades were computed with, for each click log; see `weak_judgments.ClickJudgments`."""
    advice: str = ""
    """Advice on mending the rows in `faults`; empty where their reasons say all. See `tables.Tables`."""
    locations: Mapping[str, NameRows] = field(default_factory=dict, repr=False, compare=False)
    """Table → the locations of its rows in the files that were read; see `tables.Tables`."""
    shown: str = ""
    """The source's address, for messages."""
    scale: tuple[float, ...] = ()
    """The scale that was chosen for its fractional grades, as a `grade_scale`; empty where none was."""


@dataclass(frozen=True, slots=True)
class ReadSource:
    """A source whose files or tables were found and hashed; `read` reads them."""

    name: str
    format: str
    digest: str
    """A hash of the content of its files or tables; it says nothing of how they are read."""
    settings: Mapping[str, Any]
    """The keys of the recipe's source that say how a table is read; empty for a source of a known format. The same
    content read by other settings is other data, so a fingerprint needs both."""
    read: Callable[[], Source] = field(repr=False)


def find(config: SourceConfig, root: Path) -> ReadSource:
    """The source that a recipe names, not yet read. Files are hashed; a database is read, the only way to hash it.

    Raises:
        ConfigError: the format is unknown, a number in `grades` is no grade, there are labels without a column map, or
            a `grade_scale` that nothing would be read by.
        MissingError: the path does not exist, or holds no file of a known format.
        SchemaError: see `read`.
    """
    wrong = [grade for grade in config.grades if not 0 <= grade <= MAX_GRADE]
    if wrong:
        raise ConfigError(f"{config.path}: grades has {wrong[0]}, which is outside 0..{MAX_GRADE}")
    if config.labels and not config.columns:
        raise ConfigError(
            f"{config.path}: labels belong to a table whose columns are mapped; map that of grades too, with "
            "--columns …,grade=COLUMN on the command line or columns in the recipe's source"
        )
    if config.grade_scale and config.labels:
        raise ConfigError(f"{config.path}: labels give the grades themselves; take grade_scale out of the source")
    if config.grade_scale and not {"grade", "clicked"} & set(config.columns):
        raise ConfigError(
            f"{config.path}: grade_scale belongs to a table whose columns map grade or clicked; map one of them, or "
            "take grade_scale out of the source"
        )
    form, source = registry.find(config, root)
    name = config.name or source.name
    digest = source.digest()
    return ReadSource(name, form, digest, settings_of(config), lambda: _read(name, form, digest, source, config))


def check_found(configs: Sequence[SourceConfig], root: Path) -> None:
    """Checks that the files of sources are there and have a known format; reads none, and asks no other machine.

    Databases and shared storage are left to `find`, which reads a database to hash it.

    Raises:
        ConfigError, MissingError: see `find`.
    """
    for config in configs:
        if "://" not in config.path:
            registry.find(config, root)


def settings_of(config: SourceConfig) -> dict[str, Any]:
    """The non-default keys of a source that say how a table is read, as JSON values."""
    settings = {
        "columns": dict(config.columns),
        "labels": dict(config.labels),
        "grade_scale": list(config.grade_scale),
        "query": config.query,
        "min_examined": config.min_examined if "clicked" in config.columns else 0,
    }
    return {key: value for key, value in settings.items() if value}


def read(config: SourceConfig, root: Path) -> Source:
    """A source's documents, queries and judgments.

    Rows whose values cannot be read stay in the tables and are listed in `faults`. Rows that can be read but not used,
    such as a judgment of an unknown document, are left to `pipeline.data.validation`.

    Args:
        root: what the source's path is relative to.

    Raises:
        ConfigError: see `find`.
        MissingError: the path does not exist, or holds no file of a known format.
        SchemaError: a file cannot be read: it is not UTF-8 or cut off, or a column is missing or of a wrong type; or
            there are no rows at all, except in the format `GROWING`.
    """
    return find(config, root).read()


def _read(name: str, form: str, digest: str, origin: FoundSource, config: SourceConfig) -> Source:
    """The source as read, after a check that its content still has the digest."""
    began = time.monotonic()
    source = _checked(name, form, origin.read(), digest, config, origin.shown)
    if origin.digest() != digest:
        raise SchemaError(f"{origin.shown}: changed while it was read; run again when nothing writes to it any more")
    if not (source.documents.num_rows or source.queries.num_rows or source.judgments.num_rows):
        if form != GROWING:
            raise SchemaError(
                f"{origin.shown}: has no rows: no document, no query and no judgment; look at what writes it, or leave "
                "the source out"
            )
        log.warning("%s: has no rows yet", origin.shown)
    log.info(
        "%s: %s, %s, %s, %s in %.1f s",
        origin.shown,
        form,
        counted(source.documents.num_rows, "document"),
        counted(source.queries.num_rows, "query"),
        counted(source.judgments.num_rows, "judgment"),
        time.monotonic() - began,
    )
    return source


def _checked(name: str, form: str, tables_read: Tables, digest: str, config: SourceConfig, where: str) -> Source:
    """The source, its grades mapped as the recipe says, after a check of its columns."""
    faults = [
        fault
        for kind in ("documents", "queries", "judgments")
        for fault in schema.column_faults(getattr(tables_read, kind), kind)
    ]
    if faults:
        raise SchemaError(f"{where}: " + "; ".join(str(fault) for fault in faults))
    judgments, unmapped = _map_grades(tables_read.judgments, config.grades)
    return Source(
        name,
        _large(tables_read.documents),
        _large(tables_read.queries),
        _large(judgments),
        digest,
        form,
        (*tables_read.faults, *unmapped),
        (tables_read.clicks,) if tables_read.clicks else (),
        tables_read.advice,
        tables_read.locations,
        where,
        tables_read.scale,
    )


def _map_grades(judgments: pa.Table, grades: tuple[int, ...]) -> tuple[pa.Table, list[InvalidRow]]:
    """Judgments with `grades[grade]` in place of each grade, and a fault for each grade outside of it."""
    values = pc.cast(judgments["grade"], pa.int64())
    faults: list[InvalidRow] = []
    if grades:
        known = pc.and_(pc.greater_equal(values, 0), pc.less(values, len(grades)))
        for row in pc.indices_nonzero(pc.invert(known)).to_pylist():
            reason = f"grade {values[row].as_py()} has no place in the source's grades = {list(grades)}"
            faults.append(InvalidRow("judgments", row, reason))
        values = pc.take(pa.array(grades, pa.int64()), pc.if_else(known, values, 0))
    return judgments.set_column(judgments.column_names.index("grade"), "grade", values), faults


def _large(table: pa.Table) -> pa.Table:
    """The table with one type for all texts, so that tables of several sources can be joined."""
    for number, column in enumerate(table.schema):
        if is_text(column.type):
            table = table.set_column(number, column.name, table[column.name].cast(STRING))
    return table
