"""The fused teacher: a teacher's scores joined with those of BM25 and the encoder, as a search joins them.

It is an ensemble whose members read differently: BM25 counts the words of whole documents, the encoder has learned from
all training queries, the teacher reads query and document together. The weights are those of `fusion`, learned from the
valid queries. A student of it orders documents better alone than a student of the teacher does.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import schema
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.errors import SchemaError
from pipeline.feature_tables import SCORES, by_query
from pipeline.features import FEATURES, Fusion
from pipeline.stage import Stage
from pipeline.training import fusion, teacher_ensembles
from pipeline.training.fusion_candidates import Floats
from pipeline.training.tasks.teacher_targets import joined

if TYPE_CHECKING:
    import pandas as pd

STAGE = Stage(
    "teacher_scores",
    version=2,  # Candidates of equal score no longer stand in the order of the rows.
    inputs={"scores": "teacher_scores", "features": "features", "pairs": "pairs"},
    section="ranker",
    title="fused teacher scores",
)

TEACHER = "ranker"
"""The feature whose place the teacher's score takes."""

log = logging.getLogger(__name__)


@STAGE
def make(workspace: Path, *, scores: Artifact, features: Artifact, pairs: Artifact) -> Artifact:
    """The `teacher_scores` artifact of the fused teacher: its scores, and the states of the teacher.

    scores.parquet   row_id, score (float32)
    head.json        {"thresholds": [b_1 < … < b_G]}: where the scores pass from grade to grade on the training pairs
    states.*, passages.npy   those of `scores`

    Where the fused order is no better than the teacher's on held-out valid queries, it is the teacher's.

    Args:
        workspace: the folder that holds `artifacts/`.
        scores: the teacher's scores of the pairs.
        features: BM25 and cosine of the pairs.
        pairs: graded pairs, perhaps with unlabelled ones.

    Raises:
        ArtifactError: a pair has no score.
        SchemaError: a pair has no features.
        TrainingError: higher fused scores go with lower grades.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        rows = _rows(scores, features, pairs)
        order, measured = _order(rows[rows["split"] == "valid"])
        teacher_ensembles.write(staging.folder, scores, rows, _fused(rows, order))
        return {"pairs": len(rows), **measured, "weights": dict(order.weights)}

    made_by = teacher_ensembles.teacher_of(scores)
    inputs: dict[str, Input] = {"scores": scores, "features": features, "pairs": pairs, **made_by}
    return STAGE.make(workspace, config={}, inputs=inputs, build=build)


def _rows(scores: Artifact, features: Artifact, pairs: Artifact) -> "pd.DataFrame":
    """The pairs in order of their row ids: query_id, doc_id, split, grade, bm25, encoder and the teacher's score."""
    import pandas as pd

    rows: pd.DataFrame
    known = pd.read_parquet(features.file("features.parquet")).drop(columns=["query_id", "doc_id", "split", TEACHER])
    named: pd.DataFrame = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
    rows = named[["row_id", "query_id", "doc_id", "split", "grade"]].merge(known, on="row_id", how="left")
    lost = rows["row_id"][rows["bm25"].isna()]
    if len(lost):
        raise SchemaError(f"{features.path}: no features of row {lost.min()} of {pairs.path}; make them of these pairs")
    rows = rows.sort_values("row_id", kind="stable", ignore_index=True)
    rows[TEACHER] = joined(scores, rows["row_id"].to_numpy())[0].astype(np.float64)
    return rows


def _order(valid: "pd.DataFrame") -> tuple[Fusion, dict[str, Any]]:
    """The fused order that the valid queries prefer, or the teacher's own, and what was measured."""
    order, measured = fusion.fit(valid.reset_index(drop=True))
    chosen, ndcg = measured["chosen"], measured["ndcg"]
    if not ndcg or ndcg["fused"] <= ndcg[TEACHER]:
        order, chosen = Fusion(weights={name: float(name == TEACHER) for name in FEATURES}), TEACHER
    named = {"teacher" if name == TEACHER else name: round(value, 4) for name, value in ndcg.items()}
    log.info("fused teacher: %s, %s on the valid queries", chosen.replace(TEACHER, "teacher"), named)
    return order, {"chosen": chosen.replace(TEACHER, "teacher"), "ndcg": named}


def _fused(rows: "pd.DataFrame", order: Fusion) -> Floats:
    """(pairs,) the fused score of each row, by the features of its query's rows."""
    raw = np.zeros(len(rows))
    for positions, columns in by_query(rows[["query_id", "doc_id", *SCORES, *order.fields]]):
        raw[positions] = order.scores(columns.tolist())
    return raw
