"""Pairs without a grade, on which students learn from the teacher's scores.

`queries` collects queries: those of the training split, those of a file, and titles of documents. `pairs` adds
documents that a search found for them to a table of pairs.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema, text
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import CandidatesConfig
from pipeline.data import candidates, splits
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.outside import OutsideFile
from pipeline.stage import Stage

QUERIES = Stage("asked", version=1, inputs={"data": "data"}, section="candidates", title="queries for unlabelled pairs")
PAIRS = Stage(
    "pairs",
    version=1,
    inputs={"data": "data", "labelled": "pairs", "asked": "asked", "run": "run"},
    section="candidates",
    title="unlabelled pairs",
)

SOURCE = "unlabelled"
"""Value of the column `source` in the added pairs."""

log = logging.getLogger(__name__)


@QUERIES
def queries(workspace: Path, config: CandidatesConfig, *, data: Artifact) -> Artifact:
    """The `asked` artifact: queries.parquet (query_id, text) of all queries for unlabelled pairs.

    Training queries keep their ids. Another query is left out, and counted in the metrics, if it cannot be used, or if
    its normalised text equals a judged query of any split or an earlier one. So no query that models are chosen by or
    judged on comes into training.

    Raises:
        MissingError: no such file.
        SchemaError: it cannot be read, or is a table without queries.
    """
    settings = {"title_queries": config.title_queries, "seed": config.seed}
    inputs: dict[str, Input] = {"data": data}
    if config.unlabelled_queries:
        file = Path(config.unlabelled_queries)
        if not file.is_file():
            raise MissingError(f"candidates.unlabelled_queries: {file} is no file; give one with queries")
        inputs["queries"] = OutsideFile.at(file)

    def build(staging: Staging) -> Mapping[str, Any]:
        judgments = pq.read_table(data.file("judgments.parquet"), columns=["query_id", "split"]).to_pandas()
        known = schema.read(data.file("queries.parquet"), "queries").to_pandas()[["query_id", "text"]]
        train = known[known["query_id"].isin(judgments.loc[judgments["split"] == "train", "query_id"])]
        seen = set(known["text"].map(text.normalise))
        collected = [tuple(row) for row in train.itertuples(index=False)]
        counts: Counter[str] = Counter(training=len(collected))
        for source, query in _more(config, data):
            normalised = text.normalise(query)
            if not normalised or text.fault(query):
                counts[f"{source}: not usable"] += 1
            elif normalised in seen:
                counts[f"{source}: known already"] += 1
            else:
                seen.add(normalised)
                name = hashlib.blake2b(normalised.encode(), digest_size=8).hexdigest()
                collected.append((f"{source}:{name}", query))
                counts[source] += 1
        ids, texts = zip(*collected, strict=True) if collected else ((), ())
        table = pa.table({"query_id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())})
        schema.write(table, staging.folder / "queries.parquet", "queries")
        return {"queries": len(collected), **counts}

    return QUERIES.make(workspace, config=settings, inputs=inputs, build=build)


def _more(config: CandidatesConfig, data: Artifact) -> Iterator[tuple[str, str]]:
    """(origin, query) of the queries without judgments."""
    if config.unlabelled_queries:
        for query in read_queries(Path(config.unlabelled_queries)):
            yield "file", query
    if config.title_queries:
        documents = schema.read(data.file("documents.parquet"), "documents").to_pandas()[["doc_id", "title"]]
        titled = documents[documents["title"].str.strip() != ""]
        numbers = [splits.share(config.seed, doc_id, "title") for doc_id in titled["doc_id"]]
        drawn = titled.assign(number=numbers).sort_values(["number", "doc_id"]).head(config.title_queries)
        for title in drawn["title"]:
            yield "title", title


_TABLES = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson")
"""Suffixes of tables that are refused: read as lines, their commas or braces would be parts of queries."""


def read_queries(path: Path) -> list[str]:
    """The queries of a Parquet file's column `query` or `text`, or the lines of a text; without empty ones.

    Raises:
        SchemaError: not readable as what its name says, or without such a column; a table that is not Parquet.
    """
    if path.suffix.lower() in _TABLES:
        raise SchemaError(f"{path}: queries are read from Parquet or a text with one a line; write this table as one")
    try:
        if path.suffix.lower() != ".parquet":
            return [line for line in map(str.strip, text.split_lines(text.read_text(path))) if line]
        names = pq.read_schema(path).names
        column = next((name for name in ("query", "text") if name in names), None)
        if column is None:
            raise SchemaError(f"{path}: has no column query or text; it has {', '.join(names)}")
        values = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SchemaError(f"{path}: not a readable file of queries ({error}); write it as Parquet or UTF-8") from error
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SchemaError(f"{path}: column {column} is {values.type}, not text")
    return [value for value in values.to_pylist() if value is not None]


@PAIRS
def pairs(
    workspace: Path, config: CandidatesConfig, *, data: Artifact, labelled: Artifact, asked: Artifact, run: Artifact
) -> Artifact:
    """A `pairs` artifact: the rows of `labelled` unchanged, then the pairs without a grade.

    pairs.parquet     pairs without a grade have the split "unlabelled", the grade -1 and the source "unlabelled"
    queries.parquet   query_id, text, asked: the name and text of each list, and the id of the query it was drawn for

    A query's documents are drawn from the first `unlabelled_depth` of its run, in an order that depends on the seed,
    the query and the document alone, and stand in lists of `max_list`. Each list is a query of its own to all that
    comes after, so labelled lists stay as they are. There are as many pairs as `unlabelled` says for each training
    pair: first lists of all queries, in an order by hash, then second ones, and so on; so of two tables of different
    `unlabelled` the smaller is the beginning of the larger.

    Args:
        labelled: a pairs artifact.
        asked: the queries, from `queries`.
        run: the documents that a search found for these queries.

    Raises:
        ConfigError: the search found nothing that could be added.
    """
    keys = ("unlabelled", "unlabelled_depth", "max_list", "seed")
    own = schema.own_documents(data.path)

    def build(staging: Staging) -> Mapping[str, Any]:
        table = schema.read(labelled.file("pairs.parquet"), "pairs")
        given = table.to_pandas()
        wanted = round(config.unlabelled * int((given["split"] == "train").sum()))
        results = candidates.without_itself(schema.read(run.file("run.parquet"), "run").to_pandas(), own)
        rows = _lists(config, results[["query_id", "doc_id", "rank"]], given).head(wanted)
        if wanted and rows.empty:
            raise ConfigError(
                f"candidates.unlabelled {config.unlabelled}: the search found no document that training queries are "
                "not paired with already; give more queries by candidates.unlabelled_queries or title_queries"
            )
        if len(rows) < wanted:
            log.warning("unlabelled pairs: %d were wanted, the queries that are asked have %d", wanted, len(rows))
        names = "unlabelled:" + rows["list"].astype(str) + ":" + rows["query_id"]
        extended = with_ungraded(table, names.tolist(), rows["doc_id"].tolist(), SOURCE)
        schema.write(extended, staging.folder / "pairs.parquet", "pairs")
        lists = pd.DataFrame({"query_id": names, "asked": rows["query_id"]}).drop_duplicates("query_id")
        texts = schema.read(asked.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
        lists = lists.assign(text=lists["asked"].map(texts))[["query_id", "text", "asked"]]
        schema.write(pa.Table.from_pandas(lists, preserve_index=False), staging.folder / "queries.parquet", "queries")
        return {"labelled": len(table), "wanted": wanted, "unlabelled": len(rows), "lists": len(lists)}

    return PAIRS.make(
        workspace,
        config={key: getattr(config, key) for key in keys} | candidates.own_setting(own),
        inputs={"data": data, "labelled": labelled, "asked": asked, "run": run},
        build=build,
    )


def with_ungraded(table: pa.Table, query_ids: Sequence[str], doc_ids: Sequence[str], source: str) -> pa.Table:
    """A table of pairs, extended by pairs without a grade in the split "unlabelled".

    Args:
        table: the pairs that stand first.
        query_ids, doc_ids: ids of the added pairs.
        source: value of the column `source` in the added pairs.
    """
    rows, first = len(query_ids), (pc.max(table.column("row_id")).as_py() if len(table) else -1) + 1
    added = pa.table(
        {
            "row_id": pa.array(np.arange(first, first + rows), pa.int64()),
            "query_id": pa.array(query_ids, pa.string()),
            "doc_id": pa.array(doc_ids, pa.string()),
            "grade": pa.array(np.full(rows, schema.NO_GRADE), pa.int32()),
            "split": pa.array([schema.UNLABELLED] * rows, pa.string()),
            "source": pa.array([source] * rows, pa.string()),
        }
    )
    return pa.concat_tables([table, added.cast(table.schema)])


def _lists(config: CandidatesConfig, results: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """The pairs that can be added: query_id, doc_id, list (its number within the query), in the order of drawing."""
    rows = results[results["rank"] <= config.unlabelled_depth]
    known = pd.MultiIndex.from_frame(given[["query_id", "doc_id"]])
    rows = rows[~pd.MultiIndex.from_frame(rows[["query_id", "doc_id"]]).isin(known)]
    names = (rows["query_id"] + "\x00" + rows["doc_id"]).tolist()
    rows = rows.assign(number=[splits.share(config.seed, name, "unlabelled") for name in names])
    rows = rows.sort_values(["query_id", "number"], kind="stable")
    hash_of = {name: splits.share(config.seed, name, "unlabelled query") for name in rows["query_id"].unique()}
    rows = rows.assign(list=rows.groupby("query_id").cumcount() // config.max_list, hash=rows["query_id"].map(hash_of))
    return rows.sort_values(["list", "hash", "query_id"], kind="stable")
