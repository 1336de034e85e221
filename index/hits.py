"""Hits of a search, the id map that each index carries, and the run tables that searches leave behind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, ConfigError


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found."""

    row: int
    """Its index in the data artifact's documents, the same for every index made from them."""
    doc_id: str
    score: float
    """Higher is better; BM25 above 0, or a cosine."""


def write_ids(path: Path, doc_ids: Sequence[str]) -> None:
    """Writes the id map of an index: row → doc_id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"row": pa.array(range(len(doc_ids)), pa.int64()), "doc_id": pa.array(doc_ids, pa.string())})
    pq.write_table(table, path, compression="zstd")


def read_ids(path: Path) -> list[str]:
    """The doc_id of each row.

    Raises:
        ArtifactError: not a readable id map, or its rows are not 0, 1, 2, …
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    doc_ids: list[str] = []
    try:
        # Batches to plain lists: read_table and to_numpy would load pandas, half a second in the service.
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["row", "doc_id"]):
                start = len(doc_ids)
                doc_ids += batch.column("doc_id").to_pylist()
                if batch.column("row").to_pylist() != list(range(start, len(doc_ids))):
                    raise ArtifactError(f"{path}: its rows are not 0, 1, 2, … in order; build the index again")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtifactError(f"{path}: not a readable id map ({error}); build the index again") from error
    return doc_ids


def judged_queries(data: Artifact, splits: Sequence[str]) -> dict[str, str]:
    """query_id → text of the queries that have a judgment in one of these splits, in the order of the data.

    Args:
        data: a data artifact; without splits any artifact with queries.parquet.
        splits: names of splits; empty takes all queries.

    Raises:
        ConfigError: an unknown split.
    """
    unknown = set(splits) - set(schema.SPLITS)
    if unknown:
        raise ConfigError(f"run: no split called {', '.join(sorted(unknown))}; there are {', '.join(schema.SPLITS)}")
    queries = schema.read(data.file("queries.parquet"), "queries").select(["query_id", "text"]).to_pydict()
    texts = dict(zip(queries["query_id"], queries["text"], strict=True))
    if not splits:
        return texts
    judgments = schema.read(data.file("judgments.parquet"), "judgments").select(["query_id", "split"]).to_pydict()
    pairs = zip(judgments["query_id"], judgments["split"], strict=True)
    judged = {query_id for query_id, split in pairs if split in splits}
    return {query_id: text for query_id, text in texts.items() if query_id in judged}


@dataclass(frozen=True, slots=True)
class RunDepth:
    """The number of documents that a run lists for each query.

    In some collections queries are documents too, under the same id (`schema.own_documents`). There a query's own
    document is left out of its list.
    """

    depth: int
    own: frozenset[str]
    """Ids of the queries that are documents too."""

    @classmethod
    def of(cls, data: Artifact, depth: int) -> "RunDepth":
        """The depth of a run over an artifact with queries, which knows of the queries that are documents too."""
        return cls(depth, schema.own_documents(data.path))

    @property
    def settings(self) -> dict[str, int]:
        """The part of a run's fingerprint: the depth, and the number of queries that are documents too if any are."""
        return {"depth": self.depth} | ({"own_documents": len(self.own)} if self.own else {})

    @property
    def searched(self) -> int:
        """The number of documents to search for, so that `depth` are left."""
        return self.depth + bool(self.own)

    def kept(self, query_id: str, hits: Sequence[Hit]) -> list[Hit]:
        """The first `depth` hits, without the query's own document."""
        own = query_id in self.own
        return [hit for hit in hits if not (own and hit.doc_id == query_id)][: self.depth]


def write_run(
    path: Path, hits_of_queries: Iterable[tuple[str, Sequence[Hit]]], system: str, depth: RunDepth
) -> Mapping[str, Any]:
    """Writes the hits of each query as a run table, rank from 1, and returns the counts to report.

    Args:
        hits_of_queries: (query_id, hits) of each query, the first `depth.searched` of its search.
    """
    import pyarrow as pa

    query_ids: list[str] = []
    doc_ids: list[str] = []
    ranks: list[int] = []
    scores: list[float] = []
    queries = empty = 0
    for query_id, searched in hits_of_queries:
        hits = depth.kept(query_id, searched)
        queries += 1
        empty += not hits
        query_ids += [query_id] * len(hits)
        doc_ids += [hit.doc_id for hit in hits]
        ranks += range(1, len(hits) + 1)
        scores += [hit.score for hit in hits]
    table = pa.table(
        {
            "query_id": pa.array(query_ids, pa.string()),
            "doc_id": pa.array(doc_ids, pa.string()),
            "rank": pa.array(ranks, pa.int32()),
            "score": pa.array(scores, pa.float32()),
            "system": pa.array([system] * len(ranks), pa.string()),
        }
    )
    schema.write(table, path, "run")
    return {"queries": queries, "queries_without_hits": empty, "hits": len(ranks)}
