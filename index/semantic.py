"""Searches by meaning: a query's vector against the vectors of all documents, with Faiss on one thread.

One thread, because a second makes a single query slower, not faster; a service runs its queries side by side.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.ann import Selection, Vectors, one_thread, search_selected, similarities
from index.ann import load as load_ann
from index.hits import Hit, RunDepth, judged_queries, read_document_rows, read_ids, write_run
from pipeline import artifacts, progress
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, SchemaError
from pipeline.stage import Stage

KIND = "index"
RUN = Stage("run", version=1, inputs={"index": KIND, "data": "data"}, title="semantic run")
BATCH = 256
"""Queries embedded at once for a run."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexStats:
    """The fields of `index.json`, which describes the vectors beside it."""

    encoder_digest: str
    dimensions: int
    rows: int
    factory: str
    nprobe: int
    """Lists visited for a query; 0 for an exact index."""
    filters: tuple[tuple[int, int], ...] = ()
    """(rows, lists visited): a filter that selects at least so many rows is searched inside the index, which visits so
    many lists. In descending order of rows; empty without a contract, when all filters are exact."""
    documents: int = 0
    """Documents, with a vector or without; 0 where all have one."""


class SemanticIndex:
    """Searches an `index` artifact; one index serves all threads of a process."""

    def __init__(
        self, ann: Any, stats: IndexStats, doc_ids: list[str], rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        """
        Args:
            doc_ids: of the documents that have vectors, by the position of the vector.
            rows: their rows among all documents, ascending; None where every document has a vector.
        """
        self._ann = ann
        self.stats = stats
        self.doc_ids = doc_ids
        self._rows = rows

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> "SemanticIndex":
        """The index in an `index` artifact; with `verify` its content is checked against the manifest first.

        Raises:
            MissingError: no such folder.
            ArtifactError: a damaged file, by name, or files that do not belong together.
        """
        artifact = artifacts.load(path, KIND, verify=verify)
        stats = read_stats(artifact.file("index.json"))
        doc_ids = read_ids(artifact.file("rows.parquet"))
        ann = load_ann(artifact, len(doc_ids))
        if not (ann.ntotal == stats.rows == len(doc_ids) and ann.d == stats.dimensions):
            raise ArtifactError(
                f"{path}: vectors.faiss has {ann.ntotal} vectors of {ann.d} dimensions, index.json says "
                f"{stats.rows} of {stats.dimensions}, rows.parquet has {len(doc_ids)}; build the index again"
            )
        rows = read_document_rows(artifact.file("rows.parquet"))
        if (rows is None) != (not stats.documents) or (rows is not None and rows[-1] >= stats.documents):
            raise ArtifactError(
                f"{path}: rows.parquet and index.json do not agree on which of the documents have vectors; build the "
                "index again"
            )
        return cls(ann, stats, doc_ids, rows)

    @property
    def encoder_digest(self) -> str:
        """Digest of the encoder that made the vectors; only its query vectors may be searched."""
        return self.stats.encoder_digest

    def search(self, vector: npt.ArrayLike, k: int) -> list[Hit]:
        """Finds at most k documents, nearest first; of equally near ones the first row first.

        Args:
            vector: (dimensions,) of unit length, so that scores are cosines.

        Raises:
            ArtifactError: another width, or a value that is not finite.
        """
        return self.search_batch(np.asarray(vector, np.float32)[None], k)[0]

    def search_batch(self, vectors: npt.ArrayLike, k: int) -> list[list[Hit]]:
        """`search` of each of (queries, dimensions) vectors."""
        queries = self._checked(vectors)
        k = min(k, len(self.doc_ids))
        if k < 1 or not len(queries):
            return [[] for _ in queries]
        with one_thread():
            scores, rows = self._ann.search(queries, k)
        return [self._hits(*list_of_query) for list_of_query in zip(scores, rows, strict=True)]

    def search_among(self, vector: npt.ArrayLike, k: int, rows: npt.NDArray[np.int64]) -> list[Hit]:
        """`search` among these rows alone.

        Where few rows are allowed, each stored vector is compared: this finds all, in time that grows with them. Where
        many are, the index itself searches among them, from the number of rows on that its builder measured
        (`IndexStats.filters`). If its visited lists hold fewer than k of them, the exact comparison answers.

        Raises:
            ArtifactError: a vector of another width, or not finite.
            SchemaError: there is no such row.
        """
        query = self._checked(np.asarray(vector, np.float32)[None])[0]
        positions, _ = self._positions(self._checked_rows(rows))
        k = max(min(k, len(positions)), 0)
        nprobe = next((nprobe for least, nprobe in self.stats.filters if len(positions) >= least), None)
        if nprobe is not None and k:
            hits = self._hits(*search_selected(self._ann, query, k, Selection(len(self.doc_ids), positions, nprobe)))
            if len(hits) == k:
                return hits
        return self._hits(similarities(self._ann, query, positions), positions)[:k]

    def similarities(self, vector: npt.ArrayLike, rows: Sequence[int] | npt.NDArray[np.int64]) -> Vectors:
        """Cosine of the query with each of these documents, (rows,), by their stored vectors; 0 where there is none.

        Raises:
            ArtifactError: a vector of another width, or not finite.
            SchemaError: there is no such row.
        """
        query = self._checked(np.asarray(vector, np.float32)[None])[0]
        positions, has = self._positions(self._checked_rows(rows))
        cosines = np.zeros(len(has), np.float32)
        cosines[has] = similarities(self._ann, query, positions)
        return cosines

    def _positions(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The positions of the vectors of those rows that have one, and which rows these are, (rows,)."""
        if self._rows is None:
            return rows, np.ones(len(rows), bool)
        positions = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        has = self._rows[positions] == rows
        return positions[has], has

    def _checked_rows(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows, np.int64)
        total = self.stats.documents or len(self.doc_ids)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= total):
            raise SchemaError(f"rows {wanted.min()} to {wanted.max()} are asked for; there are 0 to {total - 1}")
        return wanted

    def neighbours(self, row: int, k: int) -> list[Hit]:
        """The k documents, or fewer, that are nearest to the one in this row by their stored vectors, without itself.

        Raises:
            SchemaError: there is no such row.
        """
        if not 0 <= row < len(self.doc_ids):
            raise SchemaError(f"row {row} is asked for; there are 0 to {len(self.doc_ids) - 1}")
        with one_thread():
            vector = self._ann.reconstruct_batch(np.array([row], np.int64))[0]
        return [hit for hit in self.search(vector, k + 1) if hit.row != row][:k]

    def _checked(self, vectors: npt.ArrayLike) -> Vectors:
        queries: Vectors = np.ascontiguousarray(vectors, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.stats.dimensions:
            raise ArtifactError(
                f"query vectors of shape {queries.shape[1:]}, documents have {self.stats.dimensions} dimensions; "
                "use the encoder and the index of one release"
            )
        if not np.isfinite(queries).all():
            raise ArtifactError("a query vector has a value that is not finite; look at the encoder that made it")
        return queries

    def _hits(self, scores: Vectors, rows: npt.NDArray[np.int64]) -> list[Hit]:
        real = rows >= 0  # Faiss fills up with -1 where the visited lists hold fewer than k.
        order = np.lexsort((rows[real], -scores[real]))
        pairs = zip(rows[real][order].tolist(), scores[real][order].tolist(), strict=True)
        if self._rows is None:
            return [Hit(position, self.doc_ids[position], score) for position, score in pairs]
        return [Hit(int(self._rows[position]), self.doc_ids[position], score) for position, score in pairs]


def join(lexical: Sequence[Hit], semantic: Sequence[Hit]) -> list[int]:
    """Rows of both lists, each once: the first of each, then the second of each, …; the lexical one goes first."""
    pairs = zip_longest(lexical, semantic)
    return list(dict.fromkeys(hit.row for pair in pairs for hit in pair if hit is not None))


@RUN
def run(
    workspace: Path,
    *,
    index: Artifact,
    data: Artifact,
    embed_queries: Callable[[Sequence[str]], np.ndarray],
    depth: int,
    splits: Sequence[str],
    system: str = "encoder",
) -> Artifact:
    """The `run` artifact: the nearest `depth` documents of each query that has a judgment in `splits`.

    A query that is a document itself does not find that one.

    Args:
        embed_queries: (queries, dimensions) vectors of query texts, by the encoder whose digest the index has.
    """
    listed = RunDepth.of(data, depth)
    settings = {"system": system, "splits": sorted(splits), **listed.settings}

    def build(staging: Staging) -> Mapping[str, Any]:
        semantic = SemanticIndex.load(index.path, verify=False)
        queries = list(judged_queries(data, splits).items())

        def lists() -> Iterator[tuple[str, list[Hit]]]:
            with progress.bar("Searching vectors", len(queries), "queries") as advance:
                for start in range(0, len(queries), BATCH):
                    query_ids, texts = zip(*queries[start : start + BATCH], strict=True)
                    hits = semantic.search_batch(embed_queries(texts), listed.searched)
                    yield from zip(query_ids, hits, strict=True)
                    advance(len(texts))

        return write_run(staging.folder / "run.parquet", lists(), system, listed)

    inputs = {"index": index, "data": data}
    return RUN.make(workspace, config=settings, inputs=inputs, build=build)


def read_stats(path: Path) -> IndexStats:
    """The content of an `index.json`.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["filters"] = tuple((int(least), int(nprobe)) for least, nprobe in fields.get("filters", ()))
        return IndexStats(**fields)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); build the index again") from error
