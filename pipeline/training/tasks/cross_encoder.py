"""How a cross-encoder learns from graded pairs and, when there is one, from a teacher.

The teacher, the ranker and the plain student differ only in the weights of their terms, which `terms` lists.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import LoopConfig
from pipeline.errors import ArtifactError, ConfigError, TrainingError
from pipeline.models import tokenizers
from pipeline.models.cross_encoder import CrossEncoder, Reading
from pipeline.training.loop import batches, scoring
from pipeline.training.loop.batches import Ints, Pairs
from pipeline.training.loop.checkpoint import Progress
from pipeline.training.loop.loop import Step, step_seed, train
from pipeline.training.losses import distillation
from pipeline.training.losses.cross_encoder_terms import (
    PROJECTED,
    SCORE_TERMS,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    Counts,
    LossWeights,
    Match,
    Scored,
    Taught,
    TokenView,
    TokenViews,
    token_layers,
)
from pipeline.training.tasks.teacher_targets import TeacherTargets

ALONE = Match()
"""No layer is compared with a teacher's."""


@dataclass(frozen=True, slots=True)
class PairChunk:
    """Pairs of whole queries, and what the whole step counts."""

    places: Ints
    counts: Counts


class CrossEncoderLearner(nn.Module):
    """All that is trained: the student, a second one that learns beside it, and projections thrown away at the end."""

    def __init__(self, students: Sequence[CrossEncoder], weights: LossWeights, teacher_width: int, seed: int) -> None:
        """
        Args:
            students: the one that is kept, then perhaps its peer.
            teacher_width: where a student is not as wide, it learns a projection for each term that needs one.
        """
        super().__init__()
        self.students = nn.ModuleList(students)
        self.projections = nn.ModuleList(nn.ModuleDict() for _ in students)
        for number, student in enumerate(students):
            if student.hidden != teacher_width:
                for place, name in enumerate(weights.of(dict.fromkeys(PROJECTED))):
                    made = _projection(student.hidden, teacher_width, step_seed(seed, 10 * number + place))
                    self._projections[number][name] = made
        self.to(next(students[0].parameters()).device)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Beginnings of names of parameters that no training has touched yet."""
        of_students = [f"students.{number}.{name}" for number, one in enumerate(self._all) for name in one.fresh]
        return (*of_students, "projections.")

    @property
    def _all(self) -> list[CrossEncoder]:
        return [one for one in self.students if isinstance(one, CrossEncoder)]

    @property
    def _projections(self) -> list[nn.ModuleDict]:
        return [one for one in self.projections if isinstance(one, nn.ModuleDict)]

    def each(self) -> list[tuple[CrossEncoder, nn.ModuleDict]]:
        """Students, each with its projections by the name of the term."""
        return list(zip(self._all, self._projections, strict=True))


class CrossTask:
    """Steps, losses and nDCG for the loop."""

    unit = "pairs"

    def __init__(
        self,
        model: CrossEncoder,
        pairs: Pairs,
        config: LoopConfig,
        weights: LossWeights,
        *,
        max_list: int,
        lessons: TeacherTargets | None = None,
        match: Match = ALONE,
        teacher: CrossEncoder | None = None,
        peer: CrossEncoder | None = None,
    ) -> None:
        """
        Args:
            max_list: documents of a query in one step.
            lessons: needed by the terms that learn from the teacher's scores and states.
            match: which layers are compared.
            teacher: needed by the terms over tokens; is not trained.
            peer: needed by the mutual term; learns all that the model learns.

        Raises:
            ConfigError: no term has a weight, or one lacks what it learns from.
            ArtifactError: lessons without the states that are needed, or on another scale of grades.
        """
        if not match.first:  # A student of one layer has none to match.
            weights = dataclasses.replace(weights, hidden=0.0)
        weights.check()
        for table, given, needed in (
            (TAUGHT_TERMS, lessons, "the teacher's scores"),
            (TOKEN_TERMS, teacher, "the teacher itself"),
            (("mutual",), peer, "a second student"),
        ):
            if given is None and (lacking := weights.of(dict.fromkeys(table))):
                raise ConfigError(f"the losses {', '.join(lacking)} need {needed}; set their weights to 0")
        self.model = model
        self.pairs = pairs
        self.config = config
        self.weights = weights
        self.max_list = max_list
        self.lessons = lessons
        self.match = match
        self.teacher = teacher if weights.of(TOKEN_TERMS) else None
        self.whole: list[int] = []
        self.taught_whole: list[int] = []
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
            self.whole, self.taught_whole = token_layers(weights, match, model.layers, self.teacher.layers)
        students = [model] if peer is None or not weights.mutual else [model, peer]
        width = self.teacher.hidden if self.teacher else model.hidden
        self.learner = CrossEncoderLearner(students, weights, width, config.seed)
        self.device = next(model.parameters()).device
        self._check_grades()
        if lessons is not None and weights.hidden:
            lessons.states_of(np.zeros(0, dtype=np.int64), match.first)
        self.lengths = batches.pair_lengths(pairs, model.template)
        self.train = pairs.indices("train")
        if weights.of(TAUGHT_TERMS) or weights.of(TOKEN_TERMS):
            self.train = np.concatenate([self.train, pairs.indices(schema.UNLABELLED)])
        self.graded_share = _graded_share(pairs, self.train, max_list)
        self.valid = scoring.valid_indices(pairs, config.valid_pairs, config.seed)

    def _check_grades(self) -> None:
        known, top = len(self.model.thresholds), int(self.pairs.grades.max(initial=0))
        if top > known:
            raise ConfigError(
                f"the pairs have grades up to {top}, the model knows 0 to {known}; train the teacher on these pairs"
            )
        if self.lessons is not None and self.weights.soft and len(self.lessons.thresholds) != known:
            raise ArtifactError(
                f"the teacher knows grades 0 to {len(self.lessons.thresholds)} and the student 0 to {known}, so their "
                "distributions cannot be compared; train both on the same pairs, or set ranker.soft_weight to 0"
            )

    def plan(self, epoch: int) -> list[Step[PairChunk]]:
        """Each training query and each unlabelled list once, with at most `max_list` of its pairs."""
        lengths, groups = self.lengths[self.train], self.pairs.query[self.train]
        planned = batches.plan(lengths, groups, self.config, max_list=self.max_list, epoch=epoch)
        steps = []
        for chunks in planned:
            chosen = [self.train[places] for places in chunks]
            every = np.concatenate(chosen)
            graded = every[self.pairs.grades[every] >= 0]
            counts = Counts(
                documents=len(every),
                graded=len(graded),
                queries=len(np.unique(self.pairs.query[graded])),
                ordered_pairs=sum(self._ordered_pairs(places) for places in chosen),
                tokens=int(self.lengths[every].sum()),
                token_pairs=int(np.square(self.lengths[every]).sum()),
                hard=len(graded) / (len(every) * self.graded_share),
            )
            steps.append(
                Step(
                    [PairChunk(places, counts) for places in chosen],
                    examples=counts.documents,
                    tokens=counts.tokens,
                    padded=sum(batches.padded_tokens(self.lengths[places]) for places in chosen),
                )
            )
        return steps

    def _ordered_pairs(self, places: Ints) -> int:
        grades, queries = self.pairs.grades[places], self.pairs.query[places]
        return int(((queries[:, None] == queries) & (grades[:, None] > grades)).sum())

    def loss(self, chunk: PairChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the terms, and each by itself; `peer` is all of the second student's."""
        rectangles = [chunk.places[rows] for rows in batches.length_groups(self.lengths[chunk.places])]
        inputs = [
            batches.pad(batches.pair_inputs(self.pairs, part, self.model.template), self.device) for part in rectangles
        ]
        students = self.learner.each()
        first = range(1, len(self.match.first) + 1) if self.weights.hidden else ()
        readings: list[list[Reading]] = [[] for _ in students]
        over_tokens: list[dict[str, Tensor]] = [{} for _ in students]
        if self.teacher is None and not self.config.checkpoint_activations:
            readings = [[student.read_together([one.all for one in inputs], first=first)] for student, _ in students]
            inputs = []
        for one in inputs:
            taught = self._teacher_view(one)
            for (student, projections), read, terms in zip(students, readings, over_tokens, strict=True):
                read.append(student.read(*one.all, first=first, whole=self.whole))
                if taught is not None:
                    ours = TokenView(student, read[-1].whole)
                    views = TokenViews(ours, taught, one.attention_mask, projections, self.match, chunk.counts)
                    for name in self.weights.of(TOKEN_TERMS):
                        terms[name] = terms.get(name, 0) + TOKEN_TERMS[name](views)

        places = np.concatenate(rectangles)  # (n,) in the order of the rectangles; the losses do not mind
        told = self._told(places)
        scored = [
            self._scored(student, read, places, chunk.counts)
            for (student, _), read in zip(students, readings, strict=True)
        ]
        found = [self._terms(one, told) | terms for one, terms in zip(scored, over_tokens, strict=True)]
        sums = [self._sum(one.scores, terms) for one, terms in zip(scored, found, strict=True)]
        if len(scored) == 1:
            return sums[0], found[0]
        mutual = _from_each_other(scored[0], scored[1], self.weights.temperature)
        loss = sums[0] + sums[1] + self.weights.mutual * mutual
        return loss, {**found[0], "mutual": mutual, "peer": sums[1]}

    def _teacher_view(self, inputs: batches.PaddedBatch) -> TokenView | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            reading = self.teacher.read(*inputs.all, whole=self.taught_whole, score=False)
        return TokenView(self.teacher, reading.whole)

    def _told(self, places: Ints) -> Taught | None:
        """What the teacher said about these pairs."""
        if self.lessons is None:
            return None
        layers = self.match.first if self.weights.hidden else ()
        states = self.lessons.states_of(places, layers) if layers else torch.zeros(len(places), 0, 0)
        return Taught(
            torch.from_numpy(self.lessons.scores[places]).to(self.device),
            self.lessons.thresholds.to(self.device),
            states.to(self.device),
        )

    def _scored(self, student: CrossEncoder, readings: Sequence[Reading], places: Ints, counts: Counts) -> Scored:
        return Scored(
            scores=torch.cat([one.scores for one in readings]),  # (n,)
            thresholds=student.thresholds,
            states=torch.cat([one.first for one in readings]),  # (n, layers, hidden)
            grades=torch.from_numpy(self.pairs.grades[places]).to(self.device),
            groups=torch.from_numpy(np.unique(self.pairs.query[places], return_inverse=True)[1]).to(self.device),
            counts=counts,
        )

    def _terms(self, scored: Scored, told: Taught | None) -> dict[str, Tensor]:
        """The terms over scores, by name."""
        weights = self.weights
        graded = scored.with_grades()
        found = {name: SCORE_TERMS[name](graded, weights) * scored.counts.hard for name in weights.of(SCORE_TERMS)}
        if told is not None:
            found |= {name: TAUGHT_TERMS[name](scored, told, weights) for name in weights.of(TAUGHT_TERMS)}
        return found

    def _sum(self, scores: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        return sum((getattr(self.weights, name) * value for name, value in terms.items()), scores.sum() * 0)

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
    return train(task.learner, task, config, label=label, checkpoint=checkpoint, fresh=task.learner.fresh)


def _from_each_other(first: Scored, second: Scored, temperature: float) -> Tensor:
    """Each student from the other's softened grade distribution, as that stands at this step.

    Source: Zhang et al., Deep mutual learning, CVPR 2018, arXiv:1706.00384.
    """
    total = first.counts.documents
    return distillation.soft_ordinal_loss(
        first.scores, first.thresholds, second.scores, second.thresholds, temperature, total=total
    ) + distillation.soft_ordinal_loss(
        second.scores, second.thresholds, first.scores, first.thresholds, temperature, total=total
    )


def _graded_share(pairs: Pairs, places: Ints, max_list: int) -> float:
    """Of the pairs that an epoch draws from these, at most `max_list` a query, the share with a grade; 1 of none."""
    queries, numbers, counts = np.unique(pairs.query[places], return_inverse=True, return_counts=True)
    if not len(queries):
        return 1.0
    drawn = np.minimum(counts, max_list)
    weight = (drawn / counts)[numbers]  # (places,) how often each is drawn
    return float(weight[pairs.grades[places] >= 0].sum() / drawn.sum())


def untrained(
    base: Path, data: Artifact, pairs: Artifact, *, max_tokens: int, max_query_tokens: int, seed: int
) -> tuple[CrossEncoder, Pairs]:
    """A cross-encoder with the body found in `base`, and the pairs in its tokens, whose grades set its thresholds.

    Raises:
        ConfigError: as `CrossEncoder.start`.
        TrainingError: no pair has a grade above 0.
    """
    tokenizer = tokenizers.plain_tokenizer(tokenizers.load_tokenizer(base))
    table = batches.read_pairs(data, pairs, tokenizer, max_query_tokens=max_query_tokens, max_tokens=max_tokens)
    thresholds = first_thresholds(table)
    model = CrossEncoder.start(
        base, thresholds=thresholds, max_tokens=max_tokens, max_query_tokens=max_query_tokens, seed=seed
    )
    return model, table


def first_thresholds(pairs: Pairs) -> list[float]:
    """(grades,) log odds of being below each grade, over the training pairs: the best ordinal model without scores.

    Raises:
        TrainingError: no pair has a grade above 0.
    """
    top = int(pairs.grades.max(initial=0))
    if top < 1:
        raise TrainingError("no pair has a grade above 0, so there is nothing to learn; look at the judgments")
    counts = np.bincount(pairs.grades[pairs.indices("train")], minlength=top + 1) + 0.5
    below = np.cumsum(counts)[:-1]  # (grades,) documents under grade 1, 2, …
    return [float(value) for value in np.log(below / (counts.sum() - below))]


def _projection(width: int, teacher_width: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Linear(width, teacher_width, bias=False)
        nn.init.orthogonal_(made.weight)
    return made
