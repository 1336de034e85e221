"""One process that answers requests: it loads the release first, and finishes its requests before it ends."""

import asyncio
import functools
import gc
import json
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from pipeline import machine_memory
from pipeline.cores import cores
from pipeline.errors import RelevanceError
from serving.api import app as apps
from serving.observability.metrics import Metrics
from serving.process.http_protocol import ConnectionLimits, LimitedProtocol
from serving.process.listener import BACKLOG, accept_new, has_waiting, refuse_new
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.scheduler import PresentRun
from serving.settings import Settings

KEEP_ALIVE_S = 75
"""Pause between two requests after which a connection is closed.

Common load balancers keep theirs for 60 s. A shorter pause here would let them send a request into a connection that
was just closed.
"""
HANDSHAKE_S = 0.5
"""Seconds after SIGTERM in which handshakes that had begun may complete; longer than a round trip around the world."""
ACCEPT_S = 5.0
"""Seconds after SIGTERM after which a queue that never empties is given up."""

log = logging.getLogger(__name__)

Beat = Callable[[str], bool]


def run(settings: Settings, listener: socket.socket, beat: Beat, metrics: Path | None) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish for at most `drain_s`.

    Args:
        settings: settings of the whole service; this process takes its share of cores and memory.
        listener: the socket to accept from, perhaps beside other processes.
        beat: called with the live release when requests are accepted and once a second from then on, by the event
            loop; the process stops when it returns false.
        metrics: the folder in which the processes add up their metrics; None keeps those of this process alone.

    Raises:
        MissingError: there is no such release.
        ArtifactError: the release is damaged or does not fit this machine.
    """
    # The tokenizer's own threads would wait, spinning, for cores that the runners have.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lifecycle = Lifecycle(settings.share(cores()))
    app = apps.create(lifecycle, metrics=metrics)
    service = app.state.service
    gc.freeze()  # Modules and routes live as long as the process, so no collection looks through them again.
    gc.enable()
    lifecycle.start()
    protocol = functools.partial(LimitedProtocol, limits=ConnectionLimits.of(settings), draining=service.draining)
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # Uvicorn only calls it.
        ws="none",  # No endpoint is a WebSocket; uvicorn would import a library for them wherever one is installed.
        log_config=None,
        access_log=False,  # `serving.api.middleware` logs each request, without its texts.
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),  # 0 would not wait at all.
        # asyncio accepts this many connections at a wake-up. With one, a free process takes the next, not a busy one.
        backlog=1,
    )
    server = Server(config, service.draining, Pulse(settings, lifecycle, beat, service.metrics))

    def stop(*_: object) -> None:
        server.should_exit = True

    # These serve until uvicorn's own handlers are set. After the drain, uvicorn sends the signal again to them.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    asyncio.run(server.serve(sockets=[listener]))


class Server(uvicorn.Server):
    """Uvicorn's server with a heartbeat, and with a shutdown that answers every accepted connection."""

    def __init__(self, config: uvicorn.Config, draining: threading.Event, pulse: Callable[[], bool]) -> None:
        super().__init__(config)
        self._draining, self._pulse = draining, pulse
        self._is_replaced = False
        """Whether this process ends alone, so that others accept the connections that wait."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has set it to what it accepts at once.
            accept_new(listener)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 and not self._pulse():  # Ticks are a tenth of a second apart.
            self.should_exit = self._is_replaced = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts what the kernel has taken, answers it, and closes the connections; see `LimitedProtocol`."""
        self._draining.set()
        if not self._is_replaced:
            await _accept_all(sockets or [])
        await super().shutdown(sockets)


async def _accept_all(listeners: list[socket.socket]) -> None:
    """Waits until the server has accepted every connection that the kernel has taken; it takes no more."""
    for listener in listeners:
        refuse_new(listener)
    await asyncio.sleep(HANDSHAKE_S)
    until = asyncio.get_running_loop().time() + ACCEPT_S
    while any(map(has_waiting, listeners)) and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)


class Pulse:
    """Reports to the supervisor once a second; a call returns false when this process should end."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle, beat: Beat, metrics: Metrics) -> None:
        self._settings, self._lifecycle, self._beat, self._metrics = settings, lifecycle, beat, metrics
        self._overdue: PresentRun | None = None
        """The oldest run, where it was overdue at the last call."""

    def __call__(self) -> bool:
        self._metrics.refresh()  # The other processes read these files when they are asked for the sums.
        stalled = self._stalled()
        if stalled is not None:
            log.error(
                "a run of a model has not come back for %.0f s; this process ends, to be replaced", stalled.seconds
            )
            return False
        if self._lifecycle.rollout.active.runners_lost:
            log.error("all runners wait for a release that was withdrawn; this process ends, to be replaced")
            return False
        return self._beat(self._lifecycle.current.release)

    def _stalled(self) -> PresentRun | None:
        """A run that was overdue at the last call already: where the whole process stood still, the run has ended."""
        runs = self._lifecycle.scheduler.present_runs()
        overdue = runs[0] if runs and runs[0].seconds > self._settings.silent_s else None
        before, self._overdue = self._overdue, overdue
        return overdue if overdue is before else None


def work(settings: Settings, listener: socket.socket, reports: int, metrics: Path | None) -> None:
    """Runs one worker to its end.

    Args:
        settings, listener, metrics: see `run`.
        reports: the end of the parent's pipe to which the worker writes its reports, one JSON object a line.

    Raises:
        SystemExit: the service could not begin; the report says why.
    """
    os.set_blocking(reports, False)
    try:
        with machine_memory.shortage_told():
            run(settings, listener, beat=lambda release: report(reports, release=release), metrics=metrics)
    except RelevanceError as error:
        report(reports, error=str(error)[:600], kind=type(error).__name__)
        raise SystemExit(error.exit_code) from None


def report(pipe: int, **values: Any) -> bool:
    """Writes a report for the parent; returns whether the parent is there.

    A parent that stands still reads nothing, so the pipe may be full; when it goes on, it finds enough reports. A pipe
    takes up to 4,096 bytes at once, so that the parent reads whole lines.
    """
    try:
        os.write(pipe, json.dumps(values).encode() + b"\n")
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
