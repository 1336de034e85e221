"""Several processes behind one port, and the one that watches over them.

    parent ─ binds the port, imports nothing heavy, starts and watches
      ├── worker 1 ─ `serving.process.worker`, accepts from the parent's socket
      └── worker 2 …

They share one listening socket rather than each having its own on the port: the kernel then keeps what nobody has
accepted yet when a worker dies, and the next connection goes to a worker that is free. A worker says once a second
that its event loop turns; one that ends, or falls silent, is replaced. The parent's end closes their pipes, and so
ends them too.
"""

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, RelevanceError
from serving.process import listener as listeners
from serving.process import logs
from serving.settings import Settings

SILENT_S = 30.0
"""A worker whose event loop did not turn for so long is killed."""
START_S = 300.0
"""The same for one that is still loading its release."""
LATE_S = 10.0
"""Beyond `drain_s`, before what has not ended after SIGTERM is killed."""
LONGEST_PAUSE_S = 10.0
"""Between two starts of a worker that ends again and again."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Worker:
    """One process, as the parent sees it."""

    number: int
    process: subprocess.Popen[bytes]
    reports: int
    """Our end of its pipe."""
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    fault: dict[str, Any] | None = None
    """What it said when it could not begin."""

    def hear(self) -> None:
        """Reads what it has reported; waits for something when there is nothing."""
        for line in filter(None, os.read(self.reports, 1 << 16).split(b"\n")):
            self.heard = time.monotonic()
            said = json.loads(line)
            self.ready |= "release" in said
            self.fault = said if "error" in said else self.fault


class Supervisor:
    """Starts the workers, replaces those that end, and stops all."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, Worker] = {}
        self._due: dict[int, float] = {}
        """When to start the worker of this number."""
        self._failures: dict[int, int] = {}
        self._begun = False
        """Whether all were ready once."""
        self._stopping = False

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then lets the workers finish their requests.

        Raises:
            RelevanceError: a worker could not begin, before all had begun once; what it said.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="relevance-metrics-") as folder:
            self._due = dict.fromkeys(range(1, self._settings.workers + 1), 0.0)
            try:
                while not self._stopping:
                    self._start_due(Path(folder))
                    self._listen()
                    self._look(Path(folder))
            finally:
                self._end()
        log.info("stopped; all workers ended")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start_due(self, folder: Path) -> None:
        now = time.monotonic()
        for number in [number for number, when in self._due.items() if when <= now]:
            del self._due[number]
            reports, theirs = os.pipe()
            told: dict[str, Any] = {"settings": dataclasses.asdict(self._settings), "metrics": str(folder)}
            told |= {"listener": self._listener.fileno(), "reports": theirs}
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.process.supervisor"],
                stdin=subprocess.PIPE,
                pass_fds=[self._listener.fileno(), theirs],
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            )
            os.close(theirs)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as told_to:
                told_to.write(json.dumps(told, default=str).encode())
            self._workers[number] = Worker(number, process, reports)
            self._selector.register(reports, selectors.EVENT_READ, number)

    def _listen(self) -> None:
        """Reads what the workers report; a fifth of a second at most."""
        for key, _ in self._selector.select(timeout=0.2):
            self._workers[key.data].hear()
        if not self._begun and not self._due and all(worker.ready for worker in self._workers.values()):
            self._begun = True
            listeners.announce(f"{len(self._workers)} workers", self._listener)

    def _look(self, folder: Path) -> None:
        """Replaces workers that ended, and kills those that are silent."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            code = worker.process.poll()
            if code is None:
                if now - worker.heard > (SILENT_S if worker.ready else START_S):
                    log.error("worker %d: silent for %.0f s, killed", worker.number, now - worker.heard)
                    worker.process.kill()
                continue
            worker.hear()  # Its last words, or nothing at once, as its end of the pipe is closed.
            self._bury(worker, folder)
            if self._stopping:
                continue
            if not self._begun:
                raise _fault(worker, code)
            failures = self._failures.get(worker.number, 0) if not worker.ready else 0
            self._failures[worker.number] = failures + 1
            pause = min(0.1 * 2**failures, LONGEST_PAUSE_S)
            log.error("worker %d: ended with %d, starting it again in %.1f s", worker.number, code, pause)
            self._due[worker.number] = now + pause

    def _bury(self, worker: Worker, folder: Path) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        del self._workers[worker.number]
        self._selector.unregister(worker.reports)
        os.close(worker.reports)
        mark_process_dead(worker.process.pid, str(folder))  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        """SIGTERM to all, and SIGKILL to what does not end."""
        self._listener.close()  # The workers still have theirs, until each has drained.
        for worker in self._workers.values():
            worker.process.terminate()
        until = time.monotonic() + self._settings.drain_s + LATE_S
        for worker in self._workers.values():
            try:
                worker.process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                log.error("worker %d: did not end after SIGTERM, killed", worker.number)
                worker.process.kill()
                worker.process.wait()
            os.close(worker.reports)
        self._selector.close()


def _fault(worker: Worker, code: int) -> RelevanceError:
    if worker.fault is None:
        return RelevanceError(f"worker {worker.number} ended with {code} before it was ready; the log above says why")
    kind = InputError if worker.fault["exit_code"] == InputError.exit_code else RelevanceError
    return kind(worker.fault["error"])


def work() -> None:
    """What a worker's process does; its orders come as JSON on standard input."""
    from serving.process import worker as process

    told = json.load(sys.stdin)
    fields = {**told["settings"], "workspace": Path(told["settings"]["workspace"])}
    fields |= {name: tuple(fields[name]) for name in ("api_keys", "admin_keys")}
    settings = Settings(**fields)
    logs.write_log(settings.log)
    pipe = told["reports"]

    def say(**facts: Any) -> bool:
        try:
            os.write(pipe, json.dumps(facts).encode() + b"\n")
        except OSError:
            return False  # The parent is gone.
        return True

    try:
        process.run(
            settings,
            socket.socket(fileno=told["listener"]),
            beat=lambda release: say(release=release),
            metrics=Path(told["metrics"]),
        )
    except RelevanceError as error:
        say(error=str(error)[:600], exit_code=error.exit_code)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    work()
