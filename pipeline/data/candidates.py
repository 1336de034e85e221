"""The (query, document) pairs that models are trained and judged on: judgments joined with the results of searches.

Models learn from `pairs` and are judged on `pool`. Both are tables whose `row_id` names a pair in every later stage:
teacher scores, states and features are joined by it.

Of several judgments of one pair a person's grade is preferred to thumbs of the search page, these to clicks, clicks to
a model's and that to any other source's; of one source the highest grade counts. The split valid, which chooses
checkpoints, precisions and the fusion, has no grades made from clicks or thumbs unless it has no others. A query that
is a document itself (`schema.own_documents`) is never joined with that document.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig
from pipeline.data import splits
from pipeline.errors import SchemaError
from pipeline.schema import PREFERENCE, WEAK
from pipeline.stage import Stage
from pipeline.text import counted

PAIRS = Stage("pairs", version=1, inputs={"data": "data", "run": "run", "encoder_run": "run"}, section="candidates")
POOL = Stage("pool", version=1, inputs={"data": "data", "runs": "run"}, section="candidates")
MINED_PAIRS = Stage(
    "mined",
    version=1,
    inputs={"data": "data", "pairs": "pairs", "runs": "run"},
    section="encoder.mining",
    title="mined pairs",
)

JUDGING_SPLITS = ("valid", "test")
"""The splits whose queries choose the fusion and judge the release."""
MINED = "mined"
"""Value of the column `source` in the negatives that the encoder learns from after its first round."""

log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("query_id", pa.string()),
        ("doc_id", pa.string()),
        ("grade", pa.int32()),
        ("split", pa.string()),
        ("source", pa.string()),
    ]
)


@PAIRS
def pairs(
    workspace: Path, config: CandidatesConfig, *, data: Artifact, run: Artifact, encoder_run: Artifact | None = None
) -> Artifact:
    """The `pairs` artifact: pairs.parquet of the splits train and valid.

    train   judged pairs of all queries, or of `train_queries` of them, then up to `negatives` unjudged ones as
            grade 0 (source "negative"). They are drawn from the query's first `negatives_depth` documents in the run,
            without the first `skip_top` unjudged ones. The draw depends only on the seed, the query and these
            documents. Up to `encoder_negatives` others follow, drawn from the encoder's run in the same way.
    valid   by `config.pool` the judged pairs, or the first `retrieve` of each run, unjudged ones as grade 0
            (source "unjudged").

    Rows are ordered by split, by query as in queries.parquet, then judged ones as in judgments.parquet before
    negatives by rank. The metrics count queries that no run has.

    Args:
        run: the run of BM25.
        encoder_run: None leaves `encoder_negatives` out, as for the encoder's own pairs.

    Raises:
        SchemaError: no run has any of the queries that need candidates, or one has documents unknown to the data.
    """
    keys = ("pool", "negatives", "negatives_depth", "skip_top", "retrieve", "seed")
    own = schema.own_documents(data.path)

    def build(staging: Staging) -> Mapping[str, Any]:
        judged = _judged(data, own)
        ranked = _ranked(list(runs.values()), data, own)
        train = _chosen(judged[judged["split"] == "train"], config)
        rows = [train]
        metrics = {}
        for number, count in enumerate((config.negatives, config.encoder_negatives)[: len(runs)]):
            if count:
                metrics = _missing(train["query"], ranked, "train")
                rows.append(_negatives(config, count, pd.concat(rows), ranked[ranked["run"] == number]))
        valid, more = _pooled(config, judged, ranked, ("valid",))
        table = _ordered([*rows, valid])
        schema.write(table, staging.folder / "pairs.parquet", "pairs")
        return {**_counts(table), **metrics, **more}

    runs = {"run": run} | ({"encoder run": encoder_run} if encoder_run else {})
    inputs = {"data": data, **runs}
    settings = {key: getattr(config, key) for key in keys} | own_setting(own) | people_judge(data)
    if encoder_run:
        settings["encoder_negatives"] = config.encoder_negatives
    if config.train_queries:
        settings["train_queries"] = config.train_queries
    return PAIRS.make(workspace, config=settings, inputs=inputs, build=build)


@POOL
def pool(
    workspace: Path,
    config: CandidatesConfig,
    *,
    data: Artifact,
    runs: Sequence[Artifact],
    splits: Sequence[str] = JUDGING_SPLITS,
) -> Artifact:
    """The `pool` artifact: pairs.parquet of the splits valid and test, or of those given, which every system ranks.

    With `config.pool` judged it has the judged pairs; with retrieved the union of the first `retrieve` of each run,
    unjudged documents as grade 0 (source "unjudged"), ordered by the first run that has them and their rank there.

    Raises:
        SchemaError: no query has candidates, or a run has documents unknown to the data.
    """
    own = schema.own_documents(data.path)

    def build(staging: Staging) -> Mapping[str, Any]:
        rows, metrics = _pooled(config, _judged(data, own), _ranked(runs, data, own), splits)
        table = _ordered([rows])
        schema.write(table, staging.folder / "pairs.parquet", "pairs")
        return {**_counts(table), **metrics}

    inputs = {"data": data, **{f"run {number}": run for number, run in enumerate(runs)}}
    settings: dict[str, Any] = {"pool": config.pool, "retrieve": config.retrieve}
    settings |= own_setting(own) | people_judge(data)
    if tuple(splits) != JUDGING_SPLITS:
        settings["splits"] = list(splits)
    return POOL.make(workspace, config=settings, inputs=inputs, build=build)


@MINED_PAIRS
def mined(workspace: Path, depth: int, *, data: Artifact, pairs: Artifact, runs: Sequence[Artifact]) -> Artifact:
    """The `mined` artifact: pairs.parquet of documents found for training queries that no pair has yet.

    They have grade 0, source "mined" and split train; `training.negatives` leaves out those that may be relevant by
    the teacher's score. The first `depth` documents of each run are taken, a query's in the order of their best rank,
    of equal ranks the earlier run's first.

    Raises:
        SchemaError: a run has documents unknown to the data, or none for any training query.
    """
    own = schema.own_documents(data.path)

    def build(staging: Staging) -> Mapping[str, Any]:
        judged = _judged(data, own)
        known = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
        joined = pd.concat([known, judged[judged["query_id"].isin(known["query_id"])]])
        joined = joined.assign(query=joined["query_id"].map(_query_rows(data)))
        train = joined[joined["split"] == "train"]
        ranked = _ranked(runs, data, own)
        metrics = _missing(train["query"], ranked, "train")
        rows = ranked[ranked["query"].isin(train["query"]) & (ranked["rank"] <= depth)]
        rows = _unjudged(rows, joined).sort_values(["query", "rank", "run"], kind="stable")
        rows = rows.drop_duplicates(["query", "doc_id"])
        rows = rows.assign(grade=0, split="train", source=MINED, order=np.arange(len(rows)))
        table = _ordered([rows])
        schema.write(table, staging.folder / "pairs.parquet", "pairs")
        return {**_counts(table), **metrics}

    inputs = {"data": data, "pairs": pairs, **{f"run {number}": run for number, run in enumerate(runs)}}
    return MINED_PAIRS.make(workspace, config={"depth": depth} | own_setting(own), inputs=inputs, build=build)


def people_judge(data: Artifact) -> dict[str, str]:
    """A setting for fingerprints of data that has grades from clicks or thumbs beside others; empty for any other data.

    From such data the split valid leaves out the grades from clicks and thumbs.
    """
    kinds = set(data.metrics.get("kinds", ()))
    return {"valid": "without clicks"} if kinds & set(WEAK) and kinds - set(WEAK) else {}


def own_setting(own: frozenset[str]) -> dict[str, int]:
    """The number of queries that are documents, for a fingerprint; empty without any, so old fingerprints stay."""
    return {"own_documents": len(own)} if own else {}


def without_itself(rows: pd.DataFrame, own: frozenset[str]) -> pd.DataFrame:
    """The rows (query_id, doc_id) that do not join a query with the document that it is; see `schema.own_documents`."""
    return rows[~(rows["query_id"].isin(own) & (rows["query_id"] == rows["doc_id"]))] if own else rows


def _chosen(train: pd.DataFrame, config: CandidatesConfig) -> pd.DataFrame:
    """The judged pairs of at most `config.train_queries` training queries, those of lowest hash."""
    names = train["query_id"].unique().tolist()
    if not config.train_queries or len(names) <= config.train_queries:
        return train
    names.sort(key=lambda name: splits.share(config.seed, name, "train query"))
    return train[train["query_id"].isin(names[: config.train_queries])]


def _judged(data: Artifact, own: frozenset[str]) -> pd.DataFrame:
    """One row for each judged pair: query (row in queries.parquet), query_id, doc_id, grade, split, source, order."""
    rows: pd.DataFrame = schema.read(data.file("judgments.parquet"), "judgments").to_pandas()
    # A judged document that the collection lacks counts in the ideal list alone: nothing can rank it.
    documents = schema.read(data.file("documents.parquet"), "documents").column("doc_id").to_pandas()
    rows = without_itself(rows[rows["doc_id"].isin(documents)], own)
    rows = _chosen_by_people(rows)
    trust = rows["source"].map({name: rank for rank, name in enumerate(PREFERENCE)}).fillna(len(PREFERENCE))
    rows = rows.assign(order=np.arange(len(rows)), trust=trust)
    best = rows.sort_values(["trust", "grade", "order"], ascending=[True, False, True], kind="stable")
    best = best.drop_duplicates(["query_id", "doc_id"]).sort_values("order")
    return best.assign(query=best["query_id"].map(_query_rows(data)))[
        ["query", "query_id", "doc_id", "grade", "split", "source", "order"]
    ]


def _chosen_by_people(rows: pd.DataFrame) -> pd.DataFrame:
    """The judgments without those of the split valid that were made from clicks or thumbs, unless it has no others."""
    valid, clicked = rows["split"] == "valid", rows["source"].isin(WEAK)
    if not (valid & clicked).any():
        return rows
    if (valid & ~clicked).any():
        log.info(
            "judgments of the split valid that were made from clicks or thumbs and choose nothing: %d",
            (valid & clicked).sum(),
        )
        return rows[~(valid & clicked)]
    log.warning(
        "no person judged a query of the split valid: grades made from clicks or thumbs choose checkpoints and fusion"
    )
    return rows


def _query_rows(data: Artifact) -> pd.Series:
    """The row of each query_id in queries.parquet."""
    ids = schema.read(data.file("queries.parquet"), "queries").column("query_id").to_pylist()
    return pd.Series(np.arange(len(ids)), index=ids)


def _ranked(runs: Sequence[Artifact], data: Artifact, own: frozenset[str]) -> pd.DataFrame:
    """Rows of runs: query, query_id, doc_id, rank, run (its number), best run and rank first within a query."""
    documents = schema.read(data.file("documents.parquet"), "documents").column("doc_id").to_pandas()
    no_rows = pd.DataFrame({"query_id": pd.Series(dtype=str), "doc_id": pd.Series(dtype=str), "rank": [], "run": []})
    frames = [no_rows.astype({"rank": np.int64, "run": np.int64})]  # The judged pool needs no run at all.
    rows: pd.DataFrame
    for number, run in enumerate(runs):
        rows = schema.read(run.file("run.parquet"), "run").to_pandas()[["query_id", "doc_id", "rank"]]
        strange = rows[~rows["doc_id"].isin(documents)]
        if len(strange):
            raise SchemaError(
                f"{run.path}: document {strange['doc_id'].iloc[0]!r} is not among those of {data.path} "
                f"({counted(len(strange), 'row')} of the run); search the same documents again"
            )
        frames.append(without_itself(rows, own).assign(run=number))
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.assign(query=rows["query_id"].map(_query_rows(data))).dropna(subset="query")
    return rows.astype({"query": np.int64}).sort_values(["query", "run", "rank"], kind="stable")


def _negatives(config: CandidatesConfig, count: int, train: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """Draws at most `count` documents of one run for each training query, without those that it has already.

    Each document gets a number that depends on the seed, the query and itself alone; the smallest are drawn. So a
    new query or document changes no other draw than those it takes part in.
    """
    rows = ranked[ranked["query"].isin(train["query"])]
    rows = rows[rows.groupby("query").cumcount() < config.negatives_depth]
    rows = _unjudged(rows, train)
    rows = rows[rows.groupby("query").cumcount() >= config.skip_top]
    names = (rows["query_id"] + "\x00" + rows["doc_id"]).tolist()
    rows = rows.assign(number=[splits.share(config.seed, name, "negative") for name in names])
    drawn = rows.sort_values(["query", "number"], kind="stable").groupby("query").head(count)
    after = train["order"].max() + 1  # After those that the query has.
    return drawn.assign(grade=0, split="train", source="negative", order=after + drawn["rank"])


def _pooled(
    config: CandidatesConfig, judged: pd.DataFrame, ranked: pd.DataFrame, names: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs that are ranked for the queries of these splits, and the number of queries that no run has."""
    judged = judged[judged["split"].isin(names)]
    if config.pool == "judged":
        return judged, {}
    rows = ranked[ranked["query"].isin(judged["query"])]
    rows = rows[rows.groupby(["query", "run"]).cumcount() < config.retrieve]
    rows = rows.drop_duplicates(["query", "doc_id"])  # The first run that has it.
    rows = rows.assign(order=np.arange(len(rows)))
    graded = rows.merge(judged[["query", "doc_id", "grade", "source"]], how="left", on=["query", "doc_id"])
    split_of = judged.drop_duplicates("query").set_index("query")["split"]
    graded = graded.assign(
        grade=graded["grade"].fillna(0).astype(np.int64),
        source=graded["source"].fillna("unjudged"),
        split=graded["query"].map(split_of),
    )
    metrics: dict[str, int] = {}
    for name in names:
        metrics |= _missing(judged.loc[judged["split"] == name, "query"], ranked, name)
    return graded, metrics


