"""Admission of requests: one that cannot be answered before its deadline is refused at once, with a time to ask again.

The estimate is the work that waits before the request, and its own, divided by the measured throughput of the runners.
Work that is due later waits behind it, so a request with a long deadline does not shut out one with a short deadline.
Cached texts are no work, so a request whose texts are all cached is answered however long the queue is.
"""

import math
from dataclasses import dataclass

from serving.errors import BusyError
from serving.runtime.deadline import Deadline
from serving.runtime.items import Priority, Throughput
from serving.runtime.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The deadline of a request, its class, and whether caches serve it."""

    deadline: Deadline
    priority: Priority = Priority.ONLINE
    remember: bool = True
    """False: no cached result is read for it, and none of its results is cached."""


def admit(scheduler: Scheduler, pace: Throughput, tokens: float, options: RequestOptions) -> None:
    """Admits work if a model can read this many further tokens before the deadline.

    Work that takes longer than its time even alone is admitted when nothing waits. It is not answered in time, but its
    results are cached, so the same request goes on from there when it comes again. Work of the batch class and probes
    are always admitted.

    Raises:
        BusyError: the model cannot read them in time.
    """
    if options.priority is not Priority.ONLINE:
        return
    remaining = options.deadline.remaining
    wait, own = scheduler.wait_s(options.deadline.until), pace.seconds(tokens) / scheduler.runners
    if wait + own <= remaining or (own > remaining and scheduler.wait_s() == 0):
        return
    after = wait + own - remaining if own <= remaining else wait
    seconds = max(math.ceil(after), 1)
    raise BusyError(
        f"about {wait:.1f} s of work wait before this request, whose own is about {own:.1f} s, and it has "
        f"{remaining:.1f} s; ask again in {seconds} s, or allow more time with the header x-request-timeout-ms",
        seconds,
    )
