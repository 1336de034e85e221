"""What the training of a cross-encoder changes: the student itself, and what is thrown away at the end."""

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import step_seed
from pipeline.training.terms import PROJECTED, Weights


class Learner(nn.Module):
    """All that is trained: the student, a second one that learns beside it, and projections thrown away at the end."""

    def __init__(self, students: Sequence[CrossEncoder], weights: Weights, teacher_width: int, seed: int) -> None:
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
        """The students and their projections, by the name of the term."""
        return list(zip(self._all, self._projections, strict=True))


def _projection(width: int, teacher_width: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Linear(width, teacher_width, bias=False)
        nn.init.orthogonal_(made.weight)
    return made
