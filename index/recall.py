"""Recall of an approximate index against exact search."""

import logging
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.semantic import IndexStats
from index.vector_matrix import BLOCK, Matrix

log = logging.getLogger(__name__)

RECALL_QUERIES = 200
"""Stored vectors that an approximate index is searched with."""
EXACT_QUERIES = 20
"""Stored vectors that an exact index is searched with: it misses any only where it was written wrongly."""
ENOUGH_RECALL = 0.95
"""Recall@10 below which the log warns of an approximate index."""

Vectors = npt.NDArray[np.float32]


def recalls(ann: Any, matrix: Matrix, stats: IndexStats, seed: int) -> dict[str, Any]:
    """Recall at 10 and 100, and for inverted lists at 10 by the number of lists visited."""
    if stats.rows < 2:
        return {}
    count = EXACT_QUERIES if isinstance(ann, faiss.IndexFlat) else RECALL_QUERIES
    rows = np.sort(np.random.default_rng(seed).permutation(stats.rows)[:count])
    nearest = _nearest(matrix, rows, min(101, stats.rows))
    shares = {f"recall_at_{k}": recall(ann, matrix, rows, nearest, k) for k in (10, 100)}
    if not stats.nprobe:
        return shares
    curve = {}
    for nprobe in (1, 4, 16, 64, 256):
        if nprobe <= ann.nlist:
            ann.nprobe = nprobe
            curve[str(nprobe)] = recall(ann, matrix, rows, nearest, 10)
    if shares["recall_at_10"] < ENOUGH_RECALL:
        log.warning(
            "index: a search finds %.3f of the nearest 10; raise index.nprobe from %d (recall by nprobe: %s)",
            shares["recall_at_10"],
            stats.nprobe,
            curve,
        )
    return {**shares, "recall_at_10_by_nprobe": curve}


def _nearest(matrix: Matrix, rows: npt.NDArray[np.int64], k: int) -> Vectors:
    """The k largest cosines of these rows with all rows, themselves included, (rows, k), largest first."""
    queries = np.ascontiguousarray(matrix[rows], np.float32)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(matrix), BLOCK):
        block = np.ascontiguousarray(matrix[start : start + BLOCK], np.float32)
        cosines, _ = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best = -np.sort(-np.concatenate([best, cosines], axis=1), axis=1)[:, :k]
    return best


def recall(ann: Any, matrix: Matrix, rows: npt.NDArray[np.int64], nearest: Vectors, k: int) -> float:
    """Share of the true nearest k of these rows, themselves left out, that a search finds.

    A found document counts when it is as near as the true k-th, so that equal texts, which share a vector, do
    not count against the index.
    """
    k = min(k, nearest.shape[1] - 1)
    queries = np.ascontiguousarray(matrix[rows], np.float32)
    _, answers = ann.search(queries, k + 1)
    shares = []
    for row, query, answer, bound in zip(rows, queries, answers, nearest[:, k], strict=True):
        neighbours = answer[(answer >= 0) & (answer != row)][:k]
        shares.append(np.count_nonzero(matrix[neighbours] @ query >= bound - 1e-6) / k)
    return round(float(np.mean(shares)), 4)
