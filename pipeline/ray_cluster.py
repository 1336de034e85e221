"""The connection to a Ray cluster, shared by all work of this process, and the watch over its head."""

import logging
import os
import platform
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.config import ComputeConfig
from pipeline.cores import cores
from pipeline.errors import ConfigError, MissingError, RelevanceError, UnavailableError

CHECK_S = 1.0
"""Seconds between looks at the head."""
HEAD_S = 10.0
"""Seconds without the head after which work is given up."""
RECONNECT_S = 2**31 - 1
"""Seconds without the head after which Ray ends this process without a word; 60 if nothing is set."""
CONNECT_S = 2.0
"""Seconds to wait for an answer of the head."""

RESUME = "What is finished is kept: the same command goes on after it"
"""Last sentence of every error that ends work on a cluster."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_users = 0
_lock = threading.Lock()
_lost = False
"""Whether a call of Ray was left behind when the head went: it may still hold what another connection would need."""


@contextmanager
def connected(config: ComputeConfig) -> Iterator[Any]:
    """The module ray, connected to the cluster of the config.

    A cluster on this machine is started if there is no address, and ends with the last work that uses it. A connection
    that somebody else made in this process is used, and left as it is.

    Raises:
        MissingError: Ray is not installed.
        UnavailableError: the cluster does not answer.
        ConfigError: this process is connected to another cluster.
    """
    global _users  # noqa: PLW0603
    ray = _imported()
    with _lock:
        if _lost:
            raise UnavailableError(f"this process has lost its Ray cluster and can use no other. {RESUME}")
        is_ours = _users > 0 or not ray.is_initialized()
        if not ray.is_initialized():
            _connect(ray, config)
        elif config.address and _address(ray) != _resolved(ray, config.address):
            raise ConfigError(
                f"compute.address is {config.address}, and this process is connected to {_address(ray)}; run the "
                "command by itself"
            )
        _users += is_ours
    try:
        yield ray
    finally:
        with _lock:
            _users -= is_ours
            if is_ours and not _users and not _lost:
                ray.shutdown()


def _imported() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(RECONNECT_S))
    try:
        import ray
    except ImportError as error:
        raise MissingError('compute.engine is "ray" and Ray is not installed; install search-relevance[ray]') from error
    return ray


def _connect(ray: Any, config: ComputeConfig) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
    if config.address:
        options["address"] = _resolved(ray, config.address)
        _require_head(options["address"])
    else:
        cpus = max(cores(), config.workers * config.cpus_per_worker)
        # The loopback address also spares Ray from asking the network which one this machine has.
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        where = config.address or "on this machine"
        raise UnavailableError(f"the Ray cluster {where} cannot be used: {error}") from error


def _address(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


def _resolved(ray: Any, address: str) -> str:
    """The address that Ray makes of it: this machine's own in place of 127.0.0.1."""
    return str(ray._private.services.canonicalize_bootstrap_address(address))


def _connection_error(address: str) -> OSError | None:
    """The error of a connection to HOST:PORT; None where something listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        return error
    return None


def _require_head(address: str) -> None:
    error = _connection_error(address)
    if error is not None:
        raise UnavailableError(
            f"compute.address {address}: no head of a Ray cluster answers ({error}); start one with "
            "`ray start --head`, or mend the address"
        )


class HeadWatch:
    """Runs calls of Ray, and gives up when the head of the cluster is gone: Ray itself would let them wait for ever."""

    def __init__(self, ray: Any, label: str) -> None:
        self._ray, self.label = ray, label
        self._address = _address(ray)
        self._looked = self._saw_machines = time.monotonic()
        self._gone_since: float | None = None

    def run(self, step: Callable[[], Result]) -> Result:
        """The result of a function that calls Ray, in a thread of its own.

        Raises:
            UnavailableError: the head has not answered for `HEAD_S`. A step that still waits for it is left behind;
                this process can then use no cluster any more.
            BaseException: whatever the step raised.
        """
        global _lost  # noqa: PLW0603
        outcome: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()

        def work() -> None:
            future: Future[Result] = Future()
            try:
                future.set_result(step())
            except BaseException as error:  # It is raised where the step is waited for.
                future.set_exception(error)
            outcome.put(future)

        threading.Thread(target=work, name=f"ray: {self.label}", daemon=True).start()
        while True:
            try:
                future = outcome.get(timeout=CHECK_S)
            except queue.Empty:
                try:
                    self._look()
                except UnavailableError:
                    _lost = True
                    raise
            else:
                self._look()
                return future.result()

    def require_machines(self) -> None:
        """Asks the head, once in `CHECK_S`, for the machines of the cluster; part of a step.

        Raises:
            UnavailableError: none of them is alive.
        """
        now = time.monotonic()
        if now - self._saw_machines >= CHECK_S:
            self._saw_machines = now
            if not any(node["Alive"] for node in self._ray.nodes()):
                raise UnavailableError(
                    f"{self.label}: no machine of the Ray cluster {self._address} is alive; {RESUME}"
                )

    def _look(self) -> None:
        """Raises UnavailableError if nothing has listened at the head's address for `HEAD_S`."""
        if time.monotonic() - self._looked < CHECK_S:
            return
        error = _connection_error(self._address)
        self._looked = time.monotonic()
        if error is None:
            self._gone_since = None
            return
        self._gone_since = self._gone_since or self._looked
        if self._looked - self._gone_since >= HEAD_S:
            raise UnavailableError(
                f"{self.label}: the head of the Ray cluster, {self._address}, is gone ({error}); start the cluster "
                f"again. {RESUME}"
            )


def fit(ray: Any, config: ComputeConfig, label: str) -> int:
    """The number of workers to start: those of the config, as far as the machines of the cluster have room.

    Raises:
        ConfigError: no machine is large enough for one.
    """
    needs = {"CPU": float(config.cpus_per_worker), "GPU": config.gpus_per_worker}
    room, largest = 0, dict.fromkeys(needs, 0.0)
    for node in ray.nodes():
        if node["Alive"]:
            has = {name: float(node["Resources"].get(name, 0)) for name in needs}
            largest = {name: max(largest[name], has[name]) for name in needs}
            # Not `//`: 1 // 0.2 is 4, as the nearest float to 0.2 is a little more than a fifth.
            room += int(min(has[name] / amount + 1e-9 for name, amount in needs.items() if amount))
    if not room:
        raise ConfigError(
            f"{label}: no machine of the Ray cluster has {config.cpus_per_worker} CPUs and {config.gpus_per_worker:g} "
            f"GPUs for a worker; the largest has {largest['CPU']:g} and {largest['GPU']:g}. Lower "
            "compute.cpus_per_worker or compute.gpus_per_worker"
        )
    if config.workers > room:
        log.warning("%s: the Ray cluster has room for %d of %d workers", label, room, config.workers)
    return min(config.workers, room) if config.workers else room


def cause(error: Any, label: str) -> RelevanceError:
    """The error that a model raised on a worker, as it would have been raised here."""
    original = error.cause
    if isinstance(original, RelevanceError):
        return original
    return RelevanceError(f"{label}: a worker of the Ray cluster failed ({platform.node()} asked it): {original!r}")
