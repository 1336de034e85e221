"""One process of the service: the release loaded before the first request, requests finished before it ends."""

import asyncio
import functools
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from serving.api import app
from serving.observability.metrics import Metrics
from serving.process.http_protocol import Protocol
from serving.process.listener import BACKLOG, announce
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.engine import cores
from serving.settings import Settings

KEEP_ALIVE_S = 75
"""Longer than the 60 s of common load balancers, which else send a request into a connection just closed."""
GOODBYE_S = 0.5
"""After SIGTERM, for so long answers still tell clients to close their connections before ours are closed: else a
request on its way into an idle connection would be lost."""

log = logging.getLogger(__name__)

Beat = Callable[[str], bool]


def run(settings: Settings, listener: socket.socket, beat: Beat | None = None, metrics: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish for at most `drain_s`.

    Args:
        settings: of the whole service; this process takes its share.
        listener: accepted from until the end, perhaps beside other processes.
        beat: told the release when requests are taken and once a second from then on, by the event loop; stops the
            process when it returns false.
        metrics: the folder in which the processes add up their metrics; None for a process alone.

    Raises:
        MissingError: there is no such release.
        ArtifactError: the release is damaged or does not fit this machine.
    """
    # The tokenizer's own threads would wait, spinning, for cores that the runners have.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lifecycle = Lifecycle(settings.share(cores()))
    made = app.create(lifecycle, metrics=metrics)
    lifecycle.start()
    config = uvicorn.Config(
        made,
        http=functools.partial(Protocol, patience_s=settings.read_s),  # type: ignore[arg-type]  # It is only called.
        log_config=None,
        access_log=False,  # `serving.api.middleware` logs each request, without its texts.
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),  # 0 would wait for nobody.
        # asyncio accepts so many connections at a wake-up: with one, a free process takes the next, not a busy one.
        backlog=1 if beat else BACKLOG,
    )
    server = Server(
        config, made.state.service.draining, functools.partial(_alive, lifecycle, beat, made.state.service.metrics)
    )
    # Uvicorn drains and then sends the signal again, to whom it belonged before: to stop was what we wanted.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    if beat is None:
        announce(f"release {lifecycle.current.release[:12]}", listener)
    asyncio.run(server.serve(sockets=[listener]))
    log.info("stopped; running requests were finished")


class Server(uvicorn.Server):
    """Uvicorn's server with a pulse, and with time for goodbyes."""

    def __init__(self, config: uvicorn.Config, draining: threading.Event, pulse: Callable[[], bool]) -> None:
        super().__init__(config)
        self._draining, self._pulse = draining, pulse

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio set it to what it accepts at once.

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 and not self._pulse():  # Ticks are a tenth of a second apart.
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._draining.set()
        if self.server_state.connections:
            await asyncio.sleep(GOODBYE_S)
        await super().shutdown(sockets)


def _alive(lifecycle: Lifecycle, beat: Beat | None, metrics: Metrics) -> bool:
    if beat is None:
        return True
    metrics.refresh()  # For the other processes, one of which may be asked for the sums.
    return beat(lifecycle.current.release)


def _stopped(*_: object) -> None:
    """The drain is over; the process ends by returning."""
