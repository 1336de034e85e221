"""The parent process of a service: it starts the workers behind one port, watches them and replaces them.

    parent ─ binds the port, imports nothing heavy, starts and watches
      ├── worker 1 ─ a fork that runs `serving.process.worker`, accepts from the parent's socket
      └── worker 2 …

A service with one worker has a parent too, because a process that hangs cannot end itself.

All workers share one listening socket. While a worker is dead, the kernel therefore keeps its new connections for the
others or for its replacement, and each connection goes to a worker that is free. A worker reports once a second that
its event loop runs. One that ends or falls silent is replaced. When the parent dies, the workers' next report fails,
and they end too.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline import errors, text
from pipeline.command_line import typed
from pipeline.errors import RelevanceError
from serving.process import fork
from serving.process import listener as listeners
from serving.process.metrics_folder import forget, metrics_folder, reserve
from serving.settings import Settings

START_S = 300.0
"""Seconds without a report after which a worker that is still loading its release is killed."""
LATE_S = 10.0
"""Seconds beyond `drain_s` after which a worker that has not ended after SIGTERM is killed."""
GRACE_S = 5.0
"""Seconds that a silent worker has to report from when the parent notices. Where all processes stood still, as in a
container that was paused or on a machine that slept, the parent may wake before the report comes."""
LONGEST_PAUSE_S = 10.0
"""The longest pause between two starts of a worker that ends again and again."""
MAKE_ROOM = "give the service more memory, files and processes, or fewer workers"
"""The advice where the system refuses a worker."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Worker:
    """One worker process, as the parent sees it."""

    number: int
    process: BaseProcess
    reports: int
    """The parent's end of the pipe on which the worker reports."""
    last_report: float
    """When the last report came, or the process was started, by the monotonic clock."""
    workspace: Path
    """The workspace that it serves, for commands in messages."""
    release: str = ""
    """The release that the worker answers with; empty until it is ready."""
    noticed: float | None = None
    """When the parent noticed that it is silent; None where it is not."""
    failure: dict[str, Any] | None = None
    """The error with which the worker could not begin."""

    def read_reports(self) -> None:
        """Reads the reports that have come; waits for one when there is none and the worker lives."""
        for line in text.split_lines(os.read(self.reports, 1 << 16).decode()):
            self.last_report, self.noticed = time.monotonic(), None
            report = json.loads(line)
            if "error" in report:
                self.failure = report
            else:
                self.release = report["release"]

    def silent_s(self) -> float:
        """Seconds since the last report."""
        return time.monotonic() - self.last_report

    def hangs(self, limit_s: float) -> bool:
        """Whether it has been silent for longer than the limit, and still is GRACE_S after the parent noticed that."""
        if self.silent_s() <= limit_s:
            return False
        if self.noticed is None:
            self.noticed = time.monotonic()
        return time.monotonic() - self.noticed > GRACE_S

    def end(self) -> str:
        """A description of how the process ended."""
        code = self.process.exitcode
        assert code is not None
        words = f"ended with {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                words = f"ended with {code}, by {signal.Signals(-code).name}"
        words += f", while release {self.release[:12]} was loaded" if self.release else ", before it was ready"
        if code == -signal.SIGBUS:
            # Model and index files are memory-mapped: reading a page that is no longer there raises SIGBUS.
            command = typed(f"releases show {self.release[:12]}".rstrip(), self.workspace)
            words += f"; a file of it was probably truncated in place: `{command}` checks its files"
        elif code == -signal.SIGKILL and self.noticed is None:
            words += (
                "; the system does that where memory runs out, and its log (`dmesg`) says so: give the service more, "
                "or fewer workers"
            )
        elif not self.release:
            words += "; the log above says why"
        return words


