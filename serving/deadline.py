"""How long a request may still take, and whether anybody waits for it; asked before each piece of work."""

import math
import threading
import time
from dataclasses import dataclass, field

from serving.errors import ClientGoneError, DeadlineError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which nothing more is done for a request."""

    until: float
    """On the clock of `time.monotonic`."""
    seconds: float
    """What it was given, for the message."""
    _gone: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds, seconds)

    @classmethod
    def never(cls) -> "Deadline":
        return cls(math.inf, math.inf)

    @property
    def remaining(self) -> float:
        """Seconds, never below 0."""
        return max(self.until - time.monotonic(), 0.0)

    def cancel(self) -> None:
        """Says that nobody waits any more."""
        self._gone.set()

    def passed(self) -> DeadlineError:
        """The error to answer with when the time is over."""
        return DeadlineError(
            f"not finished in {self.seconds:g} s; what was scored until then is kept, so asking again goes on from "
            "there; send fewer documents, or allow more time with RELEVANCE_DEADLINE_S"
        )

    def check(self) -> None:
        """Nothing, while there is time and somebody waits.

        Raises:
            ClientGoneError, DeadlineError
        """
        if self._gone.is_set():
            raise ClientGoneError("the client closed the connection")
        if time.monotonic() >= self.until:
            raise self.passed()
