"""The meaning of a threshold on the ranker's score: the share of judged documents above it that are relevant.

The ranker's score in [0, 1] is the logistic function of what the model gives. It orders documents; nothing makes it the
probability that one is relevant. So the report counts, on test queries, and whoever sets `min_relevance` in a search
can see what a value has meant there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import systems

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = 20
"""Number of thresholds in [0, 1), equally far apart."""


def measure(ranked: Mapping[str, "pa.Table"], judgments: "pa.Table", relevant_from: int) -> list[dict[str, Any]]:
    """A row for each threshold; empty where `ranked` has no run of the ranker alone.

    Args:
        ranked: name of a system → its run; of the ranker's, `score` is what the model gives.
        judgments: query_id, doc_id, grade of the queries that are judged.
        relevant_from: the lowest grade that counts as relevant.

    Returns:
        Plain values: least (the threshold), ranked (documents of judged queries with at least this score), judged
        (those of them that have a grade), relevant (those that are), of_relevant (share of all relevant ranked
        documents that these are; None where there are none). Where only relevant documents have grades, relevant is
        all of judged and says nothing; then compare it with ranked.
    """
    run = ranked.get(systems.RANKER)
    if run is None:
        return []
    pairs = run.select(["query_id", "doc_id", "score"]).to_pandas()
    grades = judgments.select(["query_id", "doc_id", "grade"]).to_pandas()
    known = pairs[pairs["query_id"].isin(grades["query_id"])].merge(grades, on=["query_id", "doc_id"], how="left")
    scores = 1 / (1 + np.exp(-np.clip(known["score"].to_numpy(np.float64), -500, 500)))
    judged = known["grade"].notna().to_numpy()
    relevant = (known["grade"] >= relevant_from).to_numpy()
    rows = []
    for step in range(STEPS):
        least = step / STEPS
        above = scores >= least
        hits = int((above & relevant).sum())
        share = hits / int(relevant.sum()) if relevant.any() else None
        counts = {"ranked": int(above.sum()), "judged": int((above & judged).sum()), "relevant": hits}
        rows.append({"least": least, **counts, "of_relevant": share})
    return rows
