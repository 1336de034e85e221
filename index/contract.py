"""Builds the semantic index that keeps the recall of a recipe: choose, estimate, build, measure, raise or refuse.

choices ──► build ──► curve on held-out queries ──► bound holds? ──► filters ──► index
   ▲                                                    │ no
   └──────────────── the next better type ◄─────────────┘        none left: ConfigError
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index import index_types, tuning
from index.ann import read_ann
from index.held_out import HeldOutQueries, Vectors
from index.semantic import IndexStats
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.text import counted

SAMPLED_DOCUMENTS = 500
"""Documents whose vectors are asked for where there are no queries."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContractIndex:
    """An index that keeps its contract, before it is written."""

    ann: Any
    chosen: index_types.IndexType
    point: tuning.CurvePoint
    metrics: Mapping[str, Any]
    """Estimate, choice, recall with its bound, the recall–latency curve."""
    queries: Vectors
    """The vectors that it was judged by."""

    def stats(self, encoder_digest: str) -> IndexStats:
        """The fields of `index.json`, before filters are measured."""
        return IndexStats(
            encoder_digest=encoder_digest,
            dimensions=self.ann.d,
            rows=self.ann.ntotal,
            factory=self.chosen.factory,
            nprobe=self.point.nprobe,
        )


def settings(config: IndexConfig) -> dict[str, float]:
    """The part of an index's fingerprint that the contract adds; empty without one."""
    if not config.recall:
        return {}
    return {"recall": config.recall, "bytes_per_document": config.bytes_per_document}


def build(matrix: Any, config: IndexConfig, held_out: HeldOutQueries | None) -> ContractIndex:
    """The first type of index that keeps `config.recall`.

    Args:
        matrix: (documents, dimensions) unit vectors.
        held_out: the queries that recall is measured on; without any, documents' vectors, and the metrics say so.

    Raises:
        ConfigError: no type keeps the recall within the bytes; nothing is built then.
        ArtifactError: the queries have another width than the documents.
    """
    rows, dimensions = matrix.shape
    queries = _queries(matrix, config, held_out)
    truth: tuning.Truth | None = None
    tried: dict[str, Any] = {}
    for candidate in index_types.choices(rows, dimensions, config):
        seconds, size = candidate.seconds(rows, dimensions), candidate.bytes_per_document
        log.info(
            "index: %s, %s: about %.1f bytes a document, %.0f s", candidate.factory, candidate.reason, size, seconds
        )
        began = time.monotonic()
        ann = index_types.build(candidate, matrix, config.seed)
        index_types.add(ann, matrix)
        built = round(time.monotonic() - began, 2)
        truth = truth or tuning.Truth.of(matrix, queries)
        point, points = tuning.curve(ann, matrix, truth, config.recall)
        if point is None:
            tried[candidate.factory] = {"recall_at_100": points[-1].recall, "recall_at_100_lower": points[-1].lower}
            log.warning("index: %s does not keep recall %g: at most %s", candidate.factory, config.recall, points[-1])
            continue
        metrics = {
            "choice": candidate.reason,
            "estimate": {"bytes_per_document": round(size, 1), "build_seconds": round(seconds, 1)},
            "build_seconds": built,
            "nprobe": point.nprobe,
            **_recall_metrics(point, config, queries, held_out),
            "recall_curve": [asdict(point) for point in points],
            **({"refused": tried} if tried else {}),
        }
        return ContractIndex(ann=ann, chosen=candidate, point=point, metrics=metrics, queries=queries)
    best = max(tried, key=lambda name: tried[name]["recall_at_100_lower"])
    raise ConfigError(
        f"index.recall is {config.recall}: within index.bytes_per_document = {config.bytes_per_document:g} the best "
        f"type, {best}, keeps {tried[best]['recall_at_100_lower']:.4f} by its lower bound over "
        f"{counted(len(queries), 'query')}, however many lists are visited; raise the limit or lower the recall"
    )


def measured(
    ann: Any, matrix: Any, config: IndexConfig, held_out: HeldOutQueries | None
) -> tuple[dict[str, Any], Vectors] | None:
    """The metrics of an index that was built before and changed since, and the queries that it was judged by.

    None where it does not keep `config.recall`.
    """
    queries = _queries(matrix, config, held_out)
    point = tuning.measured_point(ann, matrix, tuning.Truth.of(matrix, queries))
    if point.lower < config.recall:
        log.warning("index: its segments do not keep recall %g: %s; it is built anew", config.recall, point)
        return None
    return _recall_metrics(point, config, queries, held_out), queries


def _recall_metrics(
    point: tuning.CurvePoint, config: IndexConfig, queries: Vectors, held_out: HeldOutQueries | None
) -> dict[str, Any]:
    """The metrics of an index at the point of its recall curve where it is served, and the queries they rest on."""
    return {
        "recall_target": config.recall,
        "recall_at_100": point.recall,
        "recall_at_100_lower": point.lower,
        "recall_queries": len(queries),
        "recall_measured_on": "held-out queries" if held_out else "documents",
        "p50_ms": point.p50_ms,
    }


def with_filters(
    stats: IndexStats, path: Path, matrix: Any, index: ContractIndex, config: IndexConfig
) -> tuple[IndexStats, dict[str, Any]]:
    """The stats with the measured crossover of filters, and the measurements for the metrics.

    Args:
        path: the written Faiss file.
    """
    ann = read_ann(path)
    if isinstance(ann, faiss.IndexRefine):  # A fast scan takes no selector.
        return stats, {"filters": []}
    points = tuning.filters(ann, matrix, index.queries, config.recall, config.seed)
    if points:
        log.info("index: filters that pass at least so many documents are searched inside it: %d", points[-1].rows)
    crossover = tuple((point.rows, point.nprobe) for point in points)
    return replace(stats, filters=crossover), {"filters": [point.to_dict() for point in points]}


def _queries(matrix: Any, config: IndexConfig, held_out: HeldOutQueries | None) -> Vectors:
    if held_out is None:
        log.warning("index: recall is measured on documents' vectors, as there are too few queries that are none")
        drawn = np.sort(np.random.default_rng(config.seed).permutation(len(matrix))[:SAMPLED_DOCUMENTS])
        return np.ascontiguousarray(matrix[drawn], np.float32)
    queries = np.ascontiguousarray(held_out.load(), np.float32)
    if queries.ndim != 2 or queries.shape[1] != matrix.shape[1] or not np.isfinite(queries).all():
        raise ArtifactError(
            f"index: held-out queries of shape {queries.shape} for documents of {matrix.shape[1]} dimensions, or "
            "values that are not finite; embed queries and documents with one encoder"
        )
    return queries
