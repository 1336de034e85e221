"""The objective of a cross-encoder, which is all that sets teacher, ranker and plain student apart, and its parameters.

Objective              the weights of the loss terms, and what those terms learn from besides grades
CrossEncoderLearner    all parameters that are trained for it: students, and projections to the teacher's width
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop.loop import step_seed
from pipeline.training.losses.cross_encoder_terms import (
    MUTUAL,
    PROJECTED,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    LossWeights,
    Match,
)
from pipeline.training.tasks.teacher_targets import TeacherTargets

ALONE = Match()
"""A match of no layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The weighted terms of a cross-encoder's loss and what they learn from besides grades."""

    weights: LossWeights
    targets: TeacherTargets | None = None
    """Stored outputs of the teacher, for the terms of TAUGHT_TERMS."""
    match: Match = ALONE
    teacher: CrossEncoder | None = None
    """The teacher itself, for the terms of TOKEN_TERMS; is not trained."""
    peer: CrossEncoder | None = None
    """A second student, for the mutual term; learns all that the first learns and is discarded."""

    def checked(self) -> "Objective":
        """This objective without what no weighted term reads.

        The hidden term is dropped where no layers are matched, as for a student of one layer.

        Raises:
            ConfigError: no term has a weight, or one lacks what it learns from.
        """
        weights = self.weights if self.match.first else dataclasses.replace(self.weights, hidden=0.0)
        weights.check()
        for terms, given, needed in (
            (TAUGHT_TERMS, self.targets, "the teacher's scores"),
            (TOKEN_TERMS, self.teacher, "the teacher itself"),
            ((MUTUAL,), self.peer, "a second student"),
        ):
            if given is None and (lacking := weights.of(terms)):
                raise ConfigError(f"the losses {', '.join(lacking)} need {needed}; set their weights to 0")
        return dataclasses.replace(
            self,
            weights=weights,
            teacher=self.teacher if weights.of(TOKEN_TERMS) else None,
            peer=self.peer if weights.mutual else None,
        )


class CrossEncoderLearner(nn.Module):
    """Everything that is trained: the student, perhaps a peer, and projections that are discarded at the end."""

    def __init__(self, students: Sequence[CrossEncoder], weights: LossWeights, teacher_width: int, seed: int) -> None:
        """Collects the students, and makes projections where a student's width is not the teacher's.

        Args:
            students: the one that is kept, then perhaps its peer.
            weights: the weights of the terms; one of `PROJECTED` with a weight gets a projection.
            teacher_width: width of the teacher's states.
            seed: seed of the projections' first values.
        """
        super().__init__()
        self.students = nn.ModuleList(students)
        self.projections = nn.ModuleList(nn.ModuleDict() for _ in students)
        for number, student in enumerate(students):
            if student.hidden != teacher_width:
                for term, name in enumerate(weights.of(PROJECTED)):
                    seed_here = step_seed(seed, 10 * number + term)
                    self._projections[number][name] = _projection(student.hidden, teacher_width, seed_here)
        self.to(next(students[0].parameters()).device)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Beginnings of names of parameters that no training has touched yet."""
        of_students = [f"students.{n}.{name}" for n, student in enumerate(self._all) for name in student.fresh]
        return (*of_students, "projections.")

    @property
    def _all(self) -> list[CrossEncoder]:
        return [student for student in self.students if isinstance(student, CrossEncoder)]

    @property
    def _projections(self) -> list[nn.ModuleDict]:
        return [projections for projections in self.projections if isinstance(projections, nn.ModuleDict)]

    def each(self) -> list[tuple[CrossEncoder, nn.ModuleDict]]:
        """Students, each with its projections by the name of the term."""
        return list(zip(self._all, self._projections, strict=True))


def _projection(width: int, teacher_width: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(width, teacher_width, bias=False)
        nn.init.orthogonal_(projection.weight)
    return projection
