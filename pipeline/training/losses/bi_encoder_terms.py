"""The terms of a bi-encoder's loss, in one table, as `cross_encoder_terms` has those of a cross-encoder.

A term is computed where its weight is above 0, at each width at which a vector must rank alone. A new term takes a line
in `BI_ENCODER_TERMS`, a field in `BiEncoderWeights` and a key in the config; `BiEncoderWeights.of_config` refuses a
config with a weight that no term has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.config import EncoderConfig
from pipeline.training.losses import distillation, ranking
from pipeline.training.losses.cross_encoder_terms import weights_by_term


@dataclass(frozen=True, kw_only=True, slots=True)
class BiEncoderWeights:
    """Weights of the terms by their name in the table, and the terms' hyperparameters."""

    margin: float = 0.0
    in_batch: float = 0.0
    similarity: float = 0.0

    temperature: float = 0.05
    similarity_temperature: float = 0.05

    @classmethod
    def of_config(cls, config: EncoderConfig) -> "BiEncoderWeights":
        """The weights of the encoder's config section.

        Raises:
            ConfigError: the section has a weight of no known term.
        """
        settings = {
            field.name: getattr(config, field.name) for field in fields(cls) if field.name not in BI_ENCODER_TERMS
        }
        return cls(**weights_by_term(config, {f"{name}_weight": name for name in BI_ENCODER_TERMS}), **settings)

    def active(self) -> dict[str, float]:
        """The weights above 0, in the order of the table."""
        return {name: getattr(self, name) for name in BI_ENCODER_TERMS if getattr(self, name)}


@dataclass(frozen=True, kw_only=True, slots=True)
class BiEncoderCounts:
    """The counts of an entire step, by which the sums of each of its chunks are divided."""

    documents: int
    answered: float
    """Number of queries with a document above grade 0; one that is known from clicks alone counts `click_weight`."""
    texts: int
    """Number of distinct queries and documents of each chunk, summed over the chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunk:
    """The vectors of a chunk's texts at one width, with what is known about its pairs."""

    queries: Tensor
    """(queries, width) of unit length."""
    documents: Tensor
    """(documents, width) of unit length."""
    query: Tensor
    """(pairs,) int64, row in `queries`."""
    document: Tensor
    """(pairs,) int64, row in `documents`."""
    scale: Tensor
    """Scalar, the factor between cosines and targets; learned."""
    targets: Tensor
    """(pairs,) scores of the teacher, scaled so that they differ by about 1 within a query."""
    positive: Tensor
    """(queries, documents) bool, a query's documents of its highest grade."""
    allowed: Tensor
    """(queries, documents) bool, documents that may be contrasted with the query."""
    base_vectors: Tensor | None
    """(queries + documents, hidden) unit vectors of the untrained base; None without the similarity term."""
    counts: BiEncoderCounts
    positive_by_people: Tensor | None = None
    """The same as `positive` without grades that rest on clicks; None where these weigh as much as others."""
    click_weight: float = 1.0


def _margin(chunk: EncodedChunk, _: BiEncoderWeights) -> Tensor:
    cosines = (chunk.queries[chunk.query] * chunk.documents[chunk.document]).sum(1)  # (pairs,)
    return ranking.margin_loss(cosines * chunk.scale, chunk.targets, chunk.query, total=chunk.counts.documents)


def _in_batch(chunk: EncodedChunk, weights: BiEncoderWeights) -> Tensor:
    similarities = chunk.queries @ chunk.documents.T  # (queries, documents)

    def contrast(positive: Tensor) -> Tensor:
        return ranking.contrast_loss(
            similarities, positive, chunk.allowed, weights.temperature, total=chunk.counts.answered
        )

    if chunk.positive_by_people is None:
        return contrast(chunk.positive)
    share = chunk.click_weight
    return share * contrast(chunk.positive) + (1 - share) * contrast(chunk.positive_by_people)


def _similarity(chunk: EncodedChunk, weights: BiEncoderWeights) -> Tensor:
    assert chunk.base_vectors is not None
    vectors = torch.cat([chunk.queries, chunk.documents])
    return distillation.similarity_loss(
        vectors, chunk.base_vectors, weights.similarity_temperature, total=chunk.counts.texts
    )


BI_ENCODER_TERMS: Mapping[str, Callable[[EncodedChunk, BiEncoderWeights], Tensor]] = {
    "margin": _margin,
    "in_batch": _in_batch,
    "similarity": _similarity,
}


def terms_at_widths(chunks: Sequence[EncodedChunk], weights: BiEncoderWeights) -> dict[str, Tensor]:
    """Each term with a weight, mean over the widths.

    Args:
        chunks: the same chunk, once for each width.
        weights: which terms are computed, and their hyperparameters.

    Source: Kusupati et al., Matryoshka representation learning, NeurIPS 2022, arXiv:2205.13147.
    """
    return {
        name: torch.stack([BI_ENCODER_TERMS[name](chunk, weights) for chunk in chunks]).mean()
        for name in weights.active()
    }
