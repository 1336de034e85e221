"""Measures of each judged query, and of slices of queries."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import recipe, schema
from pipeline.artifacts import Artifact
from pipeline.config import EvaluationConfig
from pipeline.errors import SchemaError
from pipeline.evaluation import metrics

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

_CLICKS_ALONE = (
    "{path}: {where} were made from clicks or thumbs, which reports leave out; judge some queries by people, or "
    "set evaluation.clicks = true (--clicks of a report) to count them"
)


def measures(config: EvaluationConfig) -> tuple[str, ...]:
    """Names of the report's measures, the headline first."""
    k = config.cutoff
    linear, exponential = f"ndcg@{k}", f"ndcg_exp@{k}"
    gains = (linear, exponential) if config.gain == "linear" else (exponential, linear)
    return (*gains, "mrr", "map", f"recall@{k}", "recall", "pairwise", f"judged@{k}")


def judged(data: Artifact, split: str | None, *, clicks: bool = False) -> tuple["pa.Table", set[str]]:
    """Judgments of one split (of all without one), and the ids of the queries that only other splits judge.

    Of several judgments of one pair the one from the most trusted source counts (`schema.PREFERENCE`), of these the
    highest grade. A query that is a document itself (`schema.own_documents`) is not judged with that document, and
    `ranking` leaves the document out of its list.

    Args:
        clicks: takes judgments made from clicks or thumbs too; a query that has no others is left out without it.

    Raises:
        SchemaError: the split has no judgments, or none but those made from clicks or thumbs.
    """
    import pyarrow.compute as pc

    path = data.file("judgments.parquet")
    all_judgments = without_itself(schema.read(path, "judgments"), schema.own_documents(data.path))
    table = _one_each(all_judgments if clicks else _without_clicks(all_judgments, path))
    queries = set(all_judgments.column("query_id").unique().to_pylist())
    if split is None:
        return table, queries - set(table.column("query_id").unique().to_pylist())
    if "split" not in table.column_names:
        raise SchemaError(f"{path}: has no column 'split'; judge all queries, or split them first")
    here = pc.fill_null(pc.equal(table.column("split"), split), False)
    chosen = table.filter(here)
    if not chosen.num_rows and pc.any(pc.equal(all_judgments.column("split"), split)).as_py():
        raise SchemaError(_CLICKS_ALONE.format(path=path, where=f"all judgments of split {split}"))
    if not chosen.num_rows:
        raise SchemaError(f"{path}: no judgment is in split '{split}'; choose another, or a larger {split} share")
    return chosen, queries - set(chosen.column("query_id").unique().to_pylist())


def people_judged(data: Artifact, split: str) -> bool:
    """Whether a judgment of a split was made otherwise than from clicks or thumbs."""
    import pyarrow.compute as pc

    table = schema.read(data.file("judgments.parquet"), "judgments")
    here = pc.and_(pc.fill_null(pc.equal(table.column("split"), split), False), pc.invert(_is_weak(table)))
    return bool(pc.any(here).as_py())


def _is_weak(judgments: "pa.Table") -> "pa.ChunkedArray":
    """(rows,) bool, whether each judgment is of a source of `schema.WEAK`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = judgments.column("source")
    return pc.is_in(kinds, value_set=pa.array(schema.WEAK, kinds.type))


def _without_clicks(judgments: "pa.Table", path: Path) -> "pa.Table":
    import pyarrow.compute as pc

    if "source" not in judgments.column_names:
        return judgments
    by_people = judgments.filter(pc.invert(_is_weak(judgments)))
    if judgments.num_rows and not by_people.num_rows:
        raise SchemaError(_CLICKS_ALONE.format(path=path, where="all judgments"))
    if by_people.num_rows < judgments.num_rows:
        log.info("judgments from clicks or thumbs that do not count: %d", judgments.num_rows - by_people.num_rows)
    return by_people


def _one_each(judgments: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    from pipeline.schema import PREFERENCE

    rows = judgments.to_pandas()
    if not rows.duplicated(["query_id", "doc_id"]).any():
        return judgments
    source = rows["source"] if "source" in rows.columns else "human"
    trust = rows.assign(source=source)["source"].map({name: rank for rank, name in enumerate(PREFERENCE)})
    order = rows.assign(trust=trust.fillna(len(PREFERENCE))).sort_values(
        ["trust", "grade"], ascending=[True, False], kind="stable"
    )
    kept = order.drop_duplicates(["query_id", "doc_id"]).sort_index()
    return judgments.take(pa.array(kept.index.to_numpy()))


def ranking(run: "pa.Table", data: Artifact, other_queries: set[str]) -> "pa.Table":
    """The rows of a run that are judged: without the queries of `other_queries`, and without a query's own document.

    Args:
        data: has the queries and documents.
        other_queries: ids of queries that only other splits judge; see `judged`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if other_queries:
        ids = run.column("query_id")
        run = run.filter(pc.invert(pc.is_in(ids, pa.array(sorted(other_queries), ids.type))))
    return without_itself(run, schema.own_documents(data.path))


def without_itself(rows: "pa.Table", own: frozenset[str]) -> "pa.Table":
    """The rows (query_id, doc_id) that do not join a query of `own` with the document that it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not own:
        return rows
    queries, documents = (rows.column(name).cast(pa.large_string()) for name in ("query_id", "doc_id"))
    itself = pc.and_(pc.equal(queries, documents), pc.is_in(queries, pa.array(sorted(own), pa.large_string())))
    return rows.filter(pc.invert(itself))


def settings(config: EvaluationConfig, data: Artifact) -> dict[str, Any]:
    """The part of a report's fingerprint that this file decides.

    `clicks` and the number of queries that are documents stand there only where they change something, so that reports
    made before they were known keep their fingerprints.
    """
    values = {key: value for key, value in recipe.to_dict(config).items() if key != "clicks" or value}
    own = schema.own_documents(data.path)
    return values | ({"own_documents": len(own)} if own else {})


def per_query(
    data: Artifact, ranked: Mapping[str, "pa.Table"], judgments: "pa.Table", config: EvaluationConfig
) -> "pd.DataFrame":
    """A row for each system and judged query: query_id, slice, system, the measures, missed, unanswerable."""
    import pandas as pd

    slices = _slices(data)
    parts = []
    for name, run in ranked.items():
        try:
            result = metrics.evaluate(run, judgments, measures(config), relevant_from=config.relevant_from)
        except SchemaError as error:
            raise SchemaError(f"system '{name}': {error}") from error
        parts.append(
            pd.DataFrame(
                {
                    "query_id": result.queries,
                    "slice": [slices.get(query, "") for query in result.queries],
                    "system": name,
                    **result.values,
                    "missed": result.missed,
                    "unanswerable": result.unanswerable,
                }
            )
        )
        if result.missed.any():
            log.warning(
                "%s ranks nothing for %d of the judged queries, %d", name, result.missed.sum(), len(result.queries)
            )
    return pd.concat(parts, ignore_index=True)


def _slices(data: Artifact) -> dict[str, str]:
    table = schema.read(data.file("queries.parquet"), "queries")
    if "slice" not in table.column_names:
        return {}
    names = (name or "" for name in table.column("slice").to_pylist())
    return dict(zip(table.column("query_id").to_pylist(), names, strict=True))
