"""Whether the models answer: a real inference no older than a second, not a process that says it is alive."""

import asyncio
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor

from serving.errors import DeadlineError, NotReadyError
from serving.rollout.lifecycle import Lifecycle
from serving.scoring.searcher import Searcher

FRESH_S = 1.0
"""Seconds for which a probe's result stands."""
PATIENCE_S = 5.0
"""A model that is slower than this for one short pair is not ready; it may be stuck."""

log = logging.getLogger(__name__)


class Readiness:
    """Remembers when the models of the present release last answered, and asks them when that is long ago."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ready")
        self._latest_ping: tuple[Searcher, Future[None]] | None = None
        """The models that were asked last, and their answer."""
        self._searcher: Searcher | None = None
        self._answered: dict[str, float] = {}
        """Model → when that of `_searcher` last answered."""

    def answered(self, searcher: Searcher, model: str) -> None:
        """A request was just computed by this model of this release, which proves as much as asking would.

        Args:
            model: ranker or encoder.
        """
        if searcher is not self._lifecycle.loaded:
            return  # A canary's says nothing about the live one.
        if searcher is not self._searcher:
            self._searcher, self._answered = searcher, {}
        self._answered[model] = time.monotonic()

    async def check(self) -> Searcher:
        """The release that answers, after it has answered.

        Raises:
            NotReadyError: there is none, its models failed or were silent for PATIENCE_S, or a runner is stuck in one.
        """
        searcher = self._lifecycle.current
        stalled = self._lifecycle.scheduler.stalled_s()
        if stalled > PATIENCE_S:
            # The other runners may go on, but this one is lost, and what stopped it may stop them.
            raise NotReadyError(f"release {searcher.release[:12]}: a runner has not come back for {stalled:.0f} s")
        if searcher is self._searcher:
            latest = [time.monotonic() - self._answered.get(model, -math.inf) for model in searcher.models]
            if max(latest) < FRESH_S:
                return searcher
        if self._latest_ping is None or self._latest_ping[0] is not searcher or self._latest_ping[1].done():
            self._latest_ping = searcher, self._pool.submit(searcher.ping)
        try:
            # Shielded, because others may wait for the same inference.
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._latest_ping[1])), PATIENCE_S)
        except (TimeoutError, DeadlineError) as error:
            raise NotReadyError(f"release {searcher.release[:12]}: no answer in {PATIENCE_S:g} s") from error
        except Exception as error:
            log.exception("release %s: does not answer", searcher.release[:12])
            raise NotReadyError(f"release {searcher.release[:12]}: its models fail; see the log") from error
        for model in searcher.models:
            self.answered(searcher, model)
        return searcher

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
