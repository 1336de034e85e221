"""Teacher targets: the scores and states that a teacher gave a table of pairs, joined by row id."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import array_files, artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.models.cross_encoder_head import ascending
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_passages import parted
from pipeline.training.loop.pair_tokens import Pairs


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teacher's outputs for a table of pairs; entry i of each array belongs to pair i."""

    scores: NDArray[np.float32]
    """(pairs,) raw."""
    thresholds: Tensor
    """(grades,) of the teacher."""
    states: NDArray[np.float16] | None
    """(rows, layers, hidden) first-token states, on disk; `state_rows` says which row is a pair's."""
    state_rows: Ints
    """(pairs,)"""
    layers: tuple[int, ...]
    """Teacher layers of the states, from 1."""

    @classmethod
    def read(cls, teacher: Artifact, teacher_scores: Artifact, pairs: Pairs) -> "TeacherTargets":
        """The targets for these pairs, joined by row id; an external or a fused teacher's have their own thresholds.

        Raises:
            ArtifactError: made by another teacher, by one of another scale of grades, or a pair has no score.
        """
        external = "outside" in teacher_scores.manifest.inputs
        made_by = teacher_scores.manifest.inputs.get("teacher")
        if not external and made_by != teacher.fingerprint:
            raise ArtifactError(
                f"{teacher_scores.path}: scores of teacher {made_by}, not of {teacher.fingerprint}; make them again"
            )
        scores, rows = joined(teacher_scores, pairs.rows)
        source = teacher_scores if "head.json" in teacher_scores.manifest.files else teacher
        try:
            thresholds = ascending(json.loads(source.file("head.json").read_text(encoding="utf-8"))["thresholds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{source.path / 'head.json'}: not readable ({error}); {artifacts.remedy(source.path)}"
            ) from error
        if len(thresholds) < (top := int(pairs.grades.max(initial=0))):
            raise ArtifactError(
                f"{source.path}: the teacher knows grades 0 to {len(thresholds)}, the pairs go up to {top}; "
                "train it on these pairs"
            )
        states, layers = None, ()
        if "states.npy" in teacher_scores.manifest.files:
            states = array_files.of_artifact(teacher_scores.file("states.npy"), "r")
            layers = tuple(json.loads(teacher_scores.file("states.json").read_text(encoding="utf-8"))["layers"])
        return cls(scores, torch.tensor(thresholds), states, rows, layers)

    def states_of(self, indices: Ints, layers: Sequence[int]) -> Tensor:
        """(indices, layers, hidden) float32.

        Raises:
            ArtifactError: a layer whose states were not stored.
        """
        missing = set(layers) - set(self.layers)
        if self.states is None or missing:
            raise ArtifactError(f"teacher scores hold states of layers {self.layers}, not of {sorted(missing)}")
        columns = [self.layers.index(layer) for layer in layers]
        return torch.from_numpy(self.states[self.state_rows[indices]][:, columns].astype(np.float32))


def as_taught(pairs: Pairs, teacher_scores: Artifact) -> Pairs:
    """The pairs as the teacher scored them: the passage that it found best in place of each document that it cut.

    Args:
        pairs: the pairs, in the teacher's tokens.
        teacher_scores: scores of these pairs; without passages the pairs stay as they are.

    Raises:
        ArtifactError: a pair has no score.
    """
    if "passages.npy" not in teacher_scores.manifest.files:
        return pairs
    _, rows = joined(teacher_scores, pairs.rows)
    spans = array_files.of_artifact(teacher_scores.file("passages.npy"))
    return parted(pairs, spans[rows].astype(np.int64))


def joined(scores: Artifact, rows: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Scores of these row ids, and where in the table each stands.

    Raises:
        ArtifactError: a row id has no score; names it.
    """
    table = pq.read_table(scores.file("scores.parquet"))
    known = table.column("row_id").to_numpy()
    order = np.argsort(known)
    indices = order[np.minimum(np.searchsorted(known[order], rows), len(order) - 1)] if len(order) else rows * 0
    if len(rows) and (not len(known) or (known[indices] != rows).any()):
        lost = rows[known[indices] != rows][0] if len(known) else rows[0]
        raise ArtifactError(f"{scores.path}: no score for row {lost} of the pairs; make the scores from these pairs")
    return table.column("score").to_numpy()[indices].astype(np.float32), indices
