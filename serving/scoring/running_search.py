"""The state of one search while it runs: what it asks for, which models answered, the time of its parts."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from serving.errors import BusyError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.scoring.answers import Missing, SearchDetails

T = TypeVar("T")

log = logging.getLogger(__name__)


class ModelAttempts:
    """The models of one search, none of which is asked after one was missing."""

    def __init__(self, options: RequestOptions, degrade: bool) -> None:
        """
        Args:
            options: deadline and caching of every call.
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


@dataclass(frozen=True, slots=True)
class RunningSearch:
    """One search while it runs."""

    query: str
    """Cleaned, as the indexes and models read it."""
    details: SearchDetails
    options: RequestOptions
    """Deadline and priority of the request as a whole; the models have a little less time, see `ModelAttempts`."""
    models: ModelAttempts
    watch: Stopwatch = field(default_factory=Stopwatch)
