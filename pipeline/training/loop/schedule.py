"""Which steps a training takes and how fast it learns at each: so many epochs, or until a bound of tokens or time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.config import LoopConfig
from pipeline.training.loop.checkpoint import Progress

Chunk = TypeVar("Chunk")

FINAL_RATE = 0.1
"""Of the peak, at the end of every training."""

FIRST_RATE = 0.01
"""Of the peak, at least, where a bound's share used is still near 0."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Chunk]):
    """One optimizer step."""

    chunks: Sequence[Chunk]
    """Go through the module one after the other; their gradients add up."""
    examples: int
    """Shown as progress, in the task's unit."""
    tokens: int
    """Real tokens."""
    padded: int
    """Tokens with padding."""


Plan = Callable[[int], Sequence[Step[Chunk]]]
"""The steps of an epoch, counted from 0; a pure function."""


class Schedule(Protocol[Chunk]):
    """The way from the first step to the last."""

    def steps(self, begin: int) -> Iterator[Step[Chunk]]:
        """The steps from this one on, counted from 0; may go on for ever."""

    def finished(self, progress: Progress) -> bool: ...

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:
        """Share of the peak learning rate at the step that comes after this progress."""

    def marks(self, progress: Progress, parts: int) -> int:
        """How many of so many equal parts of the way lie behind."""

    def examples(self, progress: Progress) -> float:
        """Of the whole way, as far as it is known."""


class PlannedSchedule(Generic[Chunk]):
    """So many epochs: every step is known from the start."""

    def __init__(self, plan: Plan[Chunk], config: LoopConfig) -> None:
        planned = [step for epoch in range(math.ceil(config.epochs)) for step in plan(epoch)]
        self._steps = planned[: max(1, round(len(planned) * config.epochs / math.ceil(config.epochs)))]
        self._warmup_share = config.warmup_share
        self._examples = sum(step.examples for step in self._steps)

    def steps(self, begin: int) -> Iterator[Step[Chunk]]:
        return iter(self._steps[begin:])

    def finished(self, progress: Progress) -> bool:
        return progress.step >= len(self._steps)

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:  # noqa: ARG002 (its place says all)
        return schedule(progress.step, len(self._steps), self._warmup_share)

    def marks(self, progress: Progress, parts: int) -> int:
        return sum(round(len(self._steps) * part / parts) <= progress.step for part in range(1, parts + 1))

    def examples(self, progress: Progress) -> float:  # noqa: ARG002
        return self._examples


class BoundedSchedule(Generic[Chunk]):
    """Epoch after epoch until `max_tokens` are read or `max_seconds` are over, whichever comes first.

    The learning rate follows the share of the bound that is used, so the training ends as slowly as any other,
    however fast the machine is. What a bound of tokens does is a function of the config alone; a bound of time
    depends on the machine.
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
        return self._share(progress.tokens, progress.seconds) >= 1

    def rate(self, progress: Progress, step: Step[Chunk]) -> float:
        seconds = progress.seconds / progress.step if progress.step else 0.0  # What a step took so far.
        share = self._share(progress.tokens + step.tokens, progress.seconds + seconds)
        warmup = self._config.warmup_share
        if share < warmup:
            return max(FIRST_RATE, share / warmup)
        return 1 - (1 - FINAL_RATE) * (share - warmup) / max(1e-9, 1 - warmup)

    def marks(self, progress: Progress, parts: int) -> int:
        return int(self._share(progress.tokens, progress.seconds) * parts)

    def examples(self, progress: Progress) -> float:
        return progress.examples / max(1e-9, self._share(progress.tokens, progress.seconds))

    def _share(self, tokens: int, seconds: float) -> float:
        """Of the bound that is used, at most 1."""
        bounds = ((tokens, self._config.max_tokens), (seconds, self._config.max_seconds))
        return min(1.0, max(used / bound for used, bound in bounds if bound))


def course(plan: Plan[Chunk], config: LoopConfig) -> Schedule[Chunk]:
    """The course that a config asks for."""
    return BoundedSchedule(plan, config) if config.max_tokens or config.max_seconds else PlannedSchedule(plan, config)


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then linear to a tenth."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - FINAL_RATE) * (step - warmup) / max(1, steps - 1 - warmup)
