"""The terms of a cross-encoder's loss, in three tables by what a term reads.

    SCORE_TERMS    scores and grades
    TAUGHT_TERMS   scores and first-token states of student and teacher; the teacher's are computed once and stored
    TOKEN_TERMS    states of all tokens, too large to store: the teacher reads each batch beside the student

A term is computed where its weight is above 0. A new term takes a line in a table, a field in `LossWeights` and a key
in the config; `LossWeights.of_config` refuses a config with a weight that no term has.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from pipeline.config import RankerConfig, TeacherConfig, weights_of
from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.losses import distillation, ranking, token_distillation

PROJECTED = ("token_hidden", "embedding", "cosine")
"""Terms that compare states of one width; a student of another width learns a projection for each, later discarded."""

MUTUAL = "mutual"
"""The term by which two students learn from each other; it is in no table, as it reads two students."""


def weights_by_term(config: object, keys: Mapping[str, str]) -> dict[str, float]:
    """The weights of a config section by the name of the term.

    Args:
        config: a section with keys that end in `_weight`.
        keys: key of the section → name of the term, for all terms that the caller can compute.

    Raises:
        ConfigError: the section has a weight whose term the caller cannot compute, so it would be ignored.
    """
    weights = weights_of(config)
    ignored = [key for key in weights if key not in keys]
    if ignored:
        raise ConfigError(
            f"{type(config).__name__}.{ignored[0]}: no loss term has this weight; add the term to a table in "
            "pipeline/training/losses"
        )
    return {keys[key]: weight for key, weight in weights.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the terms by their name in the tables, and the terms' hyperparameters."""

    ordinal: float = 0.0
    pairwise: float = 0.0
    hinge: float = 0.0
    listnet: float = 0.0
    lambdarank: float = 0.0
    soft: float = 0.0
    margin: float = 0.0
    logit: float = 0.0
    listwise: float = 0.0
    infonce: float = 0.0
    hidden: float = 0.0
    relation: float = 0.0
    attention: float = 0.0
    token_hidden: float = 0.0
    embedding: float = 0.0
    cosine: float = 0.0
    mutual: float = 0.0

    hinge_margin: float = 1.0
    temperature: float = 1.0

    @classmethod
    def of_config(cls, config: TeacherConfig | RankerConfig, prefix: str = "") -> "LossWeights":
        """The weights of a config section.

        Args:
            config: the section of a model, such as `ranker`.
            prefix: stands before the keys of the terms over grades: `hard_` in the ranker's section.

        Raises:
            ConfigError: the section has a weight of no known term.
        """
        keys = {f"{prefix}{name}_weight": name for name in SCORE_TERMS}
        keys |= {f"{name}_weight": name for name in (*TAUGHT_TERMS, *TOKEN_TERMS, MUTUAL)}
        settings = {name: getattr(config, name) for name in hyperparameters() if hasattr(config, name)}
        return cls(**weights_by_term(config, keys), **settings)

    def of(self, terms: Collection[str]) -> dict[str, float]:
        """The weights above 0 of these terms, in their order."""
        return {name: getattr(self, name) for name in terms if getattr(self, name)}

    def without_teacher(self) -> "LossWeights":
        """The weights of the terms over grades alone."""
        return replace(self, **{name: 0.0 for name in _term_names() if name not in SCORE_TERMS})

    def check(self) -> None:
        """Checks that there is something to learn.

        Raises:
            ConfigError: no term has a weight.
        """
        if not self.of(_term_names()):
            raise ConfigError("every loss has weight 0, so there is nothing to learn; give at least one a weight")


def _term_names() -> tuple[str, ...]:
    return (*SCORE_TERMS, *TAUGHT_TERMS, *TOKEN_TERMS, MUTUAL)


def hyperparameters() -> list[str]:
    """The fields of `LossWeights` that are no weights; each is read from the key of its name in a config section."""
    return [field.name for field in fields(LossWeights) if field.name not in _term_names()]


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of an entire step, by which the sums of each of its chunks are divided."""

    documents: int
    graded: float
    """Number of documents that have a grade; a grade that rests on clicks counts `click_weight`."""
    queries: float
    """Number of queries with graded documents; one whose grades all rest on clicks counts `click_weight`."""
    lists: int
    """Number of queries, with graded documents or without."""
    ordered_pairs: float
    """Number of pairs of documents of one query with different grades; one with a grade from clicks counts
    `click_weight`."""
    tokens: int
    token_pairs: int
    """Sum of the squared lengths."""
    hard: float = 1.0
    """Factor of the terms over grades: the step's share of graded documents divided by the share in an epoch. So these
    terms have the effect of their weights over an epoch, and the few grades of a step do not dominate it."""
    unlabelled: int = 0
    """Number of documents without a grade."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The outputs of one student for a chunk, with the grades."""

    scores: Tensor
    """(n,) scores of the chunk's documents."""
    thresholds: Tensor
    """(grades,) thresholds of the ordinal model; see `CrossEncoder`."""
    states: Tensor
    """(n, layers, hidden) first-token states of the layers that are matched to the teacher's."""
    grades: Tensor
    """(n,) int64; below 0 where a document has none."""
    groups: Tensor
    """(n,) int64, number of the query, from 0."""
    counts: Counts
    clicked: Tensor | None = None
    """(n,) bool, whether the grade rests on clicks; None where no grade does."""

    def with_grades(self) -> "Scored":
        """The outputs for the documents that have a grade."""
        return self._where(self.grades >= 0) if self.counts.unlabelled else self

    def of_people(self) -> "Scored":
        """The outputs for the documents whose grade does not rest on clicks."""
        return self if self.clicked is None else self._where(~self.clicked)

    def _where(self, kept: Tensor) -> "Scored":
        return replace(
            self,
            scores=self.scores[kept],
            states=self.states[kept],
            grades=self.grades[kept],
            groups=self.groups[kept],
            clicked=None if self.clicked is None else self.clicked[kept],
        )


