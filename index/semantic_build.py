"""Builds the semantic index from vectors: exact below `index.flat_below` documents, inverted lists above.

With `index.recall` the type and its parameters are chosen by a measured contract instead; see `index.contract`.

Inverted lists hold fp16 residuals. At 64 dimensions and a million documents that was, of the kinds tried,
the one that loses nothing that shows (recall@10 0.998) and halves both bytes (137 a document with its id)
and time; HNSW was larger, slower to build and cannot delete.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index import contract, segments, semantic_segments
from index.ann import FILE, read_ann
from index.held_out import FILE as HELD_OUT
from index.held_out import HeldOutQueries
from index.index_types import add, lists
from index.recall import recalls
from index.semantic import KIND, IndexStats, read_stats
from index.semantic_segments import SegmentedIndex, VectorTable
from index.vector_matrix import Matrix
from pipeline import disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError
from pipeline.stage import Stage

STAGE = Stage(KIND, version=1, inputs={"vectors": "vectors", "previous": KIND}, section="index", title="semantic index")
POINTS_PER_LIST = 64
"""Vectors that a list's centre is learned from; more found no more on 200,000 clustered vectors, 32 found less."""


COUNTS = ("with_vectors", "passages", "in_passages")
"""Metrics of a `vectors` artifact that the `index` artifact made from it repeats, where it has them."""

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path,
    config: IndexConfig,
    *,
    vectors: Artifact,
    queries: HeldOutQueries | None = None,
    previous: Artifact | None = None,
) -> Artifact:
    """The `index` artifact of these vectors: vectors.faiss, rows.parquet, index.json; under a contract queries.npy too.

    The metrics give bytes a document and recall: the share of the true nearest 10 and 100 that a search finds,
    asked with document vectors, each without itself. Under a contract: see `contract.build`.

    Args:
        queries: the held-out queries of the contract, which are part of the fingerprint; not read without one.
        previous: an earlier artifact, whose segments are shared where their documents are unchanged; see
            `semantic_segments`. It is not part of the fingerprint, as it changes how long the work takes, which files
            hold the vectors, and of an approximate index which documents it misses.

    Raises:
        ArtifactError: the vectors cannot be read, or the index could not be written.
        ConfigError: no type of index keeps the contract.
    """
    settings = _settings(config, vectors)
    inputs: dict[str, Artifact | str] = {"vectors": vectors}
    if queries and contract.settings(config):
        inputs["queries"] = queries.key

    def build(staging: Staging) -> Mapping[str, Any]:
        digest = str(vectors.manifest.config["encoder_digest"])
        shared = previous if previous is not None and _shareable(previous, settings, digest) else None
        table = VectorTable.of(vectors)
        documents = int(vectors.metrics["documents"])
        with_vectors = int(vectors.metrics.get("with_vectors", documents))
        limits = _by_vector(config, len(table.matrix) / max(with_vectors, 1))
        began = time.monotonic()

        def write_segment(matrix: Any, path: Path) -> None:
            write_ann(_build(matrix, config, digest)[0], path)

        index = semantic_segments.build(staging, table, limits, shared, write_segment, queries) if shared else None
        if index is None:
            index = _anew(staging, table, limits, digest, queries)
        if queries is not None and index.queries is not None:
            np.save(staging.folder / HELD_OUT, index.queries)
        metrics = {"build_seconds": round(time.monotonic() - began, 2), **index.metrics}
        stats = index.stats
        counts = {name: vectors.metrics[name] for name in COUNTS if name in vectors.metrics}
        if counts:
            stats = replace(stats, documents=documents, passages=vectors.manifest.config.get("passages"))
            metrics = {**metrics, **counts}
        shutil.copyfile(vectors.file("rows.parquet"), staging.folder / "rows.parquet")
        (staging.folder / "index.json").write_text(_json(stats), encoding="utf-8")
        return {
            "documents": documents,
            "data": vectors.manifest.inputs["data"],
            "dimensions": stats.dimensions,
            "factory": stats.factory,
            "bytes_per_document": round(segments.size(staging.folder, FILE) / max(with_vectors, 1), 1),
            **metrics,
        }

    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def _settings(config: IndexConfig, vectors: Artifact) -> dict[str, float | str]:
    """The values that are part of the fingerprint."""
    settings: dict[str, float | str] = {"flat_below": config.flat_below, "seed": config.seed}
    settings |= contract.settings(config) or {"nprobe": config.nprobe}
    field = vectors.manifest.config.get("field")
    return settings | {"field": field} if field else settings


