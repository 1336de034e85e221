"""Processes on several machines that agree before they train together, and end together.

    process ── its state, once a second ──► torchrun's store ── states of the other processes ──► process

A process that ends tells why. One that is killed, or whose machine is gone, falls silent. Either way a thread of each
other process names it and ends its own process: nobody waits for a sum that never comes.
"""

import json
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import ConfigError, GateError, UnavailableError
from pipeline.secrets import hide_passwords

BEAT_S = 1.0
"""Seconds between two states of a process."""

SILENT_BEATS = 120
"""Beats without a new state after which a process counts as gone."""

LOST_BEATS = 10
"""Beats without a new state after which a process counts as gone once this process has lost a connection."""

MEETING = timedelta(minutes=10)
"""The longest wait for a process that is alive and has not said yet what it was started with."""

RESUME = "When that is mended, start the same command on all machines again: it goes on from the last checkpoint"
"""The end of each message that ends a shared training."""

SHOWN = 5
"""Number of differences that a message names."""


def meet() -> tuple[Store, int, int]:
    """A new connection to torchrun's store, the number of this process, and the number of processes.

    Raises:
        UnavailableError: the store does not answer, or torchrun did not say where it is.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UnavailableError(f"torchrun's store at {_address()} cannot be reached ({reason}). {RESUME}") from error
    return store, rank, size


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


class PeerWatch:
    """Tells the other processes how this one is, and ends it when one of them is gone or torchrun stops it."""

    def __init__(self, signals: socket.socket) -> None:
        """Begins at once.

        Args:
            signals: gets the number of each signal to this process.
        """
        store, self._rank, size = meet()
        self._store = PrefixStore("peers", store)
        self._signals = signals
        self._beat = 0
        """Rounds of the watch so far. A time in which this process stood still is one round, and accuses nobody."""
        self._end: str | None = None
        """The reason why this process ended; empty after success, None before the end."""
        unheard = json.dumps([f"a machine that {platform.node()} never heard of", 0, None]).encode()
        self._heard = {peer: (unheard, 0) for peer in range(size) if peer != self._rank}
        """Process → its last state, and the round in which it was new."""
        self._answered = 0
        """The round of the last answer of the store."""
        self._is_lost = False
        """Whether the connection to the store was lost."""
        self._patience = SILENT_BEATS
        self._stop = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()
        threading.Thread(target=self._exchange, daemon=True).start()  # Another one, as a call may never return.

    def end(self, reason: str) -> None:
        """Tells the other processes that this one ended; they end too unless the reason is empty."""
        self._end = reason
        time.sleep(2 * BEAT_S)  # torchrun may close the store as soon as this process is gone.

    def close(self) -> None:
        """Stops watching."""
        self._stop.set()
        self._watching.join()

    def suspect(self) -> None:
        """Ends this process if another one is gone, which may have caused an error here."""
        self._patience = LOST_BEATS
        time.sleep((LOST_BEATS + 4) * BEAT_S)

    def _exchange(self) -> None:
        number = 0
        while not self._stop.wait(BEAT_S):
            number += 1
            try:
                self._store.set(str(self._rank), json.dumps([platform.node(), number, self._end]))
                for peer, (state, _) in self._heard.items():
                    if self._store.check([str(peer)]) and (new := self._store.get(str(peer))) != state:
                        self._heard[peer] = new, self._beat
                self._answered = self._beat
            except RuntimeError:  # A connection to the store that was lost does not come back.
                self._is_lost, self._patience = True, LOST_BEATS
                return

    def _watch(self) -> None:
        while not self._stop.is_set():
            stopped = False
            self._signals.settimeout(BEAT_S)
            with suppress(TimeoutError):
                stopped = signal.SIGTERM in self._signals.recv(64)
                # So that `_exchange` gets the reason of a process that ended, or loses the store.
                time.sleep(2 * BEAT_S)
            self._beat += 1
            if self._end is None and (reason := self._trouble(stopped)):
                self.end(reason)
                print(f"relevance: {reason}. {RESUME}", file=sys.stderr, flush=True)
                os._exit(1)  # The main thread may wait in a sum, where no exception reaches it.

    def _trouble(self, stopped: bool) -> str:
        """The reason why this process cannot go on; empty while all is well."""
        states = {peer: (*json.loads(state), self._beat - since) for peer, (state, since) in self._heard.items()}
        for peer, (host, _, end, _) in states.items():
            if end:
                return f"process {peer} on {host} ended: {end}"
        silence = self._beat - self._answered
        if silence > self._patience or (stopped and self._is_lost):
            return (
                f"torchrun's store at {_address()} has not answered for {silence * BEAT_S:.0f} s: torchrun or a "
                "process on that machine ended, or it cannot be reached"
            )
        silent = [
            f"process {peer} on {host} has given no sign of life for {beats * BEAT_S:.0f} s: it was killed, or its "
            "machine cannot be reached"
            for peer, (host, _, end, beats) in states.items()
            if end is None and beats > self._patience
        ]
        return "; ".join(silent) or ("torchrun stopped this process" if stopped else "")


@contextmanager
def watched() -> Iterator[None]:
    """A context in which this process ends when another one does, and the other ones when this one fails."""
    with _signals() as signals:
        watch = PeerWatch(signals)
        try:
            yield
        except BaseException as error:
            if isinstance(error, RuntimeError):  # A lost connection is one.
                watch.suspect()
            watch.end(_reason(error))
            raise
        else:
            watch.end("")
        finally:
            watch.close()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that gets the number of each signal, even while the main thread waits in a sum and runs no handler.

    SIGTERM, with which torchrun stops a process, does nothing else in this context.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with reader, writer:
        descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            yield reader
        finally:
            signal.signal(signal.SIGTERM, handler)
            signal.set_wakeup_fd(descriptor)


def _reason(error: BaseException) -> str:
    """The reason why a process ends with this error; empty where its work is done."""
    if isinstance(error, SystemExit):
        return f"exit code {error.code}; see what it printed" if error.code else ""
    return "" if isinstance(error, GateError) else hide_passwords(str(error)) or type(error).__name__


def agree(workspace: Path, settings: Mapping[str, str]) -> None:
    """Waits until all processes have said what they were started with.

    Raises:
        ConfigError: a process has another workspace or other settings than process 0; names it, its machine and these.
    """
    store, rank, size = meet()
    if rank == 0:
        workspace.mkdir(parents=True, exist_ok=True)
        store.set("mark", f".seen-{secrets.token_hex(8)}")
    mark = workspace.resolve() / store.get("mark").decode()
    if rank == 0:
        mark.touch()
        store.set("marked", "")
    store.get("marked")  # Waits.
    lacks = "" if mark.is_file() else ", which is not the folder of process 0"
    stated = {"the workspace": f"{workspace.resolve()}{lacks}", **settings}
    store.set(f"settings/{rank}", json.dumps([platform.node(), stated]))
    try:
        (first_host, first), *rest = (json.loads(store.get(f"settings/{peer}")) for peer in range(size))
    finally:
        if rank == 0:
            mark.unlink(missing_ok=True)
    for peer, (host, other) in enumerate(rest, start=1):
        if differences := _differences(first, other):
            raise ConfigError(
                f"process {peer} on {host} differs from process 0 on {first_host}: {differences}. "
                "Give all processes the same command, recipe, versions, and a workspace that they share"
            )


def _differences(first: Mapping[str, str], other: Mapping[str, str]) -> str:
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    parts = [f"{name} is {other.get(name, 'missing')}, not {first.get(name, 'missing')}" for name in names[:SHOWN]]
    return "; ".join(parts + [f"and {len(names) - SHOWN} more"] * (len(names) > SHOWN))
