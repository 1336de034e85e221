"""The terms of a cross-encoder's loss: what each is called, and what it reads. Three tables, by what that is.

    SCORE_TERMS    scores and grades
    TAUGHT_TERMS   beside them the teacher's scores and first-token states, which are computed once and kept
    TOKEN_TERMS    states of all tokens, far too large to keep: the teacher reads each batch beside the student

A term is computed where its weight is above 0. A new one is a line here, a weight in `LossWeights` and a key in the
config.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.losses import distillation, ranking

PROJECTED = ("token_hidden", "embedding", "cosine")
"""Terms that compare states of one width; a student of another learns a projection for each, which is thrown away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Of the terms, by their name in the tables, and what they need to know. A term of weight 0 is not computed."""

    ordinal: float = 0.0
    pairwise: float = 0.0
    hinge: float = 0.0
    listnet: float = 0.0
    lambdarank: float = 0.0
    soft: float = 0.0
    margin: float = 0.0
    logit: float = 0.0
    hidden: float = 0.0
    relation: float = 0.0
    attention: float = 0.0
    token_hidden: float = 0.0
    embedding: float = 0.0
    cosine: float = 0.0
    mutual: float = 0.0
    """Of learning from a second student; not in the tables, as it reads two students."""

    hinge_margin: float = 1.0
    temperature: float = 1.0

    def of(self, table: Mapping[str, object]) -> dict[str, float]:
        """Those above 0 of a table's terms, in its order."""
        return {name: getattr(self, name) for name in table if getattr(self, name)}

    def untaught(self) -> "LossWeights":
        """These without what needs a teacher or a second student."""
        return LossWeights(hinge_margin=self.hinge_margin, **self.of(SCORE_TERMS))

    def check(self) -> None:
        """
        Raises:
            ConfigError: no term has a weight.
        """
        if not any(getattr(self, field.name) for field in fields(self) if field.name not in _SETTINGS):
            raise ConfigError("every loss has weight 0, so there is nothing to learn; give at least one a weight")


_SETTINGS = ("hinge_margin", "temperature")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a whole step counts, by which its chunks divide."""

    documents: int
    graded: int
    """Documents that have a grade."""
    queries: int
    """Queries whose documents have."""
    ordered_pairs: int
    """Pairs of documents of one query with different grades."""
    tokens: int
    token_pairs: int
    """Squared lengths, added up."""
    hard: float = 1.0
    """Factor of the terms over grades: the graded share of the step over that of the whole training. So they bear on
    all steps of an epoch together as their weights say, and a step of few grades does not follow these few."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one student said about a chunk, and what is known about it."""

    scores: Tensor
    """(n,)"""
    thresholds: Tensor
    """(grades,)"""
    states: Tensor
    """(n, layers, hidden) first-token states of the layers that the teacher's are matched to."""
    grades: Tensor
    """(n,) int64."""
    groups: Tensor
    """(n,) int64, from 0."""
    counts: Counts

    def with_grades(self) -> "Scored":
        """Those documents that have a grade; all, where the step has no others."""
        if self.counts.graded == self.counts.documents:
            return self
        kept = self.grades >= 0
        return replace(
            self,
            scores=self.scores[kept],
            states=self.states[kept],
            grades=self.grades[kept],
            groups=self.groups[kept],
        )


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher said about the same."""

    scores: Tensor
    """(n,)"""
    thresholds: Tensor
    """(grades,)"""
    states: Tensor
    """(n, layers, hidden)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Which layers of teacher and student are compared, from 1."""

    first: tuple[int, ...] = ()
    """Teacher layers whose first-token states teach the student layers 1, 2, …"""
    tokens: tuple[int, ...] = ()
    """Teacher layers whose attention and states of all tokens teach the student layers 1, 2, …"""
    relation: int = 0
    """Teacher layer whose relations teach the student's last."""
    heads: int = 1
    """Relation heads."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """How one model sees a rectangle of inputs."""

    model: CrossEncoder
    states: Mapping[int, Tensor]
    """(batch, tokens, hidden) by layer, 0 for the embeddings."""

    def attention(self, layer: int) -> Tensor:
        """(batch, heads, tokens, tokens) scores before the softmax."""
        queries, keys, _ = self.model.projections(layer, self.states[layer - 1])
        return distillation.attention_scores(queries, keys, self.model.heads)


@dataclass(frozen=True, slots=True)
class TokenViews:
    """How a student and the teacher see the same rectangle."""

    student: TokenView
    teacher: TokenView
    mask: Tensor
    """(batch, tokens), 1 for a real token."""
    projections: nn.ModuleDict
    match: Match
    counts: Counts

    def pairs(self, name: str, layers: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """States of (student layer, teacher layer), the student's projected where that term has a projection."""
        project = self.projections[name] if name in self.projections else nn.Identity()
        return [(project(self.student.states[ours]), self.teacher.states[theirs]) for ours, theirs in layers]


