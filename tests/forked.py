"""Runs functions in processes of their own: forks of one server that has imported everything.

A new interpreter needs seconds for its imports; such a fork needs none, and can be killed without harm to the tests.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")

MODULES = (
    "flows.ask",
    "flows.cli.command",
    "flows.gc",
    "flows.quickstart",
    "flows.reindex",
    "flows.report",
    "flows.retrain",
    "flows.shards",
    "flows.summary",
    "pipeline.data.checks.check_tables",
    "pipeline.training.ranker",
    "pipeline.training.teacher_scores",
    "tests.pipeline.training.loop.test_peers",
)
"""Modules that the server imports; a function of another module imports it in its own process."""


@dataclass(frozen=True)
class Ended:
    """The end of a function's process: its exit code, −9 after SIGKILL, what the function returned, what it wrote."""

    exit_code: int | None
    returned: Any
    output: str


def process(work: Callable[..., None], arguments: Sequence[Any], log: Path) -> BaseProcess:
    """A process that is not started yet, and whose outputs go to the end of `log`."""
    CONTEXT.set_forkserver_preload(list(MODULES))
    log.touch()
    return CONTEXT.Process(target=_logged, args=(log, work, arguments))


def start(processes: Sequence[BaseProcess]) -> None:
    """Starts these processes, with one thread each, in the environment that the server was started in."""
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"):  # For the server.
        for each in processes:
            each.start()


def run(work: Callable[..., Any], *arguments: Any, log: Path) -> Ended:
    """Runs `work(*arguments)` in a process of its own and waits for its end."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    before = log.stat().st_size if log.exists() else 0
    child = process(_returning, (sender, work, arguments), log)
    start([child])
    sender.close()
    child.join()
    with receiver:
        returned = receiver.recv() if receiver.poll() and child.exitcode == 0 else None
    return Ended(child.exitcode, returned, log.read_bytes()[before:].decode())


def _logged(log: Path, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)


def _returning(sender: Connection, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    sender.send(work(*arguments))
