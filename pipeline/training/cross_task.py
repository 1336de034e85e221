"""How a cross-encoder learns from graded pairs and, when there is one, from a teacher.

The teacher, the ranker and the plain student differ only in the weights of the five losses.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.config import LoopConfig
from pipeline.errors import ArtifactError, TrainingError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import batches, losses, scoring
from pipeline.training.batches import Ints, Pairs
from pipeline.training.checkpoint import Progress
from pipeline.training.loop import Step, train


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Of the losses; a loss of weight 0 is not computed."""

    ordinal: float
    pairwise: float
    soft: float = 0.0
    temperature: float = 1.0
    margin: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a teacher said about the pairs of a table, one place in each array for one pair."""

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
    def read(cls, teacher: Artifact, teacher_scores: Artifact, pairs: Pairs) -> "Lessons":
        """The lessons for these pairs, joined by row id.

        Raises:
            ArtifactError: made by another teacher, or a pair has no score.
        """
        made_by = teacher_scores.manifest.inputs.get("teacher")
        if made_by != teacher.fingerprint:
            raise ArtifactError(
                f"{teacher_scores.path}: scores of teacher {made_by}, not of {teacher.fingerprint}; make them again"
            )
        scores, rows = joined(teacher_scores, pairs.rows)
        head = json.loads(teacher.file("head.json").read_text(encoding="utf-8"))
        states, layers = None, ()
        if "states.npy" in teacher_scores.manifest.files:
            states = np.load(teacher_scores.file("states.npy"), mmap_mode="r", allow_pickle=False)
            layers = tuple(json.loads(teacher_scores.file("states.json").read_text(encoding="utf-8"))["layers"])
        return cls(scores, torch.tensor(head["thresholds"]), states, rows, layers)

    def states_of(self, places: Ints, layers: Sequence[int]) -> Tensor:
        """(places, layers, hidden) float32.

        Raises:
            ArtifactError: a layer whose states were not stored.
        """
        missing = set(layers) - set(self.layers)
        if self.states is None or missing:
            raise ArtifactError(f"teacher scores hold states of layers {self.layers}, not of {sorted(missing)}")
        columns = [self.layers.index(layer) for layer in layers]
        return torch.from_numpy(self.states[self.state_rows[places]][:, columns].astype(np.float32))


def joined(scores: Artifact, rows: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Scores of these row ids, and where in the table each stands.

    Raises:
        ArtifactError: a row id has no score; names it.
    """
    table = pq.read_table(scores.file("scores.parquet"))
    known = table.column("row_id").to_numpy()
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known[order], rows), len(order) - 1)] if len(order) else rows * 0
    if len(rows) and (not len(known) or (known[places] != rows).any()):
        lost = rows[known[places] != rows][0] if len(known) else rows[0]
        raise ArtifactError(f"{scores.path}: no score for row {lost} of the pairs; make the scores from these pairs")
    return table.column("score").to_numpy()[places].astype(np.float32), places


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs of whole queries, and what the whole step counts."""

    places: Ints
    documents: int
    ordered_pairs: int


class CrossTask:
    """Steps, losses and nDCG for the loop."""

    unit = "pairs"

    def __init__(
        self,
        model: CrossEncoder,
        pairs: Pairs,
        config: LoopConfig,
        weights: Weights,
        *,
        max_list: int,
        lessons: Lessons | None = None,
        layer_map: Sequence[int] = (),
    ) -> None:
        """
        Args:
            max_list: documents of a query in one step.
            lessons: needed by the losses soft, margin and hidden.
            layer_map: teacher layers that teach the student layers 1, 2, …
        """
        self.model = model
        self.pairs = pairs
        self.config = config
        self.weights = weights
        self.max_list = max_list
        self.lessons = lessons
        self.layer_map = tuple(layer_map) if weights.hidden and lessons else ()
        self.device = next(model.parameters()).device
        self.lengths = batches.pair_lengths(pairs, model.template)
        self.train = pairs.places("train")
        self.valid = scoring.valid_places(pairs, config.valid_pairs, config.seed)

    def plan(self, epoch: int) -> list[Step[Chunk]]:
        """Each training query once, with at most `max_list` of its pairs."""
        lengths, groups = self.lengths[self.train], self.pairs.query[self.train]
        planned = batches.plan(lengths, groups, self.config, max_list=self.max_list, epoch=epoch)
        steps = []
        for chunks in planned:
            chosen = [self.train[places] for places in chunks]
            documents = sum(map(len, chosen))
            ordered = sum(self._ordered_pairs(places) for places in chosen)
            steps.append(
                Step(
                    [Chunk(places, documents, ordered) for places in chosen],
                    examples=documents,
                    tokens=sum(int(self.lengths[places].sum()) for places in chosen),
                    padded=sum(batches.padded(self.lengths[places]) for places in chosen),
                )
            )
        return steps

    def _ordered_pairs(self, places: Ints) -> int:
        grades, queries = self.pairs.grades[places], self.pairs.query[places]
        return int(((queries[:, None] == queries) & (grades[:, None] > grades)).sum())

    def loss(self, chunk: Chunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the losses, and each by itself."""
        parts, found = [], []
        for rectangle in batches.rectangles(self.lengths[chunk.places]):
            places = chunk.places[rectangle]
            inputs = batches.rectangle(batches.pair_inputs(self.pairs, places, self.model.template), self.device)
            parts.append(places)
            found.append(
                self.model.with_states(
                    inputs.input_ids, inputs.token_type_ids, inputs.attention_mask, range(1, len(self.layer_map) + 1)
                )
            )
        places = np.concatenate(parts)  # (n,) in the order of the rectangles; the losses do not mind
        scores = torch.cat([part for part, _ in found])  # (n,)
        states = torch.cat([part for _, part in found])  # (n, layers, hidden)
        grades = torch.from_numpy(self.pairs.grades[places]).to(self.device)
        groups = torch.from_numpy(np.unique(self.pairs.query[places], return_inverse=True)[1]).to(self.device)

        weights, thresholds, n = self.weights, self.model.thresholds, chunk.documents
        terms: dict[str, tuple[float, Tensor]] = {}
        if weights.ordinal:
            terms["ordinal"] = weights.ordinal, losses.ordinal_loss(scores, grades, thresholds, total=n)
        if weights.pairwise:
            pairwise = losses.ranknet_loss(scores, grades, groups, total=chunk.ordered_pairs)
            terms["pairwise"] = weights.pairwise, pairwise
        if self.lessons is not None:
            targets = torch.from_numpy(self.lessons.scores[places]).to(self.device)
            if weights.soft:
                levels = self.lessons.thresholds.to(self.device)
                soft = losses.soft_ordinal_loss(scores, thresholds, targets, levels, weights.temperature, total=n)
                terms["soft"] = weights.soft, soft
            if weights.margin:
                terms["margin"] = weights.margin, losses.margin_loss(scores, targets, groups, total=n)
            if self.layer_map:
                taught = self.lessons.states_of(places, self.layer_map).to(self.device)
                terms["hidden"] = weights.hidden, losses.patient_loss(states, taught, total=n)
        loss = sum((weight * value for weight, value in terms.values()), scores.sum() * 0)
        return loss, {name: value for name, (_, value) in terms.items()}

    def evaluate(self) -> float:
        """nDCG@10 of the valid queries."""
        scores = scoring.cross_scores(
            self.model, self.pairs, self.valid, precision=self.config.precision, label="  valid"
        )
        return scoring.ndcg(self.pairs, self.valid, scores)


def learn(task: CrossTask, *, label: str, checkpoint: Path) -> Progress:
    """Trains the task's model; without valid pairs the last state is kept.

    Raises:
        TrainingError: nothing to train on, or the loss is not a number.
    """
    config = task.config if len(task.valid) else dataclasses.replace(task.config, evaluations=0)
    return train(task.model, task, config, label=label, checkpoint=checkpoint, fresh=task.model.fresh)


def first_thresholds(pairs: Pairs) -> list[float]:
    """(grades,) log odds of being below each grade, over the training pairs: the best ordinal model without scores.

    Raises:
        TrainingError: no pair has a grade above 0.
    """
    top = int(pairs.grades.max(initial=0))
    if top < 1:
        raise TrainingError("no pair has a grade above 0, so there is nothing to learn; look at the judgments")
    counts = np.bincount(pairs.grades[pairs.places("train")], minlength=top + 1) + 0.5
    below = np.cumsum(counts)[:-1]  # (grades,) documents under grade 1, 2, …
    return [float(value) for value in np.log(below / (counts.sum() - below))]
