"""The steps of a training and the learning rate at each: for a number of epochs, or up to a bound of tokens or time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.config import LoopConfig
from pipeline.training.loop.checkpoint import Progress

Chunk = TypeVar("Chunk")

FINAL_RATE = 0.1
"""The learning rate at the end of every training, as a share of the peak."""

LEAST_TRAINING = 0.25
"""Share of `max_seconds` that the steps get at least, however long preparation and evaluations take."""

EVALUATION_SHARE = 0.3
"""Share of the time of steps that evaluations may take where time is bounded; fewer are made where it would be more."""

FIRST_RATE = 0.01
"""The least learning rate of a bounded training's warm-up, as a share of the peak."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Chunk]):
    """One optimizer step."""

    chunks: Sequence[Chunk]
    """Parts that go through the module one after the other; their gradients add up."""
    examples: int
    """Number of examples in the task's unit, for the progress bar."""
    tokens: int
    """Number of real tokens."""
    padded: int
    """Number of tokens, padding included."""


Plan = Callable[[int], Sequence[Step[Chunk]]]
"""The steps of an epoch, counted from 0; a pure function."""


class Schedule(Protocol[Chunk]):
    """All steps of a training, from the first to the last, and the learning rate at each."""

    def steps(self, begin: int) -> Iterator[Step[Chunk]]:
        """The steps from number `begin` on, counted from 0; may never end."""

    def finished(self, progress: Progress) -> bool:
        """Whether the training is complete."""

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:
        """The share of the peak learning rate at the step that follows this progress."""

    def parts_done(self, progress: Progress, parts: int) -> int:
        """The number of finished parts when the training is divided into `parts` equal ones."""

    def examples(self, progress: Progress) -> float:
        """The number of examples in the entire training, as far as it is known."""

    def evaluations(self, progress: Progress) -> int:
        """The number of evaluations after the first one, spread evenly over the training."""


class PlannedSchedule(Generic[Chunk]):
    """A number of epochs: every step is known from the start."""

    def __init__(self, plan: Plan[Chunk], config: LoopConfig) -> None:
        planned = [step for epoch in range(math.ceil(config.epochs)) for step in plan(epoch)]
        self._steps = planned[: max(1, round(len(planned) * config.epochs / math.ceil(config.epochs)))]
        self._warmup_share = config.warmup_share
        self._evaluations = config.evaluations
        self._examples = sum(step.examples for step in self._steps)

    def steps(self, begin: int) -> Iterator[Step[Chunk]]:
        return iter(self._steps[begin:])

    def finished(self, progress: Progress) -> bool:
        return progress.step >= len(self._steps)

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:  # noqa: ARG002 (all steps count the same)
        return linear_rate(progress.step, len(self._steps), self._warmup_share)

    def parts_done(self, progress: Progress, parts: int) -> int:
        return sum(round(len(self._steps) * part / parts) <= progress.step for part in range(1, parts + 1))

    def examples(self, progress: Progress) -> float:  # noqa: ARG002
        return self._examples

    def evaluations(self, progress: Progress) -> int:  # noqa: ARG002
        return self._evaluations


class BoundedSchedule(Generic[Chunk]):
    """Epoch after epoch until `max_tokens` are read or `max_seconds` are over, whichever comes first.

    The seconds are those of the whole stage. What its preparation took is over already, and the last evaluation is
    still to come:

        0 ── preparation, first evaluation ── steps and evaluations ── last evaluation ── max_seconds

    The steps get LEAST_TRAINING of the seconds at least, however long the rest takes.

    The learning rate follows the share of the bound that is used, so it ends at FINAL_RATE on a machine of any speed.
    A training bounded by tokens depends on the config alone; one bounded by time depends on the machine.
    """

    def __init__(self, plan: Plan[Chunk], config: LoopConfig) -> None:
        self._plan = plan
        self._config = config

    def steps(self, begin: int) -> Iterator[Step[Chunk]]:
        epoch = passed = 0
        while planned := self._plan(epoch):
            yield from planned[max(0, begin - passed) :]
            passed += len(planned)
            epoch += 1

    def finished(self, progress: Progress) -> bool:
        return self._share(progress, progress.tokens, progress.seconds) >= 1

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:
        seconds = progress.seconds / progress.step if progress.step else 0.0  # The next step takes about as long.
        share = self._share(progress, progress.tokens + step.tokens, progress.seconds + seconds)
        warmup = self._config.warmup_share
        if share < warmup:
            return max(FIRST_RATE, share / warmup)
        return 1 - (1 - FINAL_RATE) * (share - warmup) / max(1e-9, 1 - warmup)

    def parts_done(self, progress: Progress, parts: int) -> int:
        return int(self._share(progress, progress.tokens, progress.seconds) * parts)

    def examples(self, progress: Progress) -> float:
        return progress.examples / max(1e-9, self._share(progress, progress.tokens, progress.seconds))

    def _share(self, progress: Progress, tokens: int, seconds: float) -> float:
        """The share of the bound that is used, at most 1."""
        bounds = ((tokens, self._config.max_tokens), (seconds, self.training_seconds(progress)))
        return min(1.0, max(used / bound for used, bound in bounds if bound))

    def training_seconds(self, progress: Progress) -> float:
        """The seconds that are left for steps and their evaluations; 0 where there is no bound of time."""
        bound = self._config.max_seconds
        return max(LEAST_TRAINING * bound, bound - progress.preparation - progress.evaluation)

    def evaluations(self, progress: Progress) -> int:
        """The number of evaluations: as many as wanted, within EVALUATION_SHARE of the seconds, and at least one."""
        if not (self._config.evaluations and self._config.max_seconds and progress.evaluation):
            return self._config.evaluations
        affordable = int(EVALUATION_SHARE * self.training_seconds(progress) / progress.evaluation)
        return max(1, min(self._config.evaluations, affordable))


def schedule_of(plan: Plan[Chunk], config: LoopConfig) -> Schedule[Chunk]:
    """The schedule that a config describes: bounded where it sets a bound, else planned."""
    return BoundedSchedule(plan, config) if config.max_tokens or config.max_seconds else PlannedSchedule(plan, config)


def linear_rate(step: int, steps: int, warmup_share: float) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warm-up, then linear to FINAL_RATE."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - FINAL_RATE) * (step - warmup) / max(1, steps - 1 - warmup)
