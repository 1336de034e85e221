"""Training of a cross-encoder on graded pairs and, when there is one, on a teacher's outputs.

The teacher, the ranker and the plain student differ only in their objective: the weights of the terms that
`cross_encoder_terms` lists, and what those terms learn from.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import schema
from pipeline.artifacts import Staging
from pipeline.config import LoopConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.models.cross_encoder import CrossEncoder, Reading
from pipeline.training.loop import batches, pair_tokens, scoring
from pipeline.training.loop.batches import Ints, PaddedBatch
from pipeline.training.loop.checkpoint import Progress
from pipeline.training.loop.loop import Step, train
from pipeline.training.loop.pair_tokens import Pairs
from pipeline.training.losses import distillation
from pipeline.training.losses.cross_encoder_terms import (
    MUTUAL,
    SCORE_TERMS,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    Counts,
    Scored,
    Taught,
    TokenView,
    TokenViews,
    token_layers,
)
from pipeline.training.tasks.objective import CrossEncoderLearner, Objective


@dataclass(frozen=True, slots=True)
class PairChunk:
    """Pairs of whole queries, and the counts of the entire step."""

    indices: Ints
    counts: Counts


class CrossTask:
    """Steps, losses and nDCG of a cross-encoder, for the loop."""

    unit = "pairs"

    def __init__(
        self,
        model: CrossEncoder,
        pairs: Pairs,
        config: LoopConfig,
        objective: Objective,
        *,
        max_list: int,
        click_weight: float = 1.0,
    ) -> None:
        """Checks the objective against model and pairs, and prepares the training pairs.

        Args:
            model: the student that is kept.
            pairs: all pairs of the artifact.
            config: the loop's hyperparameters.
            objective: the losses and what they learn from.
            max_list: maximum number of a query's documents in one step.
            click_weight: weight of grades that rest on clicks, from 0 to 1.

        Raises:
            ConfigError: no term has a weight, or one lacks what it learns from.
            ArtifactError: targets without the states that are needed, or on another scale of grades.
        """
        objective = objective.checked()
        self.model, self.pairs, self.config, self.max_list = model, pairs, config, max_list
        self.objective, self.weights = objective, objective.weights
        self.click_weight = click_weight if pairs.clicked is not None else 1.0
        self.device = next(model.parameters()).device
        self.token_layers: list[int] = []
        self.teacher_token_layers: list[int] = []
        width = model.hidden
        if (teacher := objective.teacher) is not None:
            teacher.eval().requires_grad_(False)
            layers = token_layers(self.weights, objective.match, model.layers, teacher.layers)
            self.token_layers, self.teacher_token_layers = layers
            width = teacher.hidden
        students = [model] if objective.peer is None else [model, objective.peer]
        self.learner = CrossEncoderLearner(students, self.weights, width, config.seed)
        self._check_targets()
        self.lengths = pair_tokens.pair_lengths(pairs, model.template)
        self.train = pairs.indices("train")
        if self.weights.of(TAUGHT_TERMS) or self.weights.of(TOKEN_TERMS):
            self.train = np.concatenate([self.train, pairs.indices(schema.UNLABELLED)])
        self.graded_share = _graded_share(pairs, self.train, max_list)
        self.valid = scoring.valid_indices(pairs, config.valid_pairs, config.seed)

    def _check_targets(self) -> None:
        known, top = len(self.model.thresholds), int(self.pairs.grades.max(initial=0))
        if top > known:
            raise ConfigError(
                f"the pairs have grades up to {top}, the model knows 0 to {known}; train the teacher on these pairs"
            )
        targets = self.objective.targets
        if targets is None:
            return
        if self.weights.soft and len(targets.thresholds) != known:
            raise ArtifactError(
                f"the teacher knows grades 0 to {len(targets.thresholds)} and the student 0 to {known}, so their "
                "distributions cannot be compared; train both on the same pairs, or set ranker.soft_weight to 0"
            )
        if self.weights.hidden:
            targets.states_of(np.zeros(0, dtype=np.int64), self.objective.match.first)

    def plan(self, epoch: int) -> list[Step[PairChunk]]:
        """The steps of an epoch: each training query and unlabelled list once, at most `max_list` of its pairs."""
        lengths, groups = self.lengths[self.train], self.pairs.query[self.train]
        planned = batches.plan(lengths, groups, self.config, max_list=self.max_list, epoch=epoch)
        return [self._step([self.train[rows] for rows in chunks]) for chunks in planned]

    def _step(self, chunks: Sequence[Ints]) -> Step[PairChunk]:
        indices = np.concatenate(chunks)
        graded = indices[self.pairs.grades[indices] >= 0]
        counts = Counts(
            documents=len(indices),
            graded=self._weighted(len, graded),
            queries=self._weighted(lambda rows: len(np.unique(self.pairs.query[rows])), graded),
            lists=len(np.unique(self.pairs.query[indices])),
            ordered_pairs=sum(self._weighted(self._ordered_pairs, chunk) for chunk in chunks),
            unlabelled=len(indices) - len(graded),
            tokens=int(self.lengths[indices].sum()),
            token_pairs=int(np.square(self.lengths[indices]).sum()),
            hard=len(graded) / (len(indices) * self.graded_share),
        )
        return Step(
            [PairChunk(chunk, counts) for chunk in chunks],
            examples=counts.documents,
            tokens=counts.tokens,
            padded=sum(batches.padded_tokens(self.lengths[chunk]) for chunk in chunks),
        )

    def _weighted(self, count: Callable[[Ints], int], indices: Ints) -> float:
        """The count of these pairs, in which a pair whose grade rests on clicks counts `click_weight`."""
        if self.click_weight == 1 or self.pairs.clicked is None:
            return count(indices)
        people = count(indices[~self.pairs.clicked[indices]])
        return self.click_weight * count(indices) + (1 - self.click_weight) * people

    def _ordered_pairs(self, indices: Ints) -> int:
        grades, queries = self.pairs.grades[indices], self.pairs.query[indices]
        return int(((queries[:, None] == queries) & (grades[:, None] > grades)).sum())

    def loss(self, chunk: PairChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the terms, and each by itself; `peer` is the sum of the second student's terms."""
        groups = [chunk.indices[rows] for rows in batches.length_groups(self.lengths[chunk.indices])]
        inputs = [
            batches.pad(batches.pair_inputs(self.pairs, group, self.model.template), self.device) for group in groups
        ]
        indices = np.concatenate(groups)  # (n,) in the order of the inputs; no loss depends on the order
        targets = self._targets_of(indices)
        scored: list[Scored] = []
        terms: list[dict[str, Tensor]] = []
        for student, (reading, token_terms) in zip(self._students, self._read(inputs, chunk.counts), strict=True):
            scored.append(self._scored(student, reading, indices, chunk.counts))
            terms.append(self._terms(scored[-1], targets) | token_terms)
        sums = [self._weighted_sum(outputs.scores, parts) for outputs, parts in zip(scored, terms, strict=True)]
        if len(scored) == 1:
            return sums[0], terms[0]
        mutual = _mutual_loss(scored[0], scored[1], self.weights.temperature)
        return sums[0] + sums[1] + self.weights.mutual * mutual, {**terms[0], MUTUAL: mutual, "peer": sums[1]}

    @property
    def _students(self) -> list[CrossEncoder]:
        return [student for student, _ in self.learner.each()]

    def _read(self, inputs: Sequence[PaddedBatch], counts: Counts) -> list[tuple[Reading, dict[str, Tensor]]]:
        """The outputs of each student for all inputs together, and its terms over tokens."""
        first = range(1, len(self.objective.match.first) + 1) if self.weights.hidden else ()
        if self.objective.teacher is None and not self.config.checkpoint_activations:
            packed = [batch.all for batch in inputs]
            return [(student.read_together(packed, first=first), {}) for student in self._students]
        teacher_views = [self._teacher_view(batch) for batch in inputs]  # The students share them.
        outputs = []
        for student, projections in self.learner.each():
            readings: list[Reading] = []
            terms: dict[str, Tensor] = {}
            for batch, teacher in zip(inputs, teacher_views, strict=True):
                readings.append(student.read(*batch.all, first=first, token_layers=self.token_layers))
                if teacher is None:
                    continue
                ours = TokenView(student, readings[-1].token_states)
                views = TokenViews(ours, teacher, batch.attention_mask, projections, self.objective.match, counts)
                for name in self.weights.of(TOKEN_TERMS):
                    terms[name] = terms.get(name, 0) + TOKEN_TERMS[name](views)
            scores = torch.cat([reading.scores for reading in readings])  # (n,)
            states = torch.cat([reading.first for reading in readings])  # (n, layers, hidden)
            outputs.append((Reading(scores, states, {}), terms))
        return outputs

    def _teacher_view(self, inputs: PaddedBatch) -> TokenView | None:
        teacher = self.objective.teacher
        if teacher is None:
            return None
        with torch.no_grad():
            reading = teacher.read(*inputs.all, token_layers=self.teacher_token_layers, score=False)
        return TokenView(teacher, reading.token_states)

    def _targets_of(self, indices: Ints) -> Taught | None:
        """The teacher's stored outputs for these pairs."""
        targets = self.objective.targets
        if targets is None:
            return None
        layers = self.objective.match.first if self.weights.hidden else ()
        states = targets.states_of(indices, layers) if layers else torch.zeros(len(indices), 0, 0)
        return Taught(
            torch.from_numpy(targets.scores[indices]).to(self.device),
            targets.thresholds.to(self.device),
            states.to(self.device),
        )

    def _scored(self, student: CrossEncoder, reading: Reading, indices: Ints, counts: Counts) -> Scored:
        return Scored(
            scores=reading.scores,  # (n,)
            thresholds=student.thresholds,
            states=reading.first,  # (n, layers, hidden)
            grades=torch.from_numpy(self.pairs.grades[indices]).to(self.device),
            groups=torch.from_numpy(np.unique(self.pairs.query[indices], return_inverse=True)[1]).to(self.device),
            counts=counts,
            clicked=None
            if self.click_weight == 1 or self.pairs.clicked is None
            else torch.from_numpy(self.pairs.clicked[indices]).to(self.device),
        )

    def _terms(self, scored: Scored, targets: Taught | None) -> dict[str, Tensor]:
        """The terms over scores, by name."""
        weights = self.weights
        terms = {name: value * scored.counts.hard for name, value in self._grade_terms(scored.with_grades()).items()}
        if targets is not None:
            terms |= {name: TAUGHT_TERMS[name](scored, targets, weights) for name in weights.of(TAUGHT_TERMS)}
        return terms

    def _grade_terms(self, graded: Scored) -> dict[str, Tensor]:
        """The terms over grades, by name.

        With w for the click weight each is w · (all grades) + (1 − w) · (people's grades). So a document, or an ordered
        pair with a document, that rests on clicks weighs w, and any other weighs 1; the counts are weighted alike.
        """
        names = self.weights.of(SCORE_TERMS)
        terms = {name: SCORE_TERMS[name](graded, self.weights) for name in names}
        if graded.clicked is None:
            return terms
        people, share = graded.of_people(), self.click_weight
        return {
            name: share * value + (1 - share) * SCORE_TERMS[name](people, self.weights) for name, value in terms.items()
        }

    def _weighted_sum(self, scores: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        return sum((getattr(self.weights, name) * value for name, value in terms.items()), scores.sum() * 0)

    def evaluate(self) -> float:
        """nDCG@10 of the valid queries."""
        scores = scoring.cross_scores(
            self.model, self.pairs, self.valid, precision=self.config.precision, label="  valid"
        )
        return scoring.ndcg(self.pairs, self.valid, scores)


def learn(task: CrossTask, *, label: str, staging: Staging) -> Progress:
    """Trains the task's model; without valid pairs the last state is kept.

    Args:
        staging: the stage's folders; its time counts from when the stage began.

    Raises:
        TrainingError: nothing to train on, or the loss is not a number.
    """
    config = task.config if len(task.valid) else dataclasses.replace(task.config, evaluations=0)
    return train(
        task.learner,
        task,
        config,
        label=label,
        checkpoint=staging.checkpoint,
        fresh=task.learner.fresh,
        began=staging.began,
    )


def _mutual_loss(first: Scored, second: Scored, temperature: float) -> Tensor:
    """Sum of the soft-target losses of each of two students towards the other's grade distribution.

    Source: Zhang et al., Deep mutual learning, CVPR 2018, arXiv:1706.00384.
    """
    return sum(
        (
            distillation.soft_ordinal_loss(
                ours.scores,
                ours.thresholds,
                theirs.scores,
                theirs.thresholds,
                temperature,
                total=first.counts.documents,
            )
            for ours, theirs in ((first, second), (second, first))
        ),
        torch.zeros((), device=first.scores.device),
    )


def _graded_share(pairs: Pairs, indices: Ints, max_list: int) -> float:
    """The share of graded pairs among those that an epoch draws, at most `max_list` a query; 1 without pairs."""
    queries, numbers, counts = np.unique(pairs.query[indices], return_inverse=True, return_counts=True)
    if not len(queries):
        return 1.0
    drawn = np.minimum(counts, max_list)
    probability = (drawn / counts)[numbers]  # (pairs,) of each pair to be drawn
    return float(probability[pairs.grades[indices] >= 0].sum() / drawn.sum())
