"""The data of all later stages: every source of a recipe in one set of tables, checked, merged and split.

    sources ─► usable rows ─► splits ─► one grade for each pair ─► limited number of queries ─► artifact `data`

Documents keep the order of their sources, so a row number means the same document in every stage.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import recipe, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import DataConfig
from pipeline.data import sources, splits, validation
from pipeline.data.formats import qrels_file, tables
from pipeline.data.formats.text_files import STRING
from pipeline.data.sources import Source
from pipeline.data.validation import Finding, Purpose, ValidatedTables
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import SPLITS
from pipeline.stage import Stage
from pipeline.text import counted, key_values

STAGE = Stage("data", version=1, section="data")

KINDS = ("documents", "queries", "judgments")
"""The tables of a source."""

log = logging.getLogger(__name__)


@STAGE
def make(workspace: Path, config: DataConfig, purpose: Purpose = "training") -> Artifact:
    """The artifact `data`: documents.parquet, queries.parquet (`slice` is the source's name unless it has its own) and
    judgments.parquet (`split` and `source` filled).

    With several sources, ids are prefixed by the source's name and a colon. Sources of one name are one collection: the
    documents may come from a database and the judgments from a folder. Where files lie does not enter the fingerprint.

    Args:
        purpose: decides which rows cannot be used, see `validation.sift`; judging when all queries are for tests.

    Raises:
        ConfigError: no sources, or fewer documents wanted than are judged.
        MissingError: a source that is not there.
        SchemaError: rows that cannot be used, grades in conflict, a query in two splits; names them.
    """
    if not config.sources:
        raise ConfigError("data.sources is empty; name a folder of judged data in the recipe, under [[data.sources]]")
    named = [sources.find(source, Path(config.root)) for source in config.sources]
    if purpose == "training" and any(item.format == qrels_file.NAME for item in named):
        raise ConfigError(
            "data.sources: a source of format qrels has no texts of queries, so nothing can learn from it; name a "
            "folder that holds queries and documents beside the qrels"
        )
    plain = recipe.to_dict(config) | {
        "root": "",
        "sources": [
            {"name": item.name, "grades": list(source.grades), **item.settings}
            for item, source in zip(named, config.sources, strict=True)
        ],
    }
    if purpose == "judging" and config.splits != "test":
        plain["purpose"] = purpose
    inputs = {f"{number}:{item.name}": item.digest for number, item in enumerate(named)}

    def build(staging: Staging) -> Mapping[str, Any]:
        rules: Purpose = "judging" if config.splits == "test" else purpose
        return _build(staging.folder, config, [item.read() for item in named], rules)

    return STAGE.make(workspace, config=plain, inputs=inputs, build=build)


def _build(folder: Path, config: DataConfig, read: Sequence[Source], purpose: Purpose) -> Mapping[str, Any]:
    collections = by_name(read)
    parts = [_usable(source, config, purpose) for source in collections]
    named = [
        _named(source, sifted, alone=len(collections) == 1) for source, sifted in zip(collections, parts, strict=True)
    ]
    documents, queries, judgments = (join(parts_of) for parts_of in zip(*named, strict=True))
    if not judgments.num_rows:
        raise SchemaError(
            f"{', '.join(source.name for source in collections)}: there are no judgments to learn from or to judge by; "
            "name a source with graded pairs or clicks"
        )

    judged = texts_of(queries, judgments)
    judgments = _put(judgments, "split", splits.assign(judged, judgments["label"].to_pylist(), config))
    judgments, merged = merge(judgments.drop_columns(["label"]), config)
    queries, judgments, left_out = _limit_queries(queries, judgments, config)
    documents, others_left_out = _limit_documents(documents, judgments, config)

    for kind, table in (("documents", documents), ("queries", queries), ("judgments", judgments)):
        schema.write(table, folder / f"{kind}.parquet", kind)
    metrics = _metrics(documents, queries, judgments) | {
        "sources": {source.name: source.format for source in collections},
        "dropped": _add_up([sifted.counts() for sifted in parts]),
        "merged": {"repeated texts": sum(sifted.repeated for sifted in parts), **merged},
        "left_out": {"queries": left_out, "documents": others_left_out},
    }
    if any(source.clicks for source in collections):
        metrics["clicks"] = {source.name: list(source.clicks) for source in collections if source.clicks}
    _say_merged(merged, config)
    log.info("data: %s", key_values({name: metrics[name] for name in ("documents", "queries", "judgments", "dropped")}))
    return metrics


def _usable(source: Source, config: DataConfig, purpose: Purpose) -> ValidatedTables:
    """The source without the rows that cannot be used.

    Raises:
        SchemaError: there are such rows or grades in conflict, and the recipe drops or merges none; or a query is in
            more than one published split.
    """
    sifted = validation.sift(source, purpose)
    shown = source.shown or source.name
    if config.faulty_rows == "error":
        advice = f"{source.advice}; or {validation.MEND}" if source.advice else validation.MEND
        refused = sifted.findings if purpose == "training" else _but_unjudged(sifted.findings, shown)
        validation.refuse(refused, shown, advice)
    if config.conflicts == "error":
        conflicts = validation.conflicts(source, sifted.findings)
        advice = 'mend them; a recipe takes one grade of each pair by data.conflicts = "max" or "mean"'
        validation.refuse(conflicts, shown, advice)
    if config.splits == "source":
        splits.guard(texts_of(sifted.queries, sifted.judgments), published(sifted.judgments), source.name)
    return sifted


def _but_unjudged(findings: Sequence[Finding], shown: str) -> list[Finding]:
    """The findings but those of rows without a grade: nobody judged these pairs, and a report does without them."""
    unjudged = [finding for finding in findings if finding.fault.reason == tables.EMPTY_GRADE]
    if unjudged:
        log.warning("%s: left out: %s", shown, validation.summary(unjudged))
    return [finding for finding in findings if finding.fault.reason != tables.EMPTY_GRADE]


def merge(judgments: pa.Table, config: DataConfig) -> tuple[pa.Table, dict[str, int]]:
    """One row for each pair, kind of source and field, where it first stood, and counts of the rows left out."""
    keys = validation.keys(judgments)
    again = keys.duplicated().to_numpy()
    if not again.any():
        return judgments, {"judgments": 0, "conflicts": 0}
    conflicts = validation.conflicting(judgments)
    group = keys.groupby(list(keys.columns), sort=False, dropna=False).ngroup()
    grades = judgments["grade"].to_pandas().groupby(group)
    # Halves are rounded up, to the better of two neighbouring grades.
    merged = grades.transform("max") if config.conflicts == "max" else np.floor(grades.transform("mean") + 0.5)
    graded = _put(judgments, "grade", pa.array(merged.astype("int64").to_numpy()))
    return graded.filter(pa.array(~again)), {"judgments": int(again.sum()), "conflicts": len(conflicts)}


def _say_merged(merged: Mapping[str, int], config: DataConfig) -> None:
    """Logs how many judgments of pairs that are judged several times are merged, and why."""
    if equal := merged["judgments"] - merged["conflicts"]:
        log.info("data: judgments merged with an equal one of their pair: %s", f"{equal:,}")
    if merged["conflicts"]:
        count, rule = f"{merged['conflicts']:,}", config.conflicts
        log.info('data: judgments of another grade merged by data.conflicts = "%s": %s', rule, count)


def texts_of(queries: pa.Table, judgments: pa.Table) -> list[str]:
    """The query of each judgment, (rows,)."""
    texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    return [texts[query] for query in judgments["query_id"].to_pylist()]


def published(judgments: pa.Table) -> list[str | None]:
    """The published split of each judgment, (rows,); None where there is none."""
    if "split" not in judgments.column_names:
        return [None] * judgments.num_rows
    names: list[str | None] = judgments["split"].to_pylist()
    return names


def by_name(read: Sequence[Source]) -> list[Source]:
    """The sources with those of one name joined, in the order of the first of each name."""
    groups: dict[str, list[Source]] = {}
    for source in read:
        groups.setdefault(source.name, []).append(source)
    return [group[0] if len(group) == 1 else _as_one(group) for group in groups.values()]


def _as_one(group: Sequence[Source]) -> Source:
    offsets: Counter[str] = Counter()
    faults = []
    for source in group:
        for fault in source.faults:
            faults.append(replace(fault, row=(fault.row or 0) + offsets[fault.table]))
        for kind in KINDS:
            offsets[kind] += getattr(source, kind).num_rows
    return Source(
        group[0].name,
        join([source.documents for source in group]),
        join([source.queries for source in group]),
        join([source.judgments for source in group]),
        "",
        "+".join(source.format for source in group),
        tuple(faults),
        tuple(log for source in group for log in source.clicks),
        "; ".join(source.advice for source in group if source.advice),
        {kind: _joined_locations(group, kind) for kind in KINDS},
        " + ".join(source.shown for source in group),
    )


def _joined_locations(group: Sequence[Source], kind: str) -> schema.NameRows:
    """Names for the rows of a joined table: the source that each comes from, and its location there."""
    ends = np.cumsum([getattr(source, kind).num_rows for source in group])

    def name(rows: Sequence[int]) -> list[str]:
        numbers = np.searchsorted(ends, rows, side="right")
        names = np.empty(len(rows), object)
        for number in np.unique(numbers):
            source, own = group[number], numbers == number
            before = ends[number] - getattr(source, kind).num_rows
            inside = (np.asarray(rows)[own] - before).tolist()
            shown = source.shown.rpartition("/")[2] or source.name
            names[own] = [f"{shown}, {location}" for location in source.locations.get(kind, schema.row_names)(inside)]
        return list(names)

    return name


def _named(source: Source, sifted: ValidatedTables, *, alone: bool) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The tables of a source with prefixed ids, slice and kind of source filled, and a `label` from its splits."""
    documents, queries, judgments = sifted.documents, sifted.queries, sifted.judgments
    if not alone:
        documents = prefixed(documents, source.name, "doc_id")
        queries = prefixed(queries, source.name, "query_id")
        judgments = prefixed(judgments, source.name, "query_id", "doc_id")
    own = queries["slice"] if "slice" in queries.column_names else pa.nulls(queries.num_rows, STRING)
    queries = _put(queries, "slice", pc.fill_null(own, source.name))
    kept = ["query_id", "doc_id", "grade"]
    if "field" in judgments.column_names:
        kept.append("field")
    kinds = judgments["source"] if "source" in judgments.column_names else pa.nulls(judgments.num_rows, STRING)
    labels = splits.labels(published(judgments))
    judgments = _put(judgments.select(kept), "source", pc.fill_null(kinds, "human"))
    return documents, queries, _put(judgments, "label", labels)


def prefixed(table: pa.Table, name: str, *columns: str) -> pa.Table:
    """The table with the source's name and a colon before the ids of these columns."""
    for column in columns:
        table = _put(table, column, tables.joined(":", name, table[column]))
    return table


def _put(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with this column set, of texts if it is a list."""
    column = pa.array(values, STRING) if isinstance(values, list) else values
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def join(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables below one another; columns that one lacks are null there.

    Raises:
        SchemaError: a column has types that do not fit together.
    """
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise SchemaError(
            f"sources: a column has types that do not fit together ({error}); give it another name in one of them"
        ) from error


def _limit_queries(queries: pa.Table, judgments: pa.Table, config: DataConfig) -> tuple[pa.Table, pa.Table, int]:
    """Limits the judged queries of each split; queries without judgments stay, as texts to pre-train on."""
    limits = {"train": config.train_queries, "valid": config.valid_queries, "test": config.test_queries}
    judged = pd.DataFrame(
        {"query_id": judgments["query_id"].to_pandas(), "split": judgments["split"].to_pandas()}
    ).drop_duplicates("query_id")
    texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    lost: set[str] = set()
    for split, limit in limits.items():
        ids = judged.loc[judged["split"] == split, "query_id"].tolist()
        lost |= set(ids) - splits.sample([texts[name] for name in ids], ids, limit, config.seed)
    if not lost:
        return queries, judgments, 0
    gone = pa.array(sorted(lost), STRING)
    return (
        queries.filter(pc.invert(pc.is_in(queries["query_id"], value_set=gone))),
        judgments.filter(pc.invert(pc.is_in(judgments["query_id"], value_set=gone))),
        len(lost),
    )


def _limit_documents(documents: pa.Table, judgments: pa.Table, config: DataConfig) -> tuple[pa.Table, int]:
    """The judged documents and, up to the limit, the unjudged ones of lowest hash."""
    limit = config.max_documents
    if not limit or documents.num_rows <= limit:
        return documents, 0
    judged = pc.is_in(documents["doc_id"], value_set=pc.unique(judgments["doc_id"]))
    room = limit - (pc.sum(judged).as_py() or 0)
    if room < 0:
        raise ConfigError(
            f"data.max_documents is {limit:,}, but {counted(limit - room, 'document', 'are')} judged; raise it, or "
            "take fewer queries by data.train_queries, data.valid_queries and data.test_queries, of which 0 takes all"
        )
    keep = judged.to_numpy(zero_copy_only=False).copy()
    ids = documents["doc_id"].to_pylist()
    unjudged = np.flatnonzero(~keep)
    keep[sorted(unjudged, key=lambda row: splits.share(config.seed, ids[row], "document"))[:room]] = True
    return documents.filter(pa.array(keep)), int((~keep).sum())


def _metrics(documents: pa.Table, queries: pa.Table, judgments: pa.Table) -> dict[str, Any]:
    empty = pc.and_(pc.equal(documents["title"], ""), pc.equal(documents["text"], ""))
    frame = judgments.select(["query_id", "grade", "split", "source"]).to_pandas()
    by_split = frame.groupby("split")["query_id"]
    return {
        "documents": documents.num_rows,
        "empty_documents": pc.sum(empty).as_py() or 0,
        "queries": queries.num_rows,
        "judged_queries": int(frame["query_id"].nunique()),
        "judgments": judgments.num_rows,
        "grades": {str(grade): int(count) for grade, count in sorted(Counter(frame["grade"]).items())},
        "max_grade": int(frame["grade"].max()),
        "kinds": {str(kind): int(count) for kind, count in sorted(Counter(frame["source"]).items())},
        "splits": {
            split: {
                "queries": int(by_split.nunique().get(split, 0)),
                "judgments": int(by_split.size().get(split, 0)),
            }
            for split in SPLITS
        },
    }


def _add_up(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for count in counts:
        for table, kinds in count.items():
            total.setdefault(table, Counter()).update(kinds)
    return {table: dict(kinds) for table, kinds in total.items()}
