"""Raises the visited lists of an index until its recall holds, and finds where a filter is searched inside the index.

Recall at k of a query is the share of answers that are as near as its true k-th neighbour. The mean over the queries is
bounded from below at 95 % by the lower of two bounds:

    Wilson      as though all answers were independent; it knows that a perfect score of few answers proves little
    bootstrap   over queries, whose answers are not independent
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.ann import Selection, one_thread, search_selected, similarities
from index.index_types import inverted_lists

K = 100
"""Recall is measured at this depth."""
RESAMPLES = 2000
"""Resamples of the bootstrap of the mean recall."""
TIMED = 100
"""Queries that are timed one by one."""
FILTER_QUERIES = 200
"""Most queries by which searches with filters are measured."""
FILTER_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Shares of the documents that the measured filters select, in descending order."""
FINE = 1.02
"""The chosen number of lists is at most this many times the smallest that would do: a search takes as much longer."""
BLOCK = 1 << 18
"""Documents compared at once with all queries."""
Z95 = 1.6449
"""95th percentile of the standard normal distribution, for a lower bound with 95 % confidence."""

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """Recall and latency at one number of visited lists."""

    nprobe: int
    recall: float
    lower: float
    """Lower 95 % bound of the recall."""
    p50_ms: float
    """Half of the queries take no longer, on one thread."""
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact answers that an index is judged by."""

    queries: Vectors
    """(queries, dimensions)"""
    bounds: Vectors
    """(queries,) cosine of the true k-th neighbour."""
    k: int

    @classmethod
    def of(cls, matrix: Any, queries: Vectors, k: int = K, rows: Rows | None = None) -> "Truth":
        """Exact search of (documents, dimensions) vectors, or of these rows of them, a block at a time."""
        count = len(matrix) if rows is None else len(rows)
        k = min(k, count)
        best = np.full((len(queries), k), -np.inf, np.float32)
        for start in range(0, count, BLOCK):
            chosen = slice(start, start + BLOCK) if rows is None else rows[start : start + BLOCK]
            block = np.ascontiguousarray(matrix[chosen], np.float32)
            scores, _ = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :k]
        return cls(queries, np.ascontiguousarray(best[:, -1]), k)

    def shares(self, matrix: Any, answers: Rows) -> npt.NDArray[np.float64]:
        """Recall of each query: (queries, k) rows, -1 for none, → (queries,).

        Equal texts share a vector: an answer counts when it is as near as the true k-th, whichever row it is.
        """
        near = np.einsum("qkd,qd->qk", matrix[np.maximum(answers, 0)].astype(np.float32), self.queries)
        right = (near >= self.bounds[:, None] - 1e-6) & (answers >= 0)
        return np.asarray(right.sum(axis=1) / self.k, np.float64)


def lower_bound(shares: npt.NDArray[np.float64], k: int, seed: int = 0) -> float:
    """The lower 95 % bound of the mean of recalls at k: see the head of this file."""
    count = len(shares)
    trials = count * k
    mean = float(shares.mean())
    spread = Z95 * math.sqrt(mean * (1 - mean) / trials + Z95**2 / (4 * trials**2))
    wilson = (mean + Z95**2 / (2 * trials) - spread) / (1 + Z95**2 / trials)
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    return float(min(wilson, np.quantile(shares[drawn].mean(axis=1), 0.05)))


def curve(ann: Any, matrix: Any, truth: Truth, target: float) -> tuple[CurvePoint | None, list[CurvePoint]]:
    """The point with the fewest visited lists whose lower bound is at least the target, and all measured points.

    None where the bound does not hold though every list is visited. The points ascend and reach to twice the
    chosen number. An exact index has one point, of 0 lists and recall 1.
    """
    inner = inverted_lists(ann)
    if inner is None:
        half, most = _latency(ann, truth)
        point = CurvePoint(nprobe=0, recall=1.0, lower=1.0, p50_ms=half, p95_ms=most)
        return point, [point]
    points: dict[int, CurvePoint] = {}
    failed, nprobe = 0, 1
    while _point(points, ann, inner, matrix, truth, nprobe).lower < target:
        failed = nprobe
        if nprobe == inner.nlist:
            return None, _ascending(points)
        nprobe = min(2 * nprobe, inner.nlist)
    while failed and nprobe / failed > FINE and nprobe - failed > 1:
        between = max(failed + 1, min(nprobe - 1, round(math.sqrt(failed * nprobe))))
        if _point(points, ann, inner, matrix, truth, between).lower < target:
            failed = between
        else:
            nprobe = between
    _point(points, ann, inner, matrix, truth, min(2 * nprobe, inner.nlist))
    inner.nprobe = nprobe
    return points[nprobe], _ascending(points)


def _ascending(points: dict[int, CurvePoint]) -> list[CurvePoint]:
    return [points[nprobe] for nprobe in sorted(points)]


def _point(points: dict[int, CurvePoint], ann: Any, inner: Any, matrix: Any, truth: Truth, nprobe: int) -> CurvePoint:
    """Measures one number of lists, once."""
    if nprobe not in points:
        inner.nprobe = nprobe
        points[nprobe] = replace(measured_point(ann, matrix, truth), nprobe=nprobe)
    return points[nprobe]


def measured_point(ann: Any, matrix: Any, truth: Truth) -> CurvePoint:
    """Recall and latency of an index as it is set; the point names no number of lists."""
    _, answers = ann.search(truth.queries, truth.k)
    shares = truth.shares(matrix, answers)
    half, most = _latency(ann, truth)
    return CurvePoint(
        nprobe=0,
        recall=round(float(shares.mean()), 4),
        lower=math.floor(1e4 * lower_bound(shares, truth.k)) / 1e4,  # Down, as it is compared with the recipe's bound.
        p50_ms=half,
        p95_ms=most,
    )


def _latency(ann: Any, truth: Truth) -> tuple[float, float]:
    """p50 and p95 of single queries on one thread, in milliseconds of its CPU time; other work does not change it."""
    seconds = []
    with one_thread():
        for query in truth.queries[:TIMED]:
            began = time.thread_time()
            ann.search(query[None], truth.k)
            seconds.append(time.thread_time() - began)
    half, most = np.quantile(seconds, [0.5, 0.95]) * 1000
    return round(float(half), 4), round(float(most), 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterPoint:
    """The cost of a filter that selects a share of the documents, inside the index and exactly."""

    rows: int
    nprobe: int
    """Lists that must be visited so that the lower bound holds; 0 in an exact index."""
    inside_ms: float
    exact_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


def filters(ann: Any, matrix: Any, queries: Vectors, target: float, seed: int) -> list[FilterPoint]:
    """Measures filters that select ever fewer documents, until an exact comparison is faster than the index.

    Each share is tried with documents drawn at random and with those on one side of a random direction, as the
    documents that pass a real filter often lie together; the larger number of lists counts.
    """
    rng = np.random.default_rng(seed)
    queries = queries[:FILTER_QUERIES]
    direction = rng.standard_normal(matrix.shape[1]).astype(np.float32)
    order = np.argsort(matrix @ direction)
    points = []
    for share in FILTER_SHARES:
        count = int(share * len(matrix))
        if count < K:
            break
        chosen = [np.sort(rng.permutation(len(matrix))[:count]), np.sort(order[:count])]
        point = _filter_point(ann, matrix, queries, chosen, target)
        if point is None or point.inside_ms >= point.exact_ms:
            break
        points.append(point)
    return points


def _filter_point(ann: Any, matrix: Any, queries: Vectors, chosen: Sequence[Rows], target: float) -> FilterPoint | None:
    """One share, by several filters; None where the bound does not hold with every list visited."""
    needed = 0
    for rows in chosen:
        truth = Truth.of(matrix, queries, rows=rows)
        for nprobe in _doubling(ann, needed):
            answers = np.stack(
                [search_selected(ann, query, truth.k, Selection(len(matrix), rows, nprobe))[1] for query in queries]
            )
            if lower_bound(truth.shares(matrix, answers), truth.k) >= target:
                needed = nprobe
                break
        else:
            return None
    rows = chosen[0]
    selection = Selection(len(matrix), rows, needed)
    inside = _seconds(lambda query: search_selected(ann, query, K, selection), queries)
    exact = _seconds(lambda query: similarities(ann, query, rows), queries)
    return FilterPoint(
        rows=len(rows), nprobe=needed, inside_ms=round(1000 * inside, 4), exact_ms=round(1000 * exact, 4)
    )


def _doubling(ann: Any, start: int) -> Iterator[int]:
    inner = inverted_lists(ann)
    if inner is None:
        yield 0
        return
    nprobe = max(start, inner.nprobe)
    while nprobe < inner.nlist:
        yield nprobe
        nprobe *= 2
    yield int(inner.nlist)


def _seconds(search: Any, queries: Vectors) -> float:
    """Median of single queries on one thread, in seconds of its CPU time."""
    times = []
    for query in queries[:10]:
        began = time.thread_time()
        search(query)
        times.append(time.thread_time() - began)
    return float(np.median(times))
