"""The queries where one system gains or loses most against another, with the first documents of each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.evaluation import significance

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN = 3
"""Number of documents shown of each system."""
WANTED = 2
"""Number of best judged documents whose ranks are shown."""
SNIPPET = 240
"""Maximum length of a document's text, in characters."""


def make(
    data: Artifact,
    runs: Mapping[str, "pa.Table"],
    judgments: "pa.Table",
    values: "pd.DataFrame",
    *,
    subject: str,
    baseline: str,
    count: int,
) -> dict[str, Any]:
    """The largest wins and losses as plain values.

    Args:
        data: the artifact that holds the texts.
        runs: query_id, doc_id, score of each system.
        judgments: query_id, doc_id, grade of the judged queries.
        values: index query_id, one column of the headline measure for each system.
        count: maximum number of wins, and of losses.

    Returns:
        {"wins": [...], "losses": [...]}, each item with the query and its text, both systems' values, their first
        documents, and the ranks of the best judged documents.
    """
    gap = (values[subject] - values[baseline]).sort_values(kind="stable")
    losses = [str(query) for query in gap.index[gap < -significance.TIE][:count]]
    wins = [str(query) for query in gap.index[gap > significance.TIE][::-1][:count]]
    chosen = [*wins, *losses]
    lists = {name: _top(runs[name], chosen) for name in (subject, baseline)}
    grades = _by_query(judgments, chosen, "grade")
    wanted = {query: sorted(own, key=lambda doc: (-own[doc], doc))[:WANTED] for query, own in grades.items()}
    shown = {doc for by_query in lists.values() for docs in by_query.values() for doc in docs[:SHOWN]}
    texts = _texts(data, shown | {doc for docs in wanted.values() for doc in docs})
    queries = _rows(data.file("queries.parquet"), "query_id", set(chosen), ["query_id", "text"])
    query_texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))

    def document(query: str, doc: str) -> dict[str, Any]:
        grade = grades.get(query, {}).get(doc)
        return {"doc_id": doc, **texts.get(doc, {"title": "", "text": ""}), "grade": grade}

    def rank(name: str, query: str, doc: str) -> int | None:
        docs = lists[name].get(query, [])
        return docs.index(doc) + 1 if doc in docs else None

    def example(query: str) -> dict[str, Any]:
        return {
            "query_id": query,
            "query": query_texts.get(query, ""),
            "difference": float(gap[query]),
            "values": {name: float(values[name][query]) for name in (subject, baseline)},
            "documents": {
                name: [document(query, doc) for doc in lists[name].get(query, [])[:SHOWN]]
                for name in (subject, baseline)
            },
            "wanted": [
                {**document(query, doc), "ranks": {name: rank(name, query, doc) for name in (subject, baseline)}}
                for doc in wanted.get(query, [])
                if grades[query][doc] > 0
            ],
        }

    return {"wins": [example(query) for query in wins], "losses": [example(query) for query in losses]}


def _rows(path: Any, column: str, keys: set[str], columns: list[str]) -> "pa.Table":
    """Rows of a Parquet table whose `column` is among the keys; the rest is not kept in memory."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    scanned = ds.dataset(path)
    kind = scanned.schema.field(column).type
    return scanned.to_table(
        columns=columns, filter=ds.field(column).isin(pa.array(sorted(keys), pa.string()).cast(kind))
    )


def _texts(data: Artifact, docs: set[str]) -> dict[str, dict[str, str]]:
    table = _rows(data.file("documents.parquet"), "doc_id", docs, ["doc_id", "title", "text"])
    return {
        row["doc_id"]: {"title": _short(row["title"] or ""), "text": _short(row["text"] or "")}
        for row in table.to_pylist()
    }


def _short(text: str) -> str:
    line = " ".join(text[: 4 * SNIPPET].split())
    return line if len(line) <= SNIPPET else line[:SNIPPET].rsplit(" ", 1)[0] + " …"


def _chosen(table: "pa.Table", queries: list[str]) -> "pd.DataFrame":
    frame: pd.DataFrame = table.to_pandas()
    return frame[frame["query_id"].isin(queries)]


def _top(run: "pa.Table", queries: list[str]) -> dict[str, list[str]]:
    """Document ids of each query, best first, in the order that the measures use."""
    frame = _chosen(run, queries)
    frame = frame.assign(score=frame["score"].astype("float32"))
    frame = frame.sort_values(["score", "doc_id"], ascending=False, kind="stable")
    return {str(query): docs.tolist() for query, docs in frame.groupby("query_id")["doc_id"]}


def _by_query(table: "pa.Table", queries: list[str], column: str) -> dict[str, dict[str, int]]:
    values: dict[str, dict[str, int]] = {}
    for row in _chosen(table, queries)[["query_id", "doc_id", column]].itertuples(index=False):
        values.setdefault(str(row[0]), {})[str(row[1])] = int(row[2])
    return values
