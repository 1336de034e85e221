"""The time that a request may still take, and whether its client still waits; checked before each piece of work."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serving.errors import ClientGoneError, DeadlineError

ANSWER_SHARE, ANSWER_S = 0.1, 0.05
"""Time kept back for making the answer: a share of the request's time, and the most in seconds."""


class _Leaving:
    """Whether nobody waits any more, and whom to tell when that happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_cancel: list[Callable[[], None]] = []
        self.gone = False

    def tell(self, call: Callable[[], None]) -> None:
        """Has `call` called when nobody waits any more; at once if that is so already."""
        with self._lock:
            if not self.gone:
                self._on_cancel.append(call)
                return
        call()

    def forget(self, call: Callable[[], None]) -> None:
        with self._lock:
            if call in self._on_cancel:
                self._on_cancel.remove(call)

    def leave(self) -> None:
        """Notes that nobody waits any more, and calls what was told."""
        with self._lock:
            self.gone = True
            calls, self._on_cancel = self._on_cancel, []
        for call in calls:
            call()


class RunClock:
    """The seconds that runners have worked for one request; those of two runners at once count twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = 0.0
        self._present: dict[int, float] = {}
        """Runner → when its present run for the request began."""

    def begin(self, runner: int) -> None:
        """Notes that a runner begins to work for the request."""
        with self._lock:
            self._present[runner] = time.monotonic()

    def end(self, runner: int) -> None:
        """Adds the seconds of the runner's present work."""
        with self._lock:
            self._ended += time.monotonic() - self._present.pop(runner)

    @property
    def seconds(self) -> float:
        """Seconds of runs that have ended, and of present ones until now."""
        with self._lock:
            now = time.monotonic()
            return self._ended + sum(now - began for began in self._present.values())


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which nothing more is done for a request."""

    until: float
    """On the clock of `time.monotonic`."""
    seconds: float
    """The time that the request was given, for the message."""
    runs: RunClock | None = field(default=None, compare=False)
    """Counts the work that is done for the request; None where nobody asks."""
    _leaving: _Leaving = field(default_factory=_Leaving)

    @classmethod
    def after(cls, seconds: float, runs: RunClock | None = None) -> "Deadline":
        """The deadline this many seconds from now."""
        return cls(time.monotonic() + seconds, seconds, runs)

    @classmethod
    def never(cls) -> "Deadline":
        """A deadline that does not pass."""
        return cls(math.inf, math.inf)

    def earlier(self, seconds: float) -> "Deadline":
        """A deadline that passes `seconds` earlier, so that time is left to make the answer; one that never does stays.

        Args:
            seconds: any part of what remains, which is infinite where the deadline does not pass.
        """
        return replace(self, until=self.until - seconds) if math.isfinite(self.until) else self

    def with_reserve(self) -> "Deadline":
        """An earlier deadline that leaves ANSWER_SHARE of the time, at most ANSWER_S, for making the answer."""
        return self.earlier(min(ANSWER_SHARE * self.seconds, ANSWER_S))

    @property
    def remaining(self) -> float:
        """Seconds, never below 0."""
        return max(self.until - time.monotonic(), 0.0)

    @property
    def patience(self) -> float:
        """Seconds to wait for something, as the waits of `threading` take them."""
        return min(self.remaining, threading.TIMEOUT_MAX)

    @property
    def over(self) -> bool:
        """Nobody waits any more, or the time has passed."""
        return self._leaving.gone or time.monotonic() >= self.until

    def cancel(self) -> None:
        """Says that nobody waits any more."""
        self._leaving.leave()

    def on_cancel(self, call: Callable[[], None]) -> None:
        """Has `call` called once when nobody waits any more; at once if that is so already."""
        self._leaving.tell(call)

    def forget(self, call: Callable[[], None]) -> None:
        """Takes back an `on_cancel`."""
        self._leaving.forget(call)

    def passed(self) -> DeadlineError:
        """The error to answer with when the time is over."""
        return DeadlineError(
            f"not finished in {self.seconds:g} s; what was scored until then is kept, so asking again goes on from "
            "there; send fewer documents, or allow more time with the header x-request-timeout-ms"
        )

    def check(self) -> None:
        """Raises an error once the time is over or the client is gone.

        Raises:
            ClientGoneError: the client has closed the connection.
            DeadlineError: the deadline has passed.
        """
        if self._leaving.gone:
            raise ClientGoneError("the client closed the connection")
        if time.monotonic() >= self.until:
            raise self.passed()
