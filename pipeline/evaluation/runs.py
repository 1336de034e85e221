"""Reads the documents that a system ranked from a file in one of three formats.

run      columns query_id, doc_id, score; a column `system` chooses rows where the file holds several
scores   columns row_id, score; joined by row id with a pool's pairs
TREC     text lines of query, Q0, document, rank, score, system
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Artifact
from pipeline.errors import MissingError, SchemaError
from pipeline.regular_files import refuse_special
from pipeline.schema import row_name
from pipeline.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ["query_id", "doc_id", "score"]
"""Columns that a run must have."""

_PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of ranked documents, and which of its systems is meant."""

    path: Path
    system: str = ""
    """The rows whose column `system` has this value; a file of one system needs no name."""

    @classmethod
    def parse(cls, text: str) -> "RunFile":
        """The run that FILE or FILE:SYSTEM means; a colon in the name of a file that exists is part of its name."""
        path, colon, system = text.rpartition(":")
        if colon and not Path(text).is_file() and Path(path).is_file():
            return cls(Path(path), system)
        return cls(Path(text))

    def __str__(self) -> str:
        return f"{self.path}:{self.system}" if self.system else str(self.path)

    @property
    def name(self) -> str:
        """The system's name or, without one, the file's name without its ending."""
        return self.system or self.path.stem


def read(
    path: Path, system: str, pool: Artifact | None = None, split: str | None = None, *, is_named: bool = False
) -> "pa.Table":
    """query_id, doc_id and score of one system's documents.

    Args:
        path: Parquet or TREC text; told apart by the first bytes.
        system: its name, which chooses rows where the file holds several systems.
        pool: the pairs that give a scores file its queries and documents.
        split: the scores are of this split of the pool; of the whole without it.
        is_named: whether a person named the system, so that a file of one other system is refused as well.

    Raises:
        MissingError: no such file.
        SchemaError: a folder, a pipe or a device; the file has none of the three formats; it holds rows that the pool
            has not, or lacks some of the pool's; or it holds several systems and none of this name, or no row.
    """
    refuse_special(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file; the run of '{system}' was expected here")
    table = _parquet(path) if _starts_with(path, _PARQUET) else _trec(path)
    names = set(table.column_names)
    if {"row_id", "score"} <= names and not set(COLUMNS) <= names:
        return _joined(table, path, pool, split)
    if not set(COLUMNS) <= names:
        raise SchemaError(
            f"{path}: has columns {', '.join(table.column_names)}; a run needs query_id, doc_id and score, "
            "a scores file row_id and score"
        )
    if not table.num_rows:
        raise SchemaError(f"{path}: ranks no document for any query; look at what writes it")
    return _of_system(table, path, system, is_named=is_named).select(COLUMNS)


def check_queries(name: str, run: "pa.Table", judged_ids: Set[str]) -> None:
    """Raises SchemaError if a run ranks documents for none of the judged queries, as with ids of another data set."""
    ranked = set(run["query_id"].unique().to_pylist())
    if ranked and judged_ids and not ranked & judged_ids:
        raise SchemaError(
            f"system '{name}': ranks {counted(len(ranked), 'query')}, none of which is judged; its ids are such as "
            f"'{min(ranked)}', those of the judgments such as '{min(judged_ids)}'"
        )


def _starts_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _parquet(path: Path) -> "pa.Table":
    from pipeline.data.formats import parquet_reader

    table = parquet_reader.read_foreign(path, ())
    for name in table.column_names:
        if name in {*COLUMNS, "row_id"} and table.column(name).null_count:
            row = table.column(name).is_null().to_pylist().index(True)
            raise SchemaError(f"{path}, {row_name(row)}: {name} is null")
    return _typed(table, path)


def _typed(table: "pa.Table", path: Path) -> "pa.Table":
    """The table with ids and systems as texts and scores as numbers, whatever plain type they have in the file."""
    import pyarrow as pa

    wanted = dict.fromkeys(("query_id", "doc_id", "system"), pa.large_string()) | {"score": pa.float64()}
    for name in wanted.keys() & set(table.column_names):
        column = table.column(name)
        try:
            if pa.types.is_temporal(column.type):
                raise pa.ArrowTypeError("a time")
            cast = column.cast(wanted[name])
        except pa.ArrowException as error:
            what = "numbers" if name == "score" else "texts or whole numbers"
            raise SchemaError(f"{path}: column {name} holds {column.type}, not {what} ({error})") from error
        table = table.set_column(table.column_names.index(name), name, cast)
    return table


def _trec(path: Path) -> "pa.Table":
    from pipeline.data.formats import trec_files

    return trec_files.read_run(path)


def _of_system(table: "pa.Table", path: Path, system: str, *, is_named: bool) -> "pa.Table":
    import pyarrow.compute as pc

    if "system" not in table.column_names:
        if is_named:
            raise SchemaError(f"{path}: has no column system, so no system is called '{system}'; name the file alone")
        return table
    names = pc.fill_null(table.column("system"), "")
    known = sorted(names.unique().to_pylist())
    if system in known:
        return table.filter(pc.equal(names, system))
    if len(known) > 1 or is_named:
        holds = f"the systems {', '.join(known)}, none is" if len(known) > 1 else f"the system {known[0]}, which is not"
        raise SchemaError(
            f"{path}: holds {holds} called '{system}'; name one of them, on the command line as FILE:SYSTEM, or the "
            "file alone where it holds one"
        )
    return table


def _joined(scores: "pa.Table", path: Path, pool: Artifact | None, split: str | None) -> "pa.Table":
    import pandas as pd
    import pyarrow as pa

    if pool is None:
        raise SchemaError(f"{path}: scores by row id mean nothing without their pool; give a run file")
    chosen = [("split", "==", split)] if split else None
    pairs = pd.read_parquet(pool.file("pairs.parquet"), columns=["row_id", "query_id", "doc_id"], filters=chosen)
    frame = scores.select(["row_id", "score"]).to_pandas()
    doubles = frame["row_id"].duplicated()
    if doubles.any():
        raise SchemaError(f"{path}: row {frame['row_id'][doubles].iloc[0]} of the pool is scored twice")
    unknown, unscored = set(frame["row_id"]) - set(pairs["row_id"]), set(pairs["row_id"]) - set(frame["row_id"])
    if unknown or unscored:
        raise SchemaError(
            f"{path}: {len(unknown):,} of its rows are not in the pool and {len(unscored):,} of the pool's rows have "
            f"no score; it was made for another pool than {pool.path}, score this one"
        )
    joined = pairs.merge(frame, on="row_id", validate="1:1")
    return pa.Table.from_pandas(joined[COLUMNS], preserve_index=False)
