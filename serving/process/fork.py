"""A worker process as a fork of the parent.

The parent has one thread and no heavy library, so a fork of it is safe, and what it has imported is there already: a
new interpreter would take a tenth of a second to come as far.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

SIGNALS: Mapping[signal.Signals, Handler] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_IGN,  # A terminal that closes sends it to all; the parent then ends the workers.
}
"""Signals that end a service → what they do to a worker that has no handlers of its own yet."""

MALLOC: Mapping[str, tuple[int, int]] = {
    "MALLOC_ARENA_MAX": (-8, 2),
    "MALLOC_MMAP_THRESHOLD_": (-3, 4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 8 * 2**20),
}
"""Variable of glibc's allocator → parameter of `mallopt` and its value for workers, unless the variable is set.

By default each thread keeps the largest blocks that it ever freed, so large bodies, which many threads touch, stay in
memory many times. Blocks of 4 MiB and more go back to the system at once; a search over a million documents takes
smaller ones."""


def start(run: Callable[[], None], name: str) -> BaseProcess:
    """Starts a process that calls `run` and ends; SystemExit gives its exit code.

    Args:
        run: called in the new process, which begins with the memory and the open files of this one. Garbage
            collection is off there; `run` switches it on when its imports are done.
        name: name of the process, for messages.
    """

    def begin() -> None:
        for number, handler in SIGNALS.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        gc.disable()  # Imports leave hardly any garbage, and looking for it takes a sixth of their time.
        _set_malloc()
        _leave_working_folder()
        run()

    process = multiprocessing.get_context("fork").Process(target=begin, name=name)
    # A signal between the fork and the new handlers would reach the parent's handlers, in the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def _set_malloc() -> None:
    """Sets what MALLOC says, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for variable, (parameter, value) in MALLOC.items():
        if variable not in os.environ:
            mallopt(parameter, value)


def _leave_working_folder() -> None:
    """Takes the folder of the started script off Python's path, as -P does, unless our packages are in it.

    Otherwise an `index.py` of the working folder would be imported in place of ours.
    """
    home = Path(__file__).resolve().parents[2]
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]).resolve() != home:
        del sys.path[0]
