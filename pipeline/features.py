"""The features of a query's candidates, and the linear weights that turn them into the final score.

`pipeline.training.fusion` fits the weights; the service and reports apply them, so all three order alike.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.errors import ArtifactError, SchemaError

RRF_K = 60
"""Constant k of reciprocal-rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009."""

FEATURES = (
    "bm25",
    "bm25_reciprocal_rank",
    "encoder",
    "encoder_reciprocal_rank",
    "ranker",
    "ranker_reciprocal_rank",
)
"""Names of the features that every release has, in the order of the columns of `table`."""

_FIELD_FEATURE = re.compile(r"(bm25|encoder)\.[A-Za-z_][A-Za-z0-9_]*")


RerankOrder = Literal["ranker", "fused"]
"""The ranker's scores alone, or the fused scores of `Fusion`."""


def field_feature(score: str, field: str) -> str:
    """The name of a field's own score among the features: `bm25.title` is BM25 over the titles alone."""
    return f"{score}.{field}"


def field_features(names: Iterable[str]) -> tuple[str, ...]:
    """The features of single fields among these names, in the order of their columns in `table`."""
    return tuple(sorted(name for name in names if _FIELD_FEATURE.fullmatch(name)))


def by_score(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; of equal scores the first stays first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def reciprocal_ranks(scores: Sequence[float], k: float = RRF_K) -> list[float]:
    """(k + 1) / (k + rank) of each score, 1 for the best; of equal scores the one that stands first ranks first."""
    reciprocals = [0.0] * len(scores)
    for rank, index in enumerate(by_score(scores), start=1):
        reciprocals[index] = (k + 1) / (k + rank)
    return reciprocals


def reciprocal_rank_fusion(*systems: Sequence[float]) -> list[float]:
    """The sum of each candidate's reciprocal ranks in several systems' scores; higher is better."""
    return [sum(parts) for parts in zip(*(reciprocal_ranks(scores) for scores in systems), strict=True)]


def table(
    bm25: Sequence[float],
    encoder: Sequence[float],
    ranker: Sequence[float],
    fields: Mapping[str, Sequence[float]] | None = None,
) -> list[tuple[float, ...]]:
    """The features of one query's candidates, (candidates, features): FEATURES, then `field_features(fields)`.

    Args:
        bm25: (candidates,) scores ≥ 0; divided by the pool's largest, as their scale depends on the query.
        encoder: (candidates,) cosines.
        ranker: (candidates,) raw scores of the cross-encoder.
        fields: `field_feature` → (candidates,) scores of one field; those of BM25 are divided by their own largest.

    Raises:
        SchemaError: the lengths differ, or a score is not a number.
    """
    fields = fields or {}
    if not len(bm25) == len(encoder) == len(ranker) or any(len(scores) != len(bm25) for scores in fields.values()):
        raise SchemaError(
            f"features: {len(bm25)} bm25, {len(encoder)} encoder and {len(ranker)} ranker scores"
            + "".join(f", {len(scores)} {name} scores" for name, scores in fields.items())
        )
    if not all(math.isfinite(score) for scores in (bm25, encoder, ranker, *fields.values()) for score in scores):
        raise SchemaError("features: a score is not a finite number; look at the model that made it")
    columns = (
        _scaled(bm25),
        reciprocal_ranks(bm25),
        encoder,
        reciprocal_ranks(encoder),
        ranker,
        reciprocal_ranks(ranker),
        *(_scaled(fields[name]) if name.startswith("bm25.") else fields[name] for name in field_features(fields)),
    )
    return list(zip(*columns, strict=True))


def _scaled(scores: Sequence[float]) -> list[float]:
    top = max(scores, default=0.0) or 1.0
    return [score / top for score in scores]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion:
    """A linear score over the features; only its order within a query means anything."""

    weights: Mapping[str, float]
    """One for each of FEATURES, and for each feature of a single field that the release has."""
    rerank: RerankOrder = "ranker"
    """The order that `/rerank` gives to texts which come without first-stage scores: by the ranker alone, or by this
    score, with BM25 by the words of the release's own documents."""

    def __post_init__(self) -> None:
        if not all(
            isinstance(weight, int | float) and math.isfinite(weight) and not isinstance(weight, bool)
            for weight in self.weights.values()
        ):
            raise ArtifactError(f"fusion: a weight is not a finite number ({dict(self.weights)}); fit it again")
        if set(self.weights) != set(self.names):
            raise ArtifactError(f"fusion: weights for {sorted(self.weights)}, not for {sorted(FEATURES)}; fit it again")
        if self.rerank not in ("ranker", "fused"):
            raise ArtifactError(f"fusion: rerank is {self.rerank!r}, neither ranker nor fused; fit it again")

    @property
    def fields(self) -> tuple[str, ...]:
        """The features of single fields that have a weight; see `field_feature`."""
        return field_features(self.weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The features in the order of `table`'s columns."""
        return (*FEATURES, *self.fields)

    def scores(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """(candidates,) final scores of `table`'s rows."""
        weights = [self.weights[name] for name in self.names]
        return [sum(weight * value for weight, value in zip(weights, row, strict=True)) for row in rows]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Fusion":
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"fusion: not readable ({error}); fit it again") from error


def in_fused_order(fusion: Fusion | None, bm25: Sequence[float] | None, fused: bool | None = None) -> bool:
    """Whether texts that are sent with a query are answered in the fused order.

    The request's own wish decides; without one, first-stage scores ask for it; without these, the release does.

    Args:
        fusion: the fusion of the release; None where it has none.
        bm25: first-stage scores of the texts; None where the request has none.
        fused: the request's own wish; None where it has none.
    """
    if fused is not None:
        return fused
    return bm25 is not None or (fusion is not None and fusion.rerank == "fused")
