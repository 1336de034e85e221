"""Reads a single TREC qrels file, which has judgments and the ids of queries, but no text.

It suffices to judge a run file. A release cannot rank by ids, so the format is read only where it is named.
"""

import shlex
from pathlib import Path

import pyarrow as pa

from pipeline.command_line import typed
from pipeline.config import SourceConfig
from pipeline.data.formats import row_locations, tables, trec_files
from pipeline.data.formats.column_map import JSON_LINES
from pipeline.data.formats.tables import FoundSource, Tables

NAME = "qrels"
LOOKED_FOR = "a TREC qrels file to judge a run by; only when named, or beside --run"
FIRST_BYTES = 4096
"""Bytes of a file that are read to tell its form."""
OTHERS = (".csv", *JSON_LINES, ".parquet", ".toml", ".db", ".sqlite")
"""Ends of file names that another format reads."""


def find(config: SourceConfig, root: Path) -> FoundSource | None:
    """The source of format `qrels`; see `tables.Format`."""
    path = root / config.path
    if config.format != NAME or not path.is_file():
        return None
    return FoundSource(tables.name_of(path), str(path), lambda: tables.digest_of(NAME, [path]), lambda: read(path))


def is_qrels(path: Path) -> bool:
    """Whether a file begins, blank lines aside, with a line of qrels: `query iteration document grade`."""
    return trec_files.is_qrels_line(_first_fields(path))


def is_run(path: Path) -> bool:
    """Whether a file begins, blank lines aside, with a line of a run: `query Q0 document rank score system`."""
    return trec_files.is_run_line(_first_fields(path))


def _first_fields(path: Path) -> list[str]:
    """The fields of a file's first line that is not blank; empty where its name is that of another format."""
    if not path.is_file() or path.suffix.lower() in OTHERS:
        return []
    with path.open("rb") as file:
        lines = map(str.split, file.read(FIRST_BYTES).decode("utf-8-sig", errors="replace").split("\n"))
        return next(filter(None, lines), [])


def advice(path: Path) -> str:
    """The message that a file is of this form, and what can be done with it."""
    report = typed(f"report --run RUN --judgments {shlex.quote(str(path))}")
    return (
        f"{path}: is a TREC qrels file (query, iteration, document, grade), which has no texts. To judge a run by it: "
        f"`{report}`. To learn or search, put it into a folder with the documents "
        "(corpus.jsonl, or collection.tsv with lines of id, tab, text) and the queries (queries.jsonl or queries.tsv), "
        "and name the folder"
    )


def read(path: Path) -> Tables:
    """The judgments of a qrels file, and its queries with their ids as texts; no documents.

    Raises:
        SchemaError: a line is none of a qrels file.
    """
    judgments = trec_files.read_qrels(path)
    judgments = judgments.append_column("split", tables.all_the_same(None, judgments.num_rows))
    locations = row_locations.in_files([row_locations.one_a_line(path, judgments.num_rows)], path)
    first, in_queries = tables.first_of(judgments, "query_id", locations=locations)
    ids = first["query_id"]
    return Tables(
        queries=pa.table({"query_id": ids, "text": ids}),
        judgments=judgments,
        locations={"queries": in_queries, "judgments": locations},
    )
