"""Runs a function in a process of its own, whose memory and libraries end with it."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, ParamSpec, TypeVar

from flows.logs import write_log
from pipeline import machine_memory
from pipeline.errors import RelevanceError

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 10.0
"""Seconds that a dead process is waited for, whose exit code tells why it ended."""

log = logging.getLogger(__name__)


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that is run in a process of its own, whose memory and libraries end with it.

    The service's parent process lives as long as the service, and must not carry torch. The process ends with this
    one, also where this one is interrupted or killed.

    Raises:
        MemoryShortageError: memory ran out there.
        RelevanceError: the process ended before its work was done, as one does that the system kills.
    """
    if limit := machine_memory.of_shell():  # OpenBLAS waits for ever where its first buffer gets no address.
        log.warning("memory: %s; a library that gets too little of it may end or hang", limit.name)
    context, level = multiprocessing.get_context("spawn"), logging.getLogger().level
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(level,)) as pool:
        before = multiprocessing.active_children()
        answer = pool.submit(_with_shortage_told, function, args, kwargs)
        started = [child for child in multiprocessing.active_children() if child not in before]
        try:
            return answer.result()
        except BrokenProcessPool as error:
            raise _ended([_exit_code(child) for child in started]) from error
        except BaseException:  # Such as an interruption of this process alone; the pool would wait for the end.
            for child in started:
                child.kill()
            raise


def _with_shortage_told(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    with machine_memory.shortage_told():
        return function(*args, **kwargs)


def _exit_code(child: BaseProcess) -> int | None:
    """The exit code of a process that has ended; None if it is not known in a few seconds.

    The pool's own thread waits for the process too: whoever comes second learns the code when the first has noted it.
    """
    until = time.monotonic() + PATIENCE_S
    while child.exitcode is None and time.monotonic() < until:
        child.join(timeout=0.1)
        time.sleep(0.01)
    return child.exitcode


def _ended(exit_codes: Sequence[int | None]) -> RelevanceError:
    """The error of a process that ended before its work was done."""
    code = next((code for code in exit_codes if code), None)
    if code is None:
        how = ""
    else:
        how = f" by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f" with {code}"
    return RelevanceError(
        f"the process that does the work ended{how}, most often because memory ran out: {machine_memory.remedy()}"
    )


def _begin(level: int) -> None:
    """Prepares such a process: it writes log lines, and ends where the process that started it ends."""
    write_log(level)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
