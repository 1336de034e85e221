"""The BM25 teacher: a teacher's scores plus those of BM25, an ensemble that costs no training.

A small teacher from scratch and BM25 err on different documents, so their sum orders long lists better than either.
Both depend on query and document alone, which a cross-encoder can learn. It needs no encoder, as `fused_teacher` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import schema
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.stage import Stage
from pipeline.training import teacher_ensembles
from pipeline.training.tasks.teacher_targets import joined

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"scores": "teacher_scores", "bm25": "scores", "pairs": "pairs"},
    section="ranker",
    title="scores of teacher and BM25",
)


@STAGE
def make(workspace: Path, weight: float, *, scores: Artifact, bm25: Artifact, pairs: Artifact) -> Artifact:
    """The `teacher_scores` artifact of the sum: its scores, and the states of the teacher.

    scores.parquet   row_id, score (float32)
    head.json        {"thresholds": [b_1 < … < b_G]}: where the scores pass from grade to grade on the training pairs
    states.*, passages.npy   those of `scores`

    Args:
        workspace: the folder that holds `artifacts/`.
        weight: what the best document of a query by BM25 gains; the others gain in proportion to their scores.
        scores: the teacher's scores of the pairs.
        bm25: BM25 of the pairs, at least 0.
        pairs: graded pairs, perhaps with unlabelled ones.

    Raises:
        ArtifactError: a pair has no score.
        TrainingError: higher scores go with lower grades.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        table = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
        own, words = (pd.Series(joined(each, table["row_id"].to_numpy())[0], dtype=float) for each in (scores, bm25))
        best = words.groupby(table["query_id"].to_numpy()).transform("max")  # 0 where no document has one of its words.
        teacher_ensembles.write(staging.folder, scores, table, (own + weight * words / best.replace(0, 1)).to_numpy())
        return {"pairs": len(table)}

    made_by = teacher_ensembles.teacher_of(scores)
    inputs: dict[str, Input] = {"scores": scores, "bm25": bm25, "pairs": pairs, **made_by}
    return STAGE.make(workspace, config={"weight": weight}, inputs=inputs, build=build)
