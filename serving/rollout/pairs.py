"""Pairs: one question put to two releases, how each ended, and which of the models is to blame for that."""

from dataclasses import dataclass
from typing import Literal

from serving.rollout.comparison import Comparison, ComparisonResult

COPY_S = 30.0
"""Seconds that each release has for a question. They are ours: what a client allows for its own request is no measure
of a model."""
OWN_SHARE = 0.5
"""A release is to blame for a late answer only if its models ran for at least this share of the time; one that waited
longer than it ran was held up by others."""

Ending = Literal["answered", "failed", "late", "stopped"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One release's try to answer a question."""

    ending: Ending
    seconds: float = 0.0
    """From the question to the end."""
    run_s: float = 0.0
    """Seconds that runners worked for it."""
    answer: ComparisonResult | None = None
    """Only of one that answered."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The attempts of the live release and of the one on trial at one question."""

    live: Attempt
    trial: Attempt
    comparison: Comparison | None = None
    """Only where both answered."""

    @property
    def answered(self) -> bool:
        return self.live.ending == self.trial.ending == "answered"

    def blames(self, max_ratio: float, deadline_s: float) -> tuple[bool, bool] | None:
        """Whether the live model and the one on trial are to blame for an answer that is missing or came too late.

        Args:
            max_ratio: times as long as the other release's runs, that the runs of a late one may take.
            deadline_s: what the service promises; an answer after it is late if the other release met it.

        Returns:
            (live, trial); None where nobody can tell, so that the pair says nothing.
        """
        live = _to_blame(self.live, self.trial, max_ratio, deadline_s)
        trial = _to_blame(self.trial, self.live, max_ratio, deadline_s)
        return None if live is None or trial is None else (live, trial)


def _to_blame(attempt: Attempt, other: Attempt, max_ratio: float, deadline_s: float) -> bool | None:
    if attempt.ending == "failed":
        return True
    # Both models may need long for a question, or other requests may have held one up.
    slower = other.ending == "answered" and attempt.run_s > max_ratio * other.run_s
    if attempt.ending == "answered":
        late = attempt.seconds > deadline_s >= other.seconds
        return late and slower and attempt.run_s >= OWN_SHARE * deadline_s
    return True if attempt.ending == "late" and slower and attempt.run_s >= OWN_SHARE * COPY_S else None
