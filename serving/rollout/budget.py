"""The share of the runners' time that copies of requests may take, so that a trial costs a known amount at most."""

import threading
import time

SHARE = 0.1
"""Share of the runners' time that copies may take in the long run."""
SAVED_S = 10.0
"""Seconds of unused time that are saved up, for each runner."""


class CopyBudget:
    """Runner seconds that copies may still take; safe to use from many threads.

    The balance grows by SHARE of each second for each runner, up to SAVED_S for each. A copy begins while it is above
    0, and is charged afterwards what its runs took. Half of what can be saved is kept for urgent copies.
    """

    def __init__(self, runners: int) -> None:
        self._runners = runners
        self._lock = threading.Lock()
        self._balance = self._most = SAVED_S * runners
        self._seen = time.monotonic()

    def allows(self, *, urgent: bool) -> bool:
        """Whether a copy may begin now."""
        with self._lock:
            self._grow()
            return self._balance > (0 if urgent else self._most / 2)

    def charge(self, run_s: float) -> None:
        """Takes the seconds of runs of a copy off the balance."""
        with self._lock:
            self._grow()
            self._balance -= run_s

    def _grow(self) -> None:
        now = time.monotonic()
        self._balance = min(self._balance + SHARE * self._runners * (now - self._seen), self._most)
        self._seen = now
