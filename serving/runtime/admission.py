"""Whether a request can be answered in its time at all; told at once, with the seconds after which to ask again.

What waits before it, and what it brings itself, are divided by the paces that the runners were measured at. What is due
later waits behind it, so who allows a long time does not shut out who needs a short one; it is what is late when both
ask for more than there is. Texts that are cached bring nothing, so a request which is known already is answered however
long the queue is.
"""

import math
from dataclasses import dataclass

from serving.errors import BusyError
from serving.runtime.deadline import Deadline
from serving.runtime.items import Priority, Throughput
from serving.runtime.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The conditions on which a request is worked for: its deadline, its class, and what may be remembered."""

    deadline: Deadline
    priority: Priority = Priority.ONLINE
    remember: bool = True
    """False: nothing that is remembered is read for it, and nothing of it is kept."""


def admit(scheduler: Scheduler, pace: Throughput, tokens: float, options: RequestOptions) -> None:
    """Admits work if a model can read this many further tokens before the deadline.

    Work that takes longer than its time even alone is taken when nothing at all waits: it will not be answered, but
    what it computed is kept, so asking again goes on from there. The batch class waits as long as it takes.

    Raises:
        BusyError: they cannot.
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
