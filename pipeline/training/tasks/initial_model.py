"""A cross-encoder before its training: the body of a base, and thresholds that already fit the grades of the pairs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.errors import TrainingError
from pipeline.models import tokenizers
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import pair_tokens
from pipeline.training.loop.pair_tokens import Pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class InputLength:
    """Numbers of tokens that a cross-encoder reads and that are kept of each text."""

    max_tokens: int
    """Maximum length of query and document together, special tokens included."""
    max_query_tokens: int
    """Tokens that are kept of a query."""
    document_tokens: int = 0
    """Tokens that are kept of each document, where they are more than `max_tokens` (for passages)."""


def untrained(
    base: Path, data: Artifact, pairs: Artifact, length: InputLength, *, seed: int
) -> tuple[CrossEncoder, Pairs]:
    """A new cross-encoder on the body in `base`, with thresholds from the pairs' grades, and the pairs in its tokens.

    Args:
        base: folder of an encoder of a known family.
        data: the documents and queries that the pairs name.
        pairs: graded pairs.
        seed: seed of the new head.

    Raises:
        ConfigError: no known encoder, no fast tokenizer, or too few positions for `max_tokens`.
        TrainingError: no pair has a grade above 0.
    """
    tokenizer = tokenizers.plain_tokenizer(tokenizers.load_tokenizer(base))
    longest = max(length.max_tokens, length.document_tokens)
    table = pair_tokens.read_pairs(data, pairs, tokenizer, max_query_tokens=length.max_query_tokens, max_tokens=longest)
    model = CrossEncoder.start(
        base,
        thresholds=first_thresholds(table),
        max_tokens=length.max_tokens,
        max_query_tokens=length.max_query_tokens,
        seed=seed,
    )
    return model, table


def first_thresholds(pairs: Pairs) -> list[float]:
    """(grades,) log odds of being below each grade over the training pairs: the best ordinal model without scores.

    Raises:
        TrainingError: no pair has a grade above 0.
    """
    top = int(pairs.grades.max(initial=0))
    if top < 1:
        raise TrainingError("no pair has a grade above 0, so there is nothing to learn; look at the judgments")
    counts = np.bincount(pairs.grades[pairs.indices("train")], minlength=top + 1) + 0.5
    below = np.cumsum(counts)[:-1]  # (grades,) documents under grade 1, 2, …
    return [float(value) for value in np.log(below / (counts.sum() - below))]