def _by_vector(config: IndexConfig, passages: float) -> IndexConfig:
    """The config with its limit of bytes a document turned into one of bytes a vector.

    Args:
        passages: vectors of a document, on average over the documents that have any.
    """
    if not config.bytes_per_document or passages == 1:
        return config
    limit = config.bytes_per_document / passages
    log.info(
        "index: %g bytes a document are %.1f a vector, as a document has %.1f passages on average",
        *(config.bytes_per_document, limit, passages),
    )
    return replace(config, bytes_per_document=limit)


def _shareable(previous: Artifact, settings: Mapping[str, float | str], encoder_digest: str) -> bool:
    """Whether an earlier index holds vectors of this encoder and was built by these settings."""
    same_form = previous.manifest.version == STAGE.version and dict(previous.manifest.config) == dict(settings)
    return same_form and read_stats(previous.file("index.json")).encoder_digest == encoder_digest


def _anew(
    staging: Staging, table: VectorTable, config: IndexConfig, encoder_digest: str, queries: HeldOutQueries | None
) -> SegmentedIndex:
    """Builds an index of one segment of all vectors and writes it."""
    path = staging.folder / FILE
    began = time.monotonic()
    if contract.settings(config) and len(table.matrix):
        index = contract.build(table.matrix, config, queries)
        write_ann(index.ann, path)
        stats, filters = contract.with_filters(index.stats(encoder_digest), path, table.matrix, index, config)
        built = SegmentedIndex(stats=stats, metrics={**index.metrics, **filters}, queries=index.queries)
    else:
        ann, stats = _build(table.matrix, config, encoder_digest)
        write_ann(ann, path)
        seconds = round(time.monotonic() - began, 2)
        metrics = {"build_seconds": seconds, **recalls(read_ann(path), table.matrix, stats, config.seed)}
        built = SegmentedIndex(stats=stats, metrics=metrics, queries=None)
    if built.stats.nprobe:  # An exact index is so quick to write that no segments are made of it.
        np.save(staging.folder / segments.DIGESTS, table.digests)
    return built


def _json(stats: IndexStats) -> str:
    fields = asdict(stats)
    if not stats.filters:
        del fields["filters"]  # An index without a contract and a quality filter is written as it always was.
    if not stats.documents:
        del fields["documents"]
    if stats.passages is None:
        del fields["passages"]
    return json.dumps(fields, indent=1) + "\n"


def _build(matrix: Matrix, config: IndexConfig, encoder_digest: str) -> tuple[Any, IndexStats]:
    rows, dimensions = matrix.shape
    exact = rows < max(config.flat_below, 1)
    factory = "Flat" if exact else f"IVF{lists(rows)},SQfp16"
    ann: Any = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    if not exact:
        chosen = np.random.default_rng(config.seed).permutation(rows)[: POINTS_PER_LIST * ann.nlist]
        ann.cp.seed = config.seed
        ann.train(np.ascontiguousarray(matrix[np.sort(chosen)], np.float32))
        ann.nprobe = min(config.nprobe, ann.nlist)
        log.info("index: %d lists learned from %d vectors", ann.nlist, len(chosen))
    add(ann, matrix)
    nprobe = 0 if exact else int(ann.nprobe)
    return ann, IndexStats(
        encoder_digest=encoder_digest, dimensions=dimensions, rows=rows, factory=factory, nprobe=nprobe
    )


def write_ann(ann: Any, path: Path) -> None:
    """Writes a Faiss index, then reads the file back and compares it with what was written.

    Faiss's own writing to a path reports no failure at closing, so a full disk may pass unnoticed. Here each
    byte goes through Python's file, which raises, and the sum over what went in must be that of what came to lie.

    Raises:
        OSError: the disk is full.
        ArtifactError: the file is not what was written.
    """
    digest, failures = hashlib.sha256(), list[OSError]()
    size = 0
    with path.open("wb") as file:

        def take(data: bytes) -> None:
            nonlocal size
            try:
                file.write(data)
            except OSError as error:
                failures.append(error)
                raise
            digest.update(data)
            size += len(data)

        try:
            loosely: Any = faiss  # Its type stubs leave the writer out.
            faiss.write_index(ann, loosely.PyCallbackIOWriter(take))
        except Exception as error:
            raise (failures[0] if failures else error) from error
    disk.fsync(path)
    if path.stat().st_size != size or disk.sha256(path) != digest.hexdigest():
        raise ArtifactError(f"{path}: is not what was written ({size} bytes); look at the disk and run again")
