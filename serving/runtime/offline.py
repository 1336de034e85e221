"""The engine at work without a service: vectors of all documents, and the features of a judged pool.

What is indexed and judged here is computed by the same code and in the same precision as what is served.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from index.document_store import DocumentStore
from index.fields import FieldIndexes
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex
from index.vector_texts import DocumentCutter
from pipeline import compute, progress, schema, text
from pipeline.artifacts import Artifact, Staging
from pipeline.compute import PinnedArtifact
from pipeline.errors import ArtifactError, SchemaError
from pipeline.passages import Passages
from pipeline.stage import Stage
from serving.errors import InferenceError
from serving.runtime.bundle import Bundle
from serving.runtime.engine import Engine, Role, Vectors

FEATURES = Stage(
    "features",
    version=1,
    inputs={
        "ranker": "bundle",
        "encoder": "bundle",
        "lexical": "lexical",
        "index": "index",
        "documents": "documents",
        "data": "data",
        "pool": ("pool", "pairs"),
        "fields": ("lexical", "index"),
    },
)

QUERIES_AT_ONCE = 4
"""Queries whose pairs are scored at the same time, so that the models' runners never wait for BM25 and tokens."""

log = logging.getLogger(__name__)


def digest(bundle: Artifact) -> str:
    """The digest of a bundle's model: what an index made with it carries."""
    return Bundle.of(bundle).digest


class BundleEmbedder:
    """A bundle's encoder as a function from texts to unit vectors (texts, dimensions).

    It loads the encoder when first called. It is sent to other machines as a path with digests, and loads it there.
    """

    def __init__(self, bundle: Artifact, role: Role = "document") -> None:
        self._pinned, self._role = PinnedArtifact.of(bundle), role
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_pinned": self._pinned, "_role": self._role, "_engine": None}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        try:
            return self.engine.embed(texts, self._role)
        except InferenceError as error:
            log.warning("%s; each text of its batch is embedded alone", error)
            return np.stack([self._alone(body) for body in texts])

    def _alone(self, body: str) -> Vectors:
        """The vector (dimensions,) of one text; NaN where the encoder gives none, by which the reader names it."""
        try:
            vector: Vectors = self.engine.embed([body], self._role)[0]
            return vector
        except InferenceError:
            return np.full(self.engine.dimensions, np.nan, np.float32)

    @property
    def engine(self) -> Engine:
        """The encoder, loaded when first asked for."""
        if self._engine is None:
            # The engine compares the content of the files that it reads.
            bundle = self._pinned.opened(verify=False)
            self._engine = Engine(bundle.path, threads=compute.worker_threads())
        return self._engine


def embedder(bundle: Artifact, role: Role = "document") -> BundleEmbedder:
    """A function from texts to unit vectors (texts, dimensions); it loads the encoder when first called."""
    return BundleEmbedder(bundle, role)


def cutter(embed: BundleEmbedder, passages: Passages | None) -> DocumentCutter | None:
    """The function that cuts long documents as an encoder reads them, with its rule; None where `passages` is None.

    It loads the encoder of `embed` when first called, and shares it.
    """
    if passages is None:
        return None

    def cut(documents: Sequence[str]) -> list[list[tuple[int, int]]]:
        return embed.engine.text_cutter(passages).cut(documents)

    return DocumentCutter(passages, cut)


