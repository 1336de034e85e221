"""Times that are long enough on the busiest machine: they end a test that hangs, and decide about no other."""

import time
from typing import Any

from serving.settings import Settings

PATIENCE_S = 60.0


def patient(**values: Any) -> Settings:
    """Settings in which a request has all the time it may need, unless the test says how much."""
    return Settings(**{"deadline_s": PATIENCE_S, "max_deadline_s": PATIENCE_S, **values})


class Clock:
    """The clock of deadlines, which a test sets forward; no test waits for time to pass."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s
