"""Random letters, which show how near the encoder's nearest document is to a query that means nothing."""

import logging
import random
import string
from collections.abc import Sequence

import numpy as np

from index.hits import Hit
from index.semantic import SemanticIndex
from serving.errors import BusyError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.scoring.embedder import Embedder

QUERIES = 32
"""Number of queries of random letters."""
SHARE = 0.95
"""Share of random-letter queries whose nearest document has a cosine below the chance level; see `level`."""

log = logging.getLogger(__name__)


def queries() -> list[str]:
    """QUERIES texts of one to four words of random letters, the same at each call."""
    rng = random.Random(0)
    return [
        " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(rng.randint(1, 4)))
        for _ in range(QUERIES)
    ]


def level(cosines: Sequence[float]) -> float:
    """The cosine below which SHARE of the nearest documents of random letters lie; 1 where there are none."""
    return float(np.quantile(cosines, SHARE)) if cosines else 1.0


class ChanceLevel:
    """The chance level of a release, measured once: the cosine of random letters with their nearest documents."""

    def __init__(self, embedder: Embedder, index: SemanticIndex) -> None:
        self._embedder, self._index = embedder, index
        self._level: float | None = None

    def exceeded(self, by_words: Sequence[Hit], by_meaning: Sequence[Hit], options: RequestOptions) -> bool | None:
        """Whether anything may answer a query: a document has a word of it, or one lies nearer than chance brings.

        Args:
            by_words, by_meaning: results of BM25 and of the encoder for the query, the best first.

        Returns:
            None where the level is not known, and the time does not suffice to measure it.
        """
        if by_words:
            return True
        if self._level is None:
            try:
                vectors = self._embedder.vectors(queries(), "query", options).values
            except (InferenceError, DeadlineError, BusyError) as error:
                log.warning("whether anything fits a query is not known: %s", error)
                return None
            nearest = self._index.search_batch(np.stack(vectors), 1)
            self._level = level([hits[0].score for hits in nearest if hits])
        return bool(by_meaning) and by_meaning[0].score > self._level