def _token_hidden(views: TokenViews) -> Tensor:
    found = [
        distillation.token_loss(ours, theirs, views.mask, total=views.counts.tokens)
        for ours, theirs in views.pairs("token_hidden", list(enumerate(views.match.tokens, start=1)))
    ]
    return torch.stack(found).mean()


def _embedding(views: TokenViews) -> Tensor:
    ((ours, theirs),) = views.pairs("embedding", [(0, 0)])
    return distillation.token_loss(ours, theirs, views.mask, total=views.counts.tokens)


def _cosine(views: TokenViews) -> Tensor:
    ((ours, theirs),) = views.pairs("cosine", [(views.student.model.layers, views.teacher.model.layers)])
    return distillation.cosine_loss(ours, theirs, views.mask, total=views.counts.tokens)


def _attention(views: TokenViews) -> Tensor:
    found = []
    for ours, theirs in enumerate(views.match.tokens, start=1):
        with torch.no_grad():
            wanted = views.teacher.attention(theirs)
        scores = views.student.attention(ours)
        found.append(distillation.attention_loss(scores, wanted, views.mask, total=views.counts.token_pairs))
    return torch.stack(found).mean()


def _relation(views: TokenViews) -> Tensor:
    last = views.student.model.layers
    queries, keys, values = views.student.model.projections(last, views.student.states[last - 1])
    with torch.no_grad():
        before = views.teacher.states[views.match.relation - 1]
        their_queries, their_keys, their_values = views.teacher.model.projections(views.match.relation, before)
    mask, heads, total = views.mask, views.match.heads, views.counts.documents
    attended = distillation.relation_loss((queries, keys), (their_queries, their_keys), mask, heads, total=total)
    valued = distillation.relation_loss((values, values), (their_values, their_values), mask, heads, total=total)
    return attended + valued


SCORE_TERMS: Mapping[str, Callable[[Scored, LossWeights], Tensor]] = {
    "ordinal": lambda s, _: ranking.ordinal_loss(s.scores, s.grades, s.thresholds, total=s.counts.graded),
    "pairwise": lambda s, _: ranking.ranknet_loss(s.scores, s.grades, s.groups, total=s.counts.ordered_pairs),
    "hinge": lambda s, w: ranking.hinge_loss(
        s.scores, s.grades, s.groups, w.hinge_margin, total=s.counts.ordered_pairs
    ),
    "listnet": lambda s, _: ranking.listnet_loss(s.scores, s.grades, s.groups, total=s.counts.queries),
    "lambdarank": lambda s, _: ranking.lambdarank_loss(s.scores, s.grades, s.groups, total=s.counts.queries),
}

TAUGHT_TERMS: Mapping[str, Callable[[Scored, Taught, LossWeights], Tensor]] = {
    "soft": lambda s, t, w: distillation.soft_ordinal_loss(
        s.scores, s.thresholds, t.scores, t.thresholds, w.temperature, total=s.counts.documents
    ),
    "margin": lambda s, t, _: ranking.margin_loss(s.scores, t.scores, s.groups, total=s.counts.documents),
    "logit": lambda s, t, _: distillation.logit_loss(s.scores, t.scores, total=s.counts.documents),
    "hidden": lambda s, t, _: distillation.patient_kd_loss(s.states, t.states, total=s.counts.documents),
}

TOKEN_TERMS: Mapping[str, Callable[[TokenViews], Tensor]] = {
    "relation": _relation,
    "attention": _attention,
    "token_hidden": _token_hidden,
    "embedding": _embedding,
    "cosine": _cosine,
}


def token_layers(weights: LossWeights, match: Match, depth: int, teacher_depth: int) -> tuple[list[int], list[int]]:
    """Layers of student and teacher, 0 for the embeddings, whose states of all tokens the terms read."""
    ours: set[int] = set()
    theirs: set[int] = set()
    if weights.relation:
        ours.add(depth - 1)
        theirs.add(match.relation - 1)
    if weights.attention:
        ours.update(range(len(match.tokens)))
        theirs.update(layer - 1 for layer in match.tokens)
    if weights.token_hidden:
        ours.update(range(1, len(match.tokens) + 1))
        theirs.update(match.tokens)
    if weights.embedding:
        ours.add(0)
        theirs.add(0)
    if weights.cosine:
        ours.add(depth)
        theirs.add(teacher_depth)
    return sorted(ours), sorted(theirs)
