"""A click log simulated by the position-based model, with known truth, and what is read of one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import SourceConfig
from pipeline.data import sources

EXAMINATION = np.array([1.0, 0.7, 0.45, 0.3, 0.2, 0.12])


COLUMNS = {"query": "q", "title": "shown", "position": "rank", "clicked": "hit"}


def simulate(
    seed: int, *, queries: int = 40, documents: int = 8, impressions: int = 30_000, positions: int = 6
) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """A log by the model itself, one row a shown result, and the true attractiveness of each pair.

    Rankings are noisy and put attractive documents first, so clicks alone overrate what stands first.
    """
    rng = np.random.default_rng(seed)
    truth = rng.beta(1.2, 2.0, (queries, documents))
    rows: list[tuple[str, str, int, bool]] = []
    for query in rng.integers(0, queries, impressions // positions):
        order = np.argsort(-(truth[query] + rng.normal(0, 0.5, documents)))[:positions]
        examined = rng.random(positions) < EXAMINATION[:positions]
        clicked = examined & (rng.random(positions) < truth[query][order])
        rows += [
            (f"query {query}", f"document {document}", rank, bool(hit))
            for rank, (document, hit) in enumerate(zip(order, clicked, strict=True), start=1)
        ]
    frame = pd.DataFrame(rows, columns=["q", "shown", "rank", "hit"])
    names = {
        (f"query {query}", f"document {document}"): float(truth[query, document])
        for query in range(queries)
        for document in range(documents)
    }
    return frame, names


def read(path: Path, frame: pd.DataFrame, **settings: Any) -> sources.Source:
    frame.to_csv(path, index=False)
    return sources.read(SourceConfig(path=str(path), columns=COLUMNS, **settings), Path())


def graded(source: sources.Source) -> dict[tuple[str, str], int]:
    queries = {row["query_id"]: row["text"] for row in source.queries.to_pylist()}
    documents = {row["doc_id"]: row["title"] for row in source.documents.to_pylist()}
    return {(queries[row["query_id"]], documents[row["doc_id"]]): row["grade"] for row in source.judgments.to_pylist()}
