"""Where judged collections come from: a recipe's source, found, read and held to the contracts of `pipeline.schema`."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import artifacts, schema
from pipeline.config import SourceConfig
from pipeline.data.formats import registry, sql, tables
from pipeline.data.formats.tables import Tables, is_text
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import MAX_GRADE, InvalidRow

NAMES = (*(known.name for known in registry.FORMATS), "sql", "python_api")
"""All formats; `auto` is one of them by the look of the path."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """One collection as it was read, rows in the order of its files."""

    name: str
    documents: pa.Table
    """doc_id, title, text, and whatever else the source has."""
    queries: pa.Table
    judgments: pa.Table
    """query_id, doc_id, grade, and where the source has them split (train, valid, test or null) and source."""
    digest: str
    """Changes with the content that was read."""
    format: str = ""
    faults: tuple[InvalidRow, ...] = ()
    """Rows that hold a stand-in, because what was read does not fit into a table."""


@dataclass(frozen=True, slots=True)
class ReadSource:
    """A source that is there, before it is read."""

    name: str
    format: str
    digest: str
    read: Callable[[], Source] = field(repr=False)


def find(config: SourceConfig, root: Path) -> ReadSource:
    """The source that a recipe names. Files are only hashed; a database is read, as nothing else tells its content.

    Raises:
        ConfigError: an unknown format, or grades that are no grades.
        MissingError: no such path, or none of the files of a known format.
        SchemaError: see `read`.
    """
    if config.format not in ("auto", *NAMES):
        raise ConfigError(f"{config.path}: format '{config.format}' is none of auto, {', '.join(NAMES)}")
    wrong = [grade for grade in config.grades if not 0 <= grade <= MAX_GRADE]
    if wrong:
        raise ConfigError(f"{config.path}: grades has {wrong[0]}, which is outside 0..{MAX_GRADE}")
    if config.format == "python_api":
        from pipeline.data.formats import python_docs  # Only its own recipe needs it.

        return ReadSource(config.name or "python_api", "python_api", python_docs.digest(), lambda: _python_api(config))
    if config.format == "sql" or (config.format == "auto" and "://" in config.path):
        source = _sql(config, root)
        return ReadSource(source.name, source.format, source.digest, lambda: source)
    path = root / config.path
    known = registry.of(path, config.format)
    name = config.name or (path.resolve().parent.name if path.is_file() else path.resolve().name)
    digest = _digest_files(known, path)
    return ReadSource(name, known.name, digest, lambda: _read(known, path, name, digest, config))


def read(config: SourceConfig, root: Path) -> Source:
    """A source's documents, queries and judgments.

    Rows that cannot be used as they are stay in the tables and are listed in `faults`; `pipeline.data.validation`
    finds the others.

    Args:
        root: what the source's path is relative to.

    Raises:
        ConfigError: an unknown format.
        MissingError: no such path, or none of the files of a known format.
        SchemaError: a file that cannot be read: not UTF-8, cut off, a column missing or of a wrong type.
    """
    return find(config, root).read()


def _read(known: tables.Format, path: Path, name: str, digest: str, config: SourceConfig) -> Source:
    began = time.monotonic()
    source = _checked(name, known.name, known.read(path), digest, config, str(path))
    log.info(
        "%s: %s, %d documents, %d queries, %d judgments in %.1f s",
        path,
        known.name,
        source.documents.num_rows,
        source.queries.num_rows,
        source.judgments.num_rows,
        time.monotonic() - began,
    )
    return source


def _sql(config: SourceConfig, root: Path) -> Source:
    found = sql.read(config.path, root)
    digest = hashlib.blake2b(digest_size=16)
    for batch in found.documents.to_batches(max_chunksize=sql.ROWS_AT_ONCE):
        for row in batch.to_pylist():
            digest.update(repr(row).encode(errors="surrogatepass"))
    address, table = sql.locate(config.path, root)
    return _checked(
        config.name or table, "sql", found, digest.hexdigest(), config, address.render_as_string(hide_password=True)
    )


def _python_api(config: SourceConfig) -> Source:
    from pipeline.data.formats import python_docs

    found = python_docs.read()
    made = Tables(documents=found.documents, queries=found.queries, judgments=found.judgments)
    return _checked(config.name or found.name, "python_api", made, found.digest, config, "python_api")


def _checked(name: str, form: str, made: Tables, digest: str, config: SourceConfig, where: str) -> Source:
    """The source, its grades mapped as the recipe says, after a check of its columns."""
    faults = [
        fault
        for kind in ("documents", "queries", "judgments")
        for fault in schema.column_faults(getattr(made, kind), kind)
    ]
    if faults:
        raise SchemaError(f"{where}: " + "; ".join(str(fault) for fault in faults))
    judgments, unmapped = _map_grades(made.judgments, config.grades)
    return Source(
        name, _large(made.documents), _large(made.queries), _large(judgments), digest, form, (*made.faults, *unmapped)
    )


def _map_grades(judgments: pa.Table, grades: tuple[int, ...]) -> tuple[pa.Table, list[InvalidRow]]:
    """Judgments with `grades[grade]` for each grade; a fault where there is no such place."""
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
    """The same with one type for all texts, so that tables of several sources can be joined."""
    for place, column in enumerate(table.schema):
        if is_text(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(STRING))
    return table


def _digest_files(known: tables.Format, path: Path) -> str:
    parts = [f"{file.name} {artifacts.sha256(file)}" for file in known.files(path)]
    return hashlib.blake2b("\n".join([known.name, *parts]).encode(), digest_size=16).hexdigest()
