"""The state of one search while it runs: which models answered, the scores of its candidates, the time of its parts."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pipeline import features
from pipeline.features import Fusion
from serving.errors import BusyError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.scoring.answers import Missing

T = TypeVar("T")

log = logging.getLogger(__name__)


class ModelAttempts:
    """The models of one search, none of which is asked after one was missing."""

    def __init__(self, options: RequestOptions, degrade: bool) -> None:
        """
        Args:
            options: of the search, for the calls.
            degrade: go on without a model that fails or is late; False raises its error.
        """
        self.options = options
        self.missing: Missing | None = None
        self.failed = False
        self._degrade = degrade

    def attempt(self, name: Missing, call: Callable[[], T]) -> T | None:
        """The result of `call`, or None where the model failed, was late, or one before it was missing."""
        if self.missing is not None:
            return None
        try:
            return call()
        except (InferenceError, DeadlineError, BusyError) as error:
            if not self._degrade:
                raise
            log.warning("a search goes on without the %s: %s", name, error)
            self.missing = name
            self.failed = isinstance(error, InferenceError)
            return None


@dataclass(frozen=True, slots=True)
class CandidatePool:
    """The first-stage scores of a query's candidates, each (candidates,)."""

    bm25: Sequence[float]
    cosines: Sequence[float] | None
    """None where the encoder is missing."""
    fields: Mapping[str, Sequence[float]]
    """Feature of a single field that the fusion weighs → scores."""

    def before(self) -> Sequence[float]:
        """Scores of the order before the ranker."""
        return self.bm25 if self.cosines is None else features.reciprocal_rank_fusion(self.bm25, self.cosines)

    def table(self, ranker: Sequence[float] | None) -> Sequence[tuple[float, ...] | None]:
        """The features of each candidate; None for each where a model is missing."""
        if ranker is None or self.cosines is None:
            return [None] * len(self.bm25)
        return features.table(self.bm25, self.cosines, ranker, self.fields)

    def final(self, fusion: Fusion | None, ranker: Sequence[float] | None) -> Sequence[float]:
        """Scores of the final order: fused, or those before the ranker where a model is missing."""
        if ranker is None or self.cosines is None or fusion is None:
            return self.before()
        return fusion.scores(features.table(self.bm25, self.cosines, ranker, self.fields))


class Stopwatch:
    """Milliseconds of named parts and of the whole."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._parts[name] = time.perf_counter() - began

    def milliseconds(self) -> dict[str, float]:
        parts = {**self._parts, "total": time.perf_counter() - self._began}
        return {name: round(1000 * seconds, 2) for name, seconds in parts.items()}
