"""The worth of each path of the service: its order against that of the cheaper stage before it.

    /search     the fused order, against reciprocal-rank fusion of BM25 and encoder
    /rerank     the ranker alone or the fused order, as the fusion decided, against BM25

Whoever puts `/rerank` behind a BM25 search of their own loses where its order is below BM25, so a release says so: in
its report, on the card of a retraining, and in GET /v1/models.
"""

import math
from typing import TYPE_CHECKING, Any

from pipeline.config import EvaluationConfig
from pipeline.evaluation import significance, systems
from pipeline.evaluation.metrics import RANGE

if TYPE_CHECKING:
    import pandas as pd


def worth(
    values: "pd.DataFrame", measure: str, config: EvaluationConfig, rerank: str = systems.RANKER
) -> dict[str, dict[str, Any]]:
    """Path → its mean difference to the first stage, with the 95 % interval over queries and a verdict.

    Args:
        values: the values of the measure: a row for each query, a column for each system.
        measure: its name.
        rerank: the system whose order `/rerank` gives.

    Returns:
        Plain values: system, first_stage, measure, mean, low, high, p, queries, verdict. A path whose systems are not
        in the table is left out. An end that is not defined is None.
    """
    worths = {}
    paths = {"/search": (systems.FUSED, systems.BOTH), "/rerank": (rerank, systems.BM25)}
    for path, (system, first_stage) in paths.items():
        if not {system, first_stage} <= set(values.columns):
            continue
        gap = significance.difference(
            values[system], values[first_stage], resamples=config.bootstrap, seed=config.seed, bounds=RANGE
        )
        numbers = {"mean": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p}
        worths[path] = {
            "system": system,
            "first_stage": first_stage,
            "measure": measure,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "queries": gap.queries,
            "verdict": "better" if gap.better else "worse" if gap.worse else "no difference shown",
        }
    return worths
