"""The BM25 teacher: a teacher's scores plus those of BM25, an ensemble that costs no training.

A small teacher from scratch and BM25 err on different documents, so their sum orders long lists better than either.
Both depend on query and document alone, which a cross-encoder can learn. It needs no encoder, as `fused_teacher` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import schema
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.stage import Stage
from pipeline.training import external_teacher, score_files
from pipeline.training.loop.batches import Ints
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
        rows, grades = table["row_id"].to_numpy(), table["grade"].to_numpy(dtype=np.int64)
        own, lexical = (joined(each, rows)[0].astype(np.float64) for each in (scores, bm25))
        query = table["query_id"].astype("category").cat.codes.to_numpy(dtype=np.int64)
        raw = own + weight * _of_the_best(lexical, query)
        scale = external_teacher.fit(raw, grades, np.flatnonzero((table["split"] == "train") & (grades >= 0)))
        score_files.write_scores(staging.folder, rows, scale.scores(raw).astype(np.float32))
        score_files.write_thresholds(staging.folder, scale.thresholds)
        score_files.link_states_and_passages(scores, staging.folder)
        return {"pairs": len(rows)}

    # An external teacher is known by its source.
    made_by = {name: mark for name, mark in scores.manifest.inputs.items() if name in ("teacher", "outside")}
    inputs: dict[str, Input] = {"scores": scores, "bm25": bm25, "pairs": pairs, **made_by}
    return STAGE.make(workspace, config={"weight": weight}, inputs=inputs, build=build)


def _of_the_best(scores: external_teacher.Floats, query: Ints) -> external_teacher.Floats:
    """(pairs,) scores divided by the largest of their query; 0 where no document of the query has a word of it."""
    best = np.zeros(int(query.max(initial=-1)) + 1)
    np.maximum.at(best, query, scores)
    best[best == 0] = 1.0
    return scores / best[query]