@FEATURES
def features(
    workspace: Path,
    *,
    ranker: Artifact | None,
    encoder: Artifact,
    lexical: Artifact,
    index: Artifact,
    documents: Artifact,
    data: Artifact,
    pool: Artifact,
    fields: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """The `features` artifact: features.parquet (row_id, query_id, doc_id, split, bm25, encoder, ranker).

    The scores are raw, one row for each of the pool's, in its order: BM25, the cosine of the query's vector with the
    document's stored one, and the ranker's score. A column more for each field that is indexed apart, named by
    `pipeline.features.field_feature`.

    Args:
        ranker, encoder: bundles; without a ranker its scores are all 0.
        lexical, index, documents: indexes and store of the documents that the pool names, made with this encoder.
        data: the data set whose queries the pool names; further ones are in the pool's own queries.parquet, if any.
        fields: indexes of single fields, by their names as parts of a release.

    Raises:
        ArtifactError: the index was made with another encoder, or a part is damaged.
        SchemaError: the pool names a query or document that the others lack.
    """
    inputs: dict[str, Artifact | str] = {
        **({"ranker": ranker} if ranker else {}),
        "encoder": encoder,
        "lexical": lexical,
        "index": index,
        "documents": documents,
        "data": data,
        "pool": pool,
        **(fields or {}),
    }

    def build(staging: Staging) -> Mapping[str, Any]:
        table = schema.read(pool.file("pairs.parquet"), "pairs").to_pydict()
        queries = _queries(data) | _queries(pool)
        parts = _Parts(ranker, encoder, lexical, index, documents)
        parts.fields = FieldIndexes.load(fields or {})
        names = ("bm25", "encoder", "ranker", *parts.fields.features)
        columns = {name: np.zeros(len(table["row_id"]), np.float64) for name in names}
        numbers_of = _by_query(table["query_id"])
        unknown = next((query_id for query_id in numbers_of if query_id not in queries), None)
        if unknown is not None:
            raise SchemaError(f"{pool.path}: query '{unknown}' is not in {data.path}; make the pool again")
        documents_of = {query_id: [table["doc_id"][number] for number in own] for query_id, own in numbers_of.items()}
        with progress.bar("Scoring the pool", len(table["row_id"]), "pairs") as advance:
            for query_id, scored in _scores(parts, queries, documents_of):
                for name, values in zip(names, scored, strict=True):
                    columns[name][numbers_of[query_id]] = values
                advance(len(numbers_of[query_id]))
        _write(table, columns, staging.folder / "features.parquet")
        return {"rows": len(table["row_id"]), **parts.stats()}

    return FEATURES.make(workspace, config={}, inputs=inputs, build=build)


def _scores(
    parts: "_Parts", queries: Mapping[str, str], documents_of: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, tuple[Sequence[float], ...]]]:
    """The scores of each query's documents by each model and field, QUERIES_AT_ONCE queries at a time.

    Args:
        queries: query_id → text.
        documents_of: query_id → the ids of its documents.
    """
    with ThreadPoolExecutor(QUERIES_AT_ONCE) as workers:
        scores = workers.map(lambda query_id: parts.scores(queries[query_id], documents_of[query_id]), documents_of)
        yield from zip(documents_of, scores, strict=True)


class _Parts:
    """The loaded models, indexes and documents by which pairs are scored."""

    def __init__(
        self, ranker: Artifact | None, encoder: Artifact, lexical: Artifact, index: Artifact, documents: Artifact
    ) -> None:
        self.lexical = LexicalIndex.load(lexical.path, verify=False)
        self.semantic = SemanticIndex.load(index.path, verify=False)
        self.documents = DocumentStore.load(documents.path, verify=False)
        if self.semantic.encoder_digest != digest(encoder):
            raise ArtifactError(
                f"{index.path}: holds vectors of encoder {self.semantic.encoder_digest[:12]}, not of "
                f"{digest(encoder)[:12]} in {encoder.path}; index the documents again"
            )
        self.ranker = Engine(ranker.path) if ranker else None
        self.encoder = Engine(encoder.path)
        self.fields = FieldIndexes.load({})
        self.rows = {doc_id: row for row, doc_id in enumerate(self.lexical.doc_ids)}

    def scores(self, query: str, doc_ids: Sequence[str]) -> tuple[Sequence[float], ...]:
        """BM25, cosine and ranker score of each document, then those of single fields."""
        missing = [doc_id for doc_id in doc_ids if doc_id not in self.rows]
        if missing:
            raise SchemaError(f"documents {missing[:3]} of the pool are not indexed; index the documents again")
        rows = [self.rows[doc_id] for doc_id in doc_ids]
        bodies = [text.document_text(document.title, document.text) for document in self.documents.get_many(rows)]
        (vector,) = self.encoder.embed([query], "query")
        return (
            self.lexical.scores(query, rows).tolist(),
            self.semantic.similarities(vector, rows).tolist(),
            self.ranker.scores(query, bodies) if self.ranker else [0.0] * len(bodies),
            *self.fields.scores(query, vector, rows, self.fields.features).values(),
        )

    def stats(self) -> dict[str, Any]:
        ranker = {"ranker_precision": self.ranker.precision} if self.ranker else {}
        return {**ranker, "encoder_precision": self.encoder.precision}


def _queries(artifact: Artifact) -> dict[str, str]:
    """query_id → text of the queries in an artifact; empty where it has none."""
    if "queries.parquet" not in artifact.manifest.files:
        return {}
    texts = schema.read(artifact.file("queries.parquet"), "queries").to_pydict()
    return dict(zip(texts["query_id"], texts["text"], strict=True))


def _by_query(query_ids: Sequence[str]) -> dict[str, list[int]]:
    """Each query with the indices of its rows, in the order of the queries' first rows."""
    numbers_of: dict[str, list[int]] = {}
    for number, query_id in enumerate(query_ids):
        numbers_of.setdefault(query_id, []).append(number)
    return numbers_of


def _write(pool: Mapping[str, Sequence[Any]], columns: Mapping[str, np.ndarray], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = {name: pool[name] for name in ("row_id", "query_id", "doc_id", "split")}
    pq.write_table(pa.table({**kept, **columns}), path, compression="zstd")
