"""Searches by meaning: a query's vector against the vectors of all documents, with Faiss on one thread.

One thread, because a second makes a single query slower, not faster; a service runs its queries side by side.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.ann import Selection, Vectors, one_thread, search_selected, similarities
from index.ann import load as load_ann
from index.hits import Hit, RunDepth, judged_queries, read_ids, write_run
from index.vector_rows import FoundPassage, VectorRows
from pipeline import artifacts, progress, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, SchemaError
from pipeline.passages import Passages
from pipeline.stage import Stage

KIND = "index"
RUN = Stage("run", version=1, inputs={"index": KIND, "data": "data", "pairs": "pairs"}, title="semantic run")
BATCH = 256
"""Queries embedded at once for a run."""
Find = Callable[[int], tuple[Vectors, npt.NDArray[np.int64]]]
"""Number of vectors to search for → scores and positions, both (queries, vectors)."""


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
    """(rows, lists visited) in descending order of rows. A filter that selects at least `rows` is searched inside the
    index, which visits these lists; one below all entries is searched exactly. Empty where all filters are exact."""
    documents: int = 0
    """Documents, with a vector or without; 0 where each has one."""
    passages: Mapping[str, Any] | None = None
    """The rule by which long documents were cut (`Passages.to_dict`), so that each passage has a vector and the best
    one's cosine is the document's; None where each document has one vector at most."""


class SemanticIndex:
    """Searches an `index` artifact; one index serves all threads of a process."""

    def __init__(self, ann: Any, stats: IndexStats, doc_ids: list[str], owners: VectorRows | None = None) -> None:
        """
        Args:
            doc_ids: the document of each vector, by the position of the vector.
            owners: the rows of these documents; None where every document has one vector.
        """
        self._ann = ann
        self.stats = stats
        self.doc_ids = doc_ids
        self._owners = owners or VectorRows(len(doc_ids))
        self._searchable = self._owners.documents

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
        owners = VectorRows.read(artifact.file("rows.parquet"), len(doc_ids))
        if (
            (owners.rows is None) != (not stats.documents)
            or (owners.rows is not None and owners.rows.max(initial=0) >= stats.documents)
            or (owners.spans is None) != (stats.passages is None)
        ):
            raise ArtifactError(
                f"{path}: rows.parquet and index.json do not agree on which of the documents have vectors; build the "
                "index again"
            )
        return cls(ann, stats, doc_ids, owners)

    @property
    def encoder_digest(self) -> str:
        """Digest of the encoder that made the vectors; only its query vectors may be searched."""
        return self.stats.encoder_digest

    @property
    def passages(self) -> Passages | None:
        """The passages of long documents, each of which has a vector; None where documents are cut at their end."""
        return None if self.stats.passages is None else Passages.from_dict(self.stats.passages)

    @property
    def rows(self) -> npt.NDArray[np.int64] | None:
        """(vectors,) row of each vector's document among all documents; None where position and row are the same."""
        return self._owners.rows

    def stored(self, positions: npt.NDArray[np.int64]) -> Vectors:
        """(positions, dimensions) the vectors at these positions, as the index keeps them."""
        with one_thread():
            vectors: Vectors = self._ann.reconstruct_batch(positions)
        return vectors

    def search(self, vector: npt.ArrayLike, k: int) -> list[Hit]:
        """Finds at most k documents, nearest first; of equally near ones the first row first.

        The score of a document in passages is that of its nearest one (MaxP, see `pipeline.passages`).

        Args:
            vector: (dimensions,) of unit length, so that scores are cosines.

        Raises:
            ArtifactError: another width, or a value that is not finite.
        """
        return self.search_batch(np.asarray(vector, np.float32)[None], k)[0]

    def search_batch(self, vectors: npt.ArrayLike, k: int) -> list[list[Hit]]:
        """`search` of each of (queries, dimensions) vectors."""
        queries = self._checked(vectors)
        if min(k, self._searchable) < 1 or not len(queries):
            return [[] for _ in queries]

        def find(wanted: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
            with one_thread():
                scores, positions = self._ann.search(queries, wanted)
            return scores, positions

        return self._distinct(find, k, len(self.doc_ids))

    def search_among(self, vector: npt.ArrayLike, k: int, rows: npt.NDArray[np.int64]) -> list[Hit]:
        """`search` among these rows alone.

        Where few rows are allowed, each stored vector is compared: this finds all, in time that grows with them. Where
        many are, the index itself searches among them, from the number of vectors on that its builder measured
        (`IndexStats.filters`). If its visited lists hold fewer than k of them, the exact comparison answers.

        Raises:
            ArtifactError: a vector of another width, or not finite.
            SchemaError: there is no such row.
        """
        query = self._checked(np.asarray(vector, np.float32)[None])[0]
        positions, owners = self._owners.located(self._checked_rows(rows))
        # The vectors of one document stand beside each other.
        count = len(positions) if self._owners.spans is None else int(np.count_nonzero(np.diff(owners, prepend=-1)))
        k = max(min(k, count), 0)
        nprobe = next((nprobe for least, nprobe in self.stats.filters if len(positions) >= least), None)
        if nprobe is not None and k:
            selection = Selection(len(self.doc_ids), positions, nprobe)

            def find(wanted: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
                scores, held = search_selected(self._ann, query, wanted, selection)
                return scores[None], held[None]

            (hits,) = self._distinct(find, k, len(positions))
            if len(hits) == k:
                return hits
        return self._hits(similarities(self._ann, query, positions), positions)[:k]

    def similarities(self, vector: npt.ArrayLike, rows: Sequence[int] | npt.NDArray[np.int64]) -> Vectors:
        """Cosine of the query with each of these documents, (rows,), by their stored vectors; 0 where there is none.

        Raises:
            ArtifactError: a vector of another width, or not finite.
            SchemaError: there is no such row.
        """
        wanted = self._checked_rows(rows)
        _, owners, cosines = self._compared(vector, wanted)
        best = np.zeros(len(wanted), np.float32)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))  # The vectors of one document stand beside each other.
        if len(starts):
            best[owners[starts]] = np.maximum.reduceat(cosines, starts)
        return best

    def nearest_passages(
        self, vector: npt.ArrayLike, rows: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[int, FoundPassage]:
        """Row → passage nearest to the query, for each of these documents that has several passages.

        Of equally near passages it is the first.

        Raises:
            ArtifactError: a vector of another width, or not finite.
            SchemaError: there is no such row.
        """
        wanted = self._checked_rows(rows)
        if self._owners.spans is None:
            return {}
        positions, _, cosines = self._compared(vector, wanted)
        nearest = self._owners.best(positions, cosines)
        passages = {row: self._owners.passage(position) for row, position in nearest.items()}
        return {row: passage for row, passage in passages.items() if passage is not None}

    def neighbours(self, row: int, k: int) -> list[Hit]:
        """The k documents, or fewer, that are nearest to the one in this row by their stored vectors, without itself.

        The similarity of two documents in passages is that of their two nearest passages. A document without a vector
        has no neighbours.

        Raises:
            SchemaError: there is no such row.
        """
        positions, _ = self._owners.located(self._checked_rows([row]))
        if not len(positions):
            return []
        nearest: dict[int, Hit] = {}
        for hits in self.search_batch(self.stored(positions), k + 1):
            for hit in hits:
                if hit.row != row and (hit.row not in nearest or nearest[hit.row].score < hit.score):
                    nearest[hit.row] = hit
        return sorted(nearest.values(), key=lambda hit: (-hit.score, hit.row))[:k]

    def _compared(
        self, vector: npt.ArrayLike, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vectors]:
        """Positions of all vectors of these documents, the index into `rows` of each one's document, and cosines."""
        query = self._checked(np.asarray(vector, np.float32)[None])[0]
        positions, owners = self._owners.located(rows)
        return positions, owners, similarities(self._ann, query, positions)

    def _checked_rows(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows, np.int64)
        total = self.stats.documents or len(self.doc_ids)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= total):
            raise SchemaError(f"rows {wanted.min()} to {wanted.max()} are asked for; there are 0 to {total - 1}")
        return wanted

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

    def _distinct(self, find: Find, k: int, vectors: int) -> list[list[Hit]]:
        """Finds at most k documents for each query, by searches for more and more vectors until there are k.

        Args:
            find: number of vectors → the nearest ones of each query.
            vectors: the number of vectors that can be found.
        """
        k = min(k, self._searchable)
        wanted = k if self._owners.spans is None else min(2 * k, vectors)
        while True:
            scores, positions = find(wanted)
            lists = [self._hits(*of_query) for of_query in zip(scores, positions, strict=True)]
            short = [bool((row < 0).any()) for row in positions]  # The visited lists hold no more.
            if wanted >= vectors or all(len(hits) >= k or out for hits, out in zip(lists, short, strict=True)):
                return [hits[:k] for hits in lists]
            wanted = min(2 * wanted, vectors)

    def _hits(self, scores: Vectors, positions: npt.NDArray[np.int64]) -> list[Hit]:
        """The documents of these vectors, nearest first, each once."""
        real = positions >= 0  # Faiss fills up with -1 where the visited lists hold fewer than k.
        order = np.lexsort((positions[real], -scores[real]))
        pairs = zip(positions[real][order].tolist(), scores[real][order].tolist(), strict=True)
        rows = self._owners.rows
        if rows is None:
            return [Hit(position, self.doc_ids[position], score) for position, score in pairs]
        hits: dict[int, Hit] = {}
        for position, score in pairs:
            row = int(rows[position])
            if row not in hits:
                hits[row] = Hit(row, self.doc_ids[position], score)
        return list(hits.values())


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
    pairs: Artifact | None = None,
) -> Artifact:
    """The `run` artifact: the nearest `depth` documents of each query that has a judgment in `splits`.

    A query that is a document itself does not find that one.

    Args:
        embed_queries: (queries, dimensions) vectors of query texts, by the encoder whose digest the index has.
        pairs: only queries that have a pair here are searched for; all where None.
    """
    listed = RunDepth.of(data, depth)
    settings = {"system": system, "splits": sorted(splits), **listed.settings}

    def build(staging: Staging) -> Mapping[str, Any]:
        from index.vector_matrix import unit_vectors  # Not for the service.

        semantic = SemanticIndex.load(index.path, verify=False)
        queries = list(judged_queries(data, splits).items())
        if pairs is not None:
            paired = set(schema.read(pairs.file("pairs.parquet"), "pairs")["query_id"].to_pylist())
            queries = [(query_id, text) for query_id, text in queries if query_id in paired]

        def lists() -> Iterator[tuple[str, list[Hit]]]:
            with progress.bar("Searching vectors", len(queries), "queries") as advance:
                for start in range(0, len(queries), BATCH):
                    query_ids, texts = zip(*queries[start : start + BATCH], strict=True)
                    vectors = unit_vectors(embed_queries(texts), query_ids, "query")
                    hits = semantic.search_batch(vectors, listed.searched)
                    yield from zip(query_ids, hits, strict=True)
                    advance(len(texts))

        return write_run(staging.folder / "run.parquet", lists(), system, listed)

    inputs = {"index": index, "data": data} | ({"pairs": pairs} if pairs else {})
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