def _unjudged(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    pairs_of = ["query", "doc_id"]
    known = pd.MultiIndex.from_frame(judged[pairs_of])
    return rows[~pd.MultiIndex.from_frame(rows[pairs_of]).isin(known)]


def _missing(queries: pd.Series, ranked: pd.DataFrame, split: str) -> dict[str, int]:
    """The number of a split's queries for which no run has a document.

    Raises:
        SchemaError: none of them has one.
    """
    wanted = set(queries)
    missing = len(wanted - set(ranked["query"]))
    if wanted and missing == len(wanted):
        raise SchemaError(
            f"candidates: the run has no document for any of the {counted(len(wanted), 'query')} of split {split}; "
            "search that split too, or set candidates.pool to judged and candidates.negatives to 0"
        )
    return {f"{split}_queries_without_candidates": missing}


def _ordered(frames: Sequence[pd.DataFrame]) -> pa.Table:
    """The table of pairs: by split, query and order, numbered from 0."""
    rows = pd.concat(frames, ignore_index=True)
    number = rows["split"].map({name: number for number, name in enumerate(schema.SPLITS)})
    rows = rows.assign(split_number=number).sort_values(["split_number", "query", "order"], kind="stable")
    rows = rows.assign(row_id=np.arange(len(rows)))
    return pa.Table.from_pandas(rows[_SCHEMA.names], schema=_SCHEMA, preserve_index=False)


def _counts(table: pa.Table) -> dict[str, Any]:
    """Counts of each split: queries, pairs, relevant pairs, pairs of each source, queries whose grades are all one."""
    counts = {}
    for split, rows in table.to_pandas().groupby("split"):
        grades = rows.groupby("query_id")["grade"]
        counts[str(split)] = {
            "queries": int(rows["query_id"].nunique()),
            "pairs": len(rows),
            "relevant": int((rows["grade"] > 0).sum()),
            "sources": {str(name): int(number) for name, number in sorted(rows["source"].value_counts().items())},
            "queries_of_one_grade": int((grades.min() == grades.max()).sum()),
        }
    return counts
