"""Texts through an engine: tokenised a few at a time, while the runners are at work on those before.

Runs in a worker thread, so the event loop never waits for a model. What the runners gave is kept, also of a request
that fails or runs out of time.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from pipeline.passages import Passages
from pipeline.text import counted
from serving.errors import ClientGoneError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions, admit
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, Throughput
from serving.runtime.job import Job
from serving.runtime.passage_inputs import PassageInput
from serving.runtime.scheduler import Scheduler

CHUNK = 16
"""Texts that are tokenised at a time, before the runners get them."""

Role = Literal["query", "document"]
Check = Callable[[], None]

log = logging.getLogger(__name__)


class ScoringEngine(Protocol):
    """The part of an engine that scoring and embedding need."""

    identity: str
    pace: Throughput
    scheduler: Scheduler

    def job(self, deadline: Deadline, priority: Priority) -> Job: ...


class Ranker(ScoringEngine, Protocol):
    """An engine with a ranker."""

    def pairs(self, query: str, documents: Sequence[str], *, remember: bool, check: Check) -> list[Item]: ...

    def cut(
        self, query: str, documents: Sequence[str], passages: Passages, *, remember: bool, check: Check
    ) -> list[list[PassageInput]]: ...


class Encoder(ScoringEngine, Protocol):
    """An engine with an encoder."""

    def texts(self, texts: Sequence[str], role: Role, *, remember: bool, check: Check) -> list[Item]: ...


def computed(
    engine: ScoringEngine,
    numbers: list[int],
    inputs: Callable[[list[int]], list[Item]],
    label: Callable[[int], str],
    options: RequestOptions,
    *,
    eager: bool,
) -> Iterator[tuple[int, Any]]:
    """Yields the index and the output of each input, or its InferenceError, as the runners end.

    Args:
        label: index → name of the text, for messages.
        eager: have all wait in the queue at once, if they can be done in time; else a chunk after the other, no
            further than the time goes.

    Raises:
        BusyError: eager, and they cannot.
    """
    failed = 0
    for number, outcome in _outcomes(engine, numbers, inputs, options, eager=eager):
        if not isinstance(outcome, Exception):
            yield number, outcome
            continue
        failed += 1
        words = f"{label(number)}: the model gave no usable answer for this text"
        if failed == 1:  # The others have the same reason more often than not.
            log.error("%s %s", engine.identity[:8], words, exc_info=outcome)
        yield number, InferenceError(words)
    if failed > 1:
        log.error("%s: %s of this request failed", engine.identity[:8], counted(failed, "text"))


def _outcomes(
    engine: ScoringEngine,
    numbers: list[int],
    inputs: Callable[[list[int]], list[Item]],
    options: RequestOptions,
    *,
    eager: bool,
) -> Iterator[tuple[int, Any]]:
    """Yields the index and the output of each input, or the exception that it met; see `_computed`."""
    if eager:
        admit(engine.scheduler, engine.pace, 0, options)  # Before anything is tokenised.
    with engine.job(options.deadline, options.priority) as job:
        for start in range(0, len(numbers), CHUNK):
            try:
                options.deadline.check()
                items = inputs(numbers[start : start + CHUNK])
            except (DeadlineError, ClientGoneError):
                # Runners were at work on the chunks before this one; what they gave is kept.
                yield from ((numbers[number], outcome) for number, outcome in job.ended())
                raise
            if eager and start == 0:
                tokens = sum(len(item.ids) for item in items) * len(numbers) / len(items)
                admit(engine.scheduler, engine.pace, tokens, options)
            job.add(items)
            if not eager or start + CHUNK >= len(numbers):
                yield from ((numbers[number], outcome) for number, outcome in job)