@dataclass(frozen=True, slots=True)
class Taught:
    """The stored outputs of the teacher for the documents of a `Scored`."""

    scores: Tensor
    """(n,) scores in the order of the student's."""
    thresholds: Tensor
    """(grades,) thresholds of the teacher's ordinal model."""
    states: Tensor
    """(n, layers, hidden) first-token states of the layers in `Match.first`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """The layers of teacher and student that are compared, from 1."""

    first: tuple[int, ...] = ()
    """Teacher layers whose first-token states teach the student layers 1, 2, …"""
    tokens: tuple[int, ...] = ()
    """Teacher layers whose attention and states of all tokens teach the student layers 1, 2, …"""
    relation: int = 0
    """Teacher layer whose relations teach the student's last."""
    heads: int = 1
    """Number of heads into which queries, keys and values are cut for the relation term."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """The states of all tokens that one model computes for a padded batch."""

    model: CrossEncoder
    states: Mapping[int, Tensor]
    """(batch, tokens, hidden) by layer, 0 for the embeddings."""

    def attention(self, layer: int) -> Tensor:
        """(batch, heads, tokens, tokens) attention scores before the softmax."""
        queries, keys, _ = self.model.projections(layer, self.states[layer - 1])
        return token_distillation.attention_scores(queries, keys, self.model.heads)


@dataclass(frozen=True, slots=True)
class TokenViews:
    """The token states of a student and its teacher for the same padded batch."""

    student: TokenView
    teacher: TokenView
    mask: Tensor
    """(batch, tokens), 1 for a real token."""
    projections: nn.ModuleDict
    match: Match
    counts: Counts

    def pairs(self, name: str, layers: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """(student's states, teacher's states) for each (student layer, teacher layer) of a term.

        The student's are projected to the teacher's width where the term `name` has a projection.
        """
        project = self.projections[name] if name in self.projections else nn.Identity()
        return [(project(self.student.states[ours]), self.teacher.states[theirs]) for ours, theirs in layers]


def _token_hidden(views: TokenViews) -> Tensor:
    losses = [
        token_distillation.token_loss(ours, theirs, views.mask, total=views.counts.tokens)
        for ours, theirs in views.pairs("token_hidden", list(enumerate(views.match.tokens, start=1)))
    ]
    return torch.stack(losses).mean()


def _embedding(views: TokenViews) -> Tensor:
    ((ours, theirs),) = views.pairs("embedding", [(0, 0)])
    return token_distillation.token_loss(ours, theirs, views.mask, total=views.counts.tokens)


def _cosine(views: TokenViews) -> Tensor:
    ((ours, theirs),) = views.pairs("cosine", [(views.student.model.layers, views.teacher.model.layers)])
    return token_distillation.cosine_loss(ours, theirs, views.mask, total=views.counts.tokens)


def _attention(views: TokenViews) -> Tensor:
    losses = []
    for ours, theirs in enumerate(views.match.tokens, start=1):
        with torch.no_grad():
            target = views.teacher.attention(theirs)
        scores = views.student.attention(ours)
        losses.append(token_distillation.attention_loss(scores, target, views.mask, total=views.counts.token_pairs))
    return torch.stack(losses).mean()


def _relation(views: TokenViews) -> Tensor:
    last = views.student.model.layers
    queries, keys, values = views.student.model.projections(last, views.student.states[last - 1])
    with torch.no_grad():
        before = views.teacher.states[views.match.relation - 1]
        their_queries, their_keys, their_values = views.teacher.model.projections(views.match.relation, before)
    mask, heads, total = views.mask, views.match.heads, views.counts.documents
    attended = token_distillation.relation_loss((queries, keys), (their_queries, their_keys), mask, heads, total=total)
    valued = token_distillation.relation_loss((values, values), (their_values, their_values), mask, heads, total=total)
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
    "listwise": lambda s, t, w: distillation.listwise_loss(
        s.scores, t.scores, s.groups, w.temperature, total=s.counts.lists
    ),
    "infonce": lambda s, t, _: distillation.infonce_loss(s.scores, t.scores, s.groups, total=s.counts.lists),
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
    """Layers of student and teacher, 0 for the embeddings, whose states of all tokens the weighted terms read."""
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