class Supervisor:
    """Starts the workers, replaces those that end, and stops all."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, Worker] = {}
        self._start_times: dict[int, float] = {}
        """When to start the worker of this number."""
        self._failures: dict[int, int] = {}
        self._has_begun = False
        """Whether all were ready once."""
        self._stopping = False

    def run(self) -> None:
        """Serves until SIGTERM, SIGINT or SIGHUP, then lets the workers finish their requests.

        Raises:
            RelevanceError: a worker could not begin, before all were ready once; its own error.
        """
        for number in fork.SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # As under nohup.
            signal.signal(number, self._stop)
        with metrics_folder() as folder:
            self._start_times = dict.fromkeys(range(1, self._settings.workers + 1), 0.0)
            try:
                while not self._stopping:
                    self._start_due(folder)
                    self._read_reports()
                    self._replace_ended(folder)
            finally:
                self._end()
        log.info("stopped; running requests were finished")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start_due(self, folder: Path) -> None:
        now = time.monotonic()
        for number in [number for number, when in self._start_times.items() if when <= now]:
            del self._start_times[number]
            try:
                self._start(number, folder)
            except OSError as error:  # The system lacks memory, files or processes, perhaps for a while.
                if not self._has_begun:
                    raise RelevanceError(f"worker {number} cannot be started ({error}); {MAKE_ROOM}") from error
                pause_s = self._pause(number)
                log.error("worker %d: not started (%s); trying again in %.1f s", number, error, pause_s)

    def _start(self, number: int, folder: Path) -> None:
        """Starts a worker.

        Raises:
            OSError: the system has no process or file left for it.
        """
        reports, workers_end = os.pipe()

        def work() -> None:
            # Its siblings would not notice the parent's death while another process can read their reports.
            self._selector.close()
            for descriptor in (reports, *(worker.reports for worker in self._workers.values())):
                os.close(descriptor)
            # Pydantic would look for plugins in every installed package; who wants some sets the variable, also to "".
            os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
            shared = _shared_metrics(number, folder)  # Before the library of metrics is imported.
            from serving.process import worker

            worker.work(self._settings, self._listener, workers_end, shared)

        try:
            process = fork.start(work, f"worker {number}")
        except OSError:
            os.close(reports)
            raise
        finally:
            os.close(workers_end)
        self._workers[number] = Worker(number, process, reports, time.monotonic(), self._settings.workspace)
        self._selector.register(reports, selectors.EVENT_READ, number)

    def _read_reports(self) -> None:
        """Reads what the workers report; waits for a fifth of a second at most."""
        for key, _ in self._selector.select(timeout=0.2):
            self._workers[key.data].read_reports()
        if self._has_begun or self._start_times or not all(worker.release for worker in self._workers.values()):
            return
        self._has_begun = True
        release = self._workers[1].release
        count = len(self._workers)
        listeners.announce(f"release {release[:12]}, {count} worker{'s' if count > 1 else ''}", self._listener)

    def _replace_ended(self, folder: Path) -> None:
        """Kills workers that are silent, and plans the replacement of those that ended."""
        for worker in list(self._workers.values()):
            if worker.process.is_alive():
                if worker.hangs(self._settings.silent_s if worker.release else START_S):
                    log.error("worker %d: silent for %.0f s, killed", worker.number, worker.silent_s())
                    worker.process.kill()
                continue
            worker.read_reports()  # Does not wait, because the worker's end of the pipe is closed.
            self._forget(worker, folder)
            if self._stopping:
                continue
            if not self._has_begun:
                raise _failure(worker)
            self._plan_restart(worker)

    def _plan_restart(self, worker: Worker) -> None:
        if worker.release:
            self._failures[worker.number] = 0
        pause_s = self._pause(worker.number)
        values = {"worker": worker.number, "exit_code": worker.process.exitcode, "release": worker.release or None}
        log.error(
            "worker %d: %s; starting it again in %.1f s", worker.number, worker.end(), pause_s, extra={"facts": values}
        )

    def _pause(self, number: int) -> float:
        """Plans the next start of a worker, and returns the seconds until then: twice as many after each failure."""
        failures = self._failures.get(number, 0)
        self._failures[number] = failures + 1
        pause_s = min(0.1 * 2.0**failures, LONGEST_PAUSE_S)
        self._start_times[number] = time.monotonic() + pause_s
        return pause_s

    def _forget(self, worker: Worker, folder: Path) -> None:
        del self._workers[worker.number]
        self._selector.unregister(worker.reports)
        os.close(worker.reports)
        assert worker.process.pid is not None
        forget(folder, worker.process.pid)

    def _end(self) -> None:
        """Sends SIGTERM to all workers, and SIGKILL to those that do not end."""
        self._listener.close()  # The workers keep theirs until each has drained.
        for worker in self._workers.values():
            worker.process.terminate()
        until = time.monotonic() + self._settings.drain_s + LATE_S
        for worker in self._workers.values():
            worker.process.join(max(until - time.monotonic(), 0.0))
            if worker.process.is_alive():
                log.error("worker %d: did not end after SIGTERM, killed", worker.number)
                worker.process.kill()
                worker.process.join()
            os.close(worker.reports)
        self._selector.close()


def _shared_metrics(number: int, folder: Path) -> Path | None:
    """The folder in which a worker adds its metrics to those of the others; None where the disk has no room for it.

    The library of metrics reads the variable when it is imported.
    """
    if reserve(folder):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        return folder
    log.warning(
        "worker %d: no room for metrics in %s; until it is replaced, its /metrics counts itself alone", number, folder
    )
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    return None


def _failure(worker: Worker) -> RelevanceError:
    """The error with which a worker could not begin, as the parent raises it."""
    if worker.failure is None:
        return RelevanceError(f"worker {worker.number} {worker.end()}")
    kind: type[RelevanceError] = getattr(errors, worker.failure["kind"], RelevanceError)
    return kind(worker.failure["error"])
