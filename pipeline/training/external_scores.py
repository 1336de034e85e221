"""Reads the scores that an external teacher gave to pairs, from a Parquet file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts import Artifact
from pipeline.data.formats.parquet_reader import read_foreign
from pipeline.errors import SchemaError
from pipeline.schema import row_name
from pipeline.text import counted

Floats = NDArray[np.float64]

PAIR_KEYS = ("query_id", "doc_id")
"""Columns that name a pair."""


def read(path: Path, table: pa.Table, pairs: Artifact) -> tuple[Floats, dict[str, int]]:
    """(pairs,) the scores that a file has for the rows of a table of pairs, and how many of its rows no pair needs.

    Raises:
        SchemaError: not Parquet, a column missing, a score that is no number or is given twice, a pair without one.
    """
    given, keys = _read_file(path)
    wanted = table.select(["row_id", *PAIR_KEYS]).to_pandas()
    if "queries.parquet" in pairs.manifest.files:  # Unlabelled lists, under names that are known here only.
        lists = pq.read_table(pairs.file("queries.parquet"), columns=["query_id", "asked"]).to_pandas()
        original_ids = wanted["query_id"].map(lists.set_index("query_id")["asked"])
        wanted = wanted.assign(query_id=original_ids.fillna(wanted["query_id"]))
    joined = wanted.merge(given, on=keys, how="left", validate="m:1")
    lost = np.flatnonzero(joined["score"].isna())
    if len(lost):
        raise SchemaError(
            f"{path}: no score for {len(lost):,} of {counted(len(wanted), 'pair')}, "
            f"{_named(wanted.iloc[lost[0]], keys)} for one; score every row of {pairs.path / 'pairs.parquet'}"
        )
    used = given.merge(wanted[keys].drop_duplicates(), on=keys)
    return joined["score"].to_numpy(dtype=np.float64), {"unused rows": len(given) - len(used)}


def _read_file(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The file's scores with the columns that name a pair, and the names of these columns; each pair stands once.

    Raises:
        MissingError: no such file.
        SchemaError: not Parquet, a column missing or there twice, a score that is no number or is given twice.
    """
    given = read_foreign(path, []).to_pandas()
    by_name = set(PAIR_KEYS) <= set(given)  # Names say more than the number of a row, which another table has too.
    keys = ["row_id"] if "row_id" in given and not by_name else list(PAIR_KEYS)
    missing = [name for name in (*keys, "score") if name not in given]
    if missing:
        raise SchemaError(
            f"{path}: has no column {missing[0]}; needed are score and either row_id or query_id and doc_id, "
            f"it has {', '.join(map(str, given.columns))}"
        )
    numbers = pd.to_numeric(given["score"], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        value = given["score"].iloc[bad[0]]
        raise SchemaError(
            f"{path}, {row_name(bad[0])}: score {value} is no finite number ({counted(len(bad), 'row')} of "
            f"{len(given)})"
        )
    given = _typed_keys(path, given, keys).assign(score=numbers)
    twice = np.flatnonzero(given.duplicated(keys))
    if len(twice):
        raise SchemaError(
            f"{path}, {row_name(twice[0])}: a second score for {_named(given.iloc[twice[0]], keys)} "
            f"({counted(len(twice), 'such row')}); keep one"
        )
    return given, keys


def _typed_keys(path: Path, given: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The columns that name a pair: row numbers as integers, ids as text.

    Raises:
        SchemaError: a row number that is no whole number.
    """
    kind = np.int64 if keys == ["row_id"] else str
    try:
        named = given[keys].astype(kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"{path}: column {keys[0]} holds a value that is no whole number ({error})") from error
    if kind is np.int64 and len(cut := np.flatnonzero(pd.to_numeric(given["row_id"]) != named["row_id"])):
        value = given["row_id"].iloc[cut[0]]
        raise SchemaError(
            f"{path}, {row_name(cut[0])}: row_id {value} is no whole number ({counted(len(cut), 'such row')})"
        )
    return named


def _named(row: "pd.Series[Any]", keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]!r}" for key in keys)
