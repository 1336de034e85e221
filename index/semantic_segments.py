"""The semantic index of a re-index: the segments of an earlier one, and a new one for what they do not hold.

Inverted lists stay as they were learned; the new segment is exact while it is small. Recall is measured on the whole as
for an index that is built anew. The recipe may bound recall from below and bytes from above (the contract); where
segments miss a bound, the index is built anew. Below `index.flat_below` documents an exact index is written in
milliseconds, so it has no segments.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index import contract, segments, vector_matrix
from index.ann import FILE, SegmentedVectors, is_inverted, read_ann
from index.digests import Digests
from index.held_out import HeldOutQueries, Vectors
from index.recall import recalls
from index.semantic import IndexStats, read_stats
from index.vector_matrix import Matrix
from index.vector_texts import text_digests
from pipeline import disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import IndexConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentedIndex:
    """A semantic index of segments, written into a staging folder."""

    stats: IndexStats
    metrics: Mapping[str, Any]
    queries: Vectors | None
    """Held-out queries on which recall is measured against its bound; None where the recipe sets none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorTable:
    """The vectors to index, and the digest of each one's text."""

    matrix: Matrix
    """(vectors, dimensions)"""
    digests: Digests

    @classmethod
    def of(cls, vectors: Artifact) -> "VectorTable":
        """Joins the matrix of a `vectors` artifact with the digests in its rows.parquet."""
        return cls(matrix=vector_matrix.read(vectors), digests=text_digests(vectors.file("rows.parquet")))


def build(
    staging: Staging,
    table: VectorTable,
    config: IndexConfig,
    previous: Artifact,
    write_segment: Callable[[Any, Path], None],
    queries: HeldOutQueries | None,
) -> SegmentedIndex | None:
    """Writes the segments of an index of these vectors over those of an earlier index with the same settings.

    Args:
        write_segment: builds an index of a matrix and writes it into a file.
        queries: held-out queries on which recall is measured against its bound.

    Returns:
        None where an index is to be built anew: it would be exact, all of it is to be written, or recall or
        bytes miss their bounds. The folder is empty then.
    """
    if len(table.matrix) < config.flat_below:
        return None
    plan = segments.plan(previous, [FILE], table.digests)
    parts = [read_ann(use.path / FILE) for use in plan.kept]
    if plan.is_fresh or not all(map(_takes_tombstones, parts)):
        return None
    plan.write(staging)
    if len(plan.written):
        write_segment(np.ascontiguousarray(table.matrix[plan.written], np.float32), staging.folder / plan.folder / FILE)
        parts.append(read_ann(staging.folder / plan.folder / FILE))
    ann = SegmentedVectors(parts, plan.layout)
    stats = replace(read_stats(previous.file("index.json")), rows=len(table.matrix), documents=0)
    judged: tuple[Mapping[str, Any], Vectors | None] | None = None
    if not config.recall:
        judged = recalls(ann, table.matrix, replace(stats, nprobe=0), config.seed), None
    elif _within(config, staging, len(table.matrix)):
        judged = contract.measured(ann, table.matrix, config, queries)
    if judged is None:
        _empty(staging)
        return None
    figures = {name: previous.metrics[name] for name in ("choice", "nprobe") if name in previous.metrics}
    return SegmentedIndex(stats=stats, metrics={**figures, **judged[0], **plan.figures()}, queries=judged[1])


def _takes_tombstones(ann: Any) -> bool:
    """Whether a search in a Faiss index can leave documents out; a fast scan cannot."""
    return is_inverted(ann) or isinstance(ann, faiss.IndexFlat)


def _within(config: IndexConfig, staging: Staging, rows: int) -> bool:
    """Whether the segments keep the recipe's bound of bytes a document."""
    return not config.bytes_per_document or segments.size(staging.folder, FILE) <= config.bytes_per_document * rows


def _empty(staging: Staging) -> None:
    staging.linked.clear()
    for path in staging.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    disk.fsync(staging.folder)
