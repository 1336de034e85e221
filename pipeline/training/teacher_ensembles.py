"""The part that all ensembles share which join a teacher's scores with others: the scale, the files and the teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.training import score_files, score_scale
from pipeline.training.external_teacher import Floats

if TYPE_CHECKING:
    import pandas as pd


def write(folder: Path, scores: Artifact, pairs: "pd.DataFrame", raw: Floats) -> None:
    """Writes the files of a `teacher_scores` artifact: joined scores on the scale of the training grades.

    States and best passages stay those of the teacher.

    Args:
        folder: the artifact's folder.
        scores: the teacher's `teacher_scores` artifact.
        pairs: row_id, split and grade (below 0 for none) of each pair.
        raw: (pairs,) the joined scores, higher is better.

    Raises:
        TrainingError: higher scores go with lower grades; see `score_scale.fit`.
    """
    grades = pairs["grade"].to_numpy(dtype=np.int64)
    scale = score_scale.fit(raw, grades, np.flatnonzero((pairs["split"] == "train") & (grades >= 0)))
    score_files.write_scores(folder, pairs["row_id"].to_numpy(), scale.scores(raw).astype(np.float32))
    score_files.write_thresholds(folder, scale.thresholds)
    score_files.link_states_and_passages(scores, folder)


def teacher_of(scores: Artifact) -> Mapping[str, str]:
    """The input of a `teacher_scores` artifact that names its teacher; an external one is known by its source."""
    return {name: mark for name, mark in scores.manifest.inputs.items() if name in ("teacher", "outside")}
