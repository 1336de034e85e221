"""The compute engine on a Ray cluster: workers that hold the model, and a bounded window of batches in order.

    batches ─► to do ─► worker 1: two batches at most ─┐
                    ├─► worker 2                       ├─► finished, by number ─► results in order
                    └─► …                              ┘
                     ▲────────────── batches of a worker that died

Plain actors, not Ray Data: results are needed in order and one by one, as the stage writes them down as they come,
and the batch of a dead worker must be given to another at once. Ray Data would turn the batches into tables, and waits
for ever where its workers take every CPU of the cluster.

Here and not in Ray: which batch goes to which worker, and again after a worker died. Ray restarts no worker by itself.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline import compute, ray_cluster
from pipeline.compute import Batch, Result
from pipeline.config import ComputeConfig
from pipeline.errors import UnavailableError

DEPTH = 2
"""Batches that a worker has at a time, so that the next one is there when it has finished one."""
AHEAD = 2
"""Batches drawn ahead, as a multiple of what the workers have, so that a slow batch does not stop the others."""
LOSSES = 3
"""Workers that one batch may take with it before it is given up."""
START_S = 120.0
"""Seconds without any worker after which work is given up."""
POLL_S = 0.5
"""Seconds between two looks at the workers while batches are computed."""

log = logging.getLogger(__name__)


class RayEngine:
    """Calls the model on the workers of a Ray cluster; see `pipeline.compute.ComputeEngine`."""

    def __init__(self, config: ComputeConfig) -> None:
        self._config = config

    def map(self, model: Callable[[Batch], Result], batches: Iterable[Batch], *, label: str) -> Iterator[Result]:
        """See `ComputeEngine.map`. Without a first batch no cluster is asked for."""
        waiting = iter(batches)
        try:
            first = next(waiting)
        except StopIteration:
            return
        with ray_cluster.connected(self._config) as ray:
            head = ray_cluster.HeadWatch(ray, label)
            work = head.run(lambda: _Work(ray, self._config, model, head))
            try:
                yield from work.results(first, waiting)
            finally:
                head.run(work.close)


@dataclass(eq=False, slots=True)
class _Worker:
    """A process that holds the model."""

    actor: Any
    ready: Any
    """The reference that is there when the process has started."""
    is_ready: bool = False
    running: deque[int] = field(default_factory=deque)
    """Numbers of its batches, in their order."""


class _Work:
    """One call of `RayEngine.map`."""

    def __init__(
        self, ray: Any, config: ComputeConfig, model: Callable[[Any], Any], head: ray_cluster.HeadWatch
    ) -> None:
        self._ray, self._config, self._head, self._label = ray, config, head, head.label
        self._model = ray.put(model)
        self._count = ray_cluster.fit(ray, config, head.label)
        self._workers: list[_Worker] = []
        self._references: dict[Any, tuple[int, _Worker]] = {}
        self._held: dict[int, Any] = {}
        """Batches whose results were not given out yet."""
        self._to_do: deque[int] = deque()
        self._finished: dict[int, Any] = {}
        self._losses: dict[int, int] = {}
        self._failed_starts = 0
        self._last_worker = time.monotonic()

    def results(self, first: Any, waiting: Iterator[Any]) -> Iterator[Any]:
        """The results of all batches in order."""
        self._held[0] = first
        self._to_do.append(0)
        drawn, given, ended = 1, 0, False
        log.info("%s: on %d workers of a Ray cluster", self._label, self._count)
        while given < drawn or not ended:
            while not ended and drawn - given < self._count * DEPTH * AHEAD:
                try:
                    self._held[drawn] = next(waiting)
                except StopIteration:
                    ended = True
                else:
                    self._to_do.append(drawn)
                    drawn += 1
            while given in self._finished:
                del self._held[given]
                yield self._finished.pop(given)
                given += 1
            if given < drawn:
                self._head.run(self._step)

    def close(self) -> None:
        """Ends the workers, whatever became of their batches."""
        for worker in self._workers:
            self._ray.kill(worker.actor)

    def _step(self) -> None:
        self._start()
        self._submit()
        self._wait()
        self._head.require_machines()

    def _start(self) -> None:
        while len(self._workers) < self._count:
            options = {"num_cpus": self._config.cpus_per_worker, "num_gpus": self._config.gpus_per_worker}
            actor = self._ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **options)
            actor = actor.remote(self._config.cpus_per_worker)
            self._workers.append(_Worker(actor, actor.ready.remote()))

    def _submit(self) -> None:
        while self._to_do:
            free = [worker for worker in self._workers if worker.is_ready and len(worker.running) < DEPTH]
            if not free:
                return
            worker = min(free, key=lambda worker: len(worker.running))
            number = self._to_do.popleft()
            worker.running.append(number)
            reference = worker.actor.call.remote(self._model, self._held[number])
            self._references[reference] = (number, worker)

    def _wait(self) -> None:
        starting = {worker.ready: worker for worker in self._workers if not worker.is_ready}
        done, _ = self._ray.wait([*self._references, *starting], num_returns=1, timeout=POLL_S)
        for reference in done:
            if reference in starting:
                self._take_start(starting[reference])
            elif reference in self._references:  # It may have been that of a worker that is lost by now.
                self._take_result(reference)
        if any(worker.is_ready for worker in self._workers):
            self._last_worker = time.monotonic()
        elif time.monotonic() - self._last_worker > START_S:
            free = self._ray.available_resources()
            raise UnavailableError(
                f"{self._label}: no worker started on the Ray cluster in {START_S:g} s; it has {free.get('CPU', 0):g} "
                f"CPUs and {free.get('GPU', 0):g} GPUs free. {ray_cluster.RESUME}"
            )

    def _take_start(self, worker: _Worker) -> None:
        try:
            self._ray.get(worker.ready)
        except self._ray.exceptions.RayTaskError as error:
            raise ray_cluster.cause(error, self._label) from error
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= LOSSES * self._count:
                raise UnavailableError(
                    f"{self._label}: workers of the Ray cluster end before they have started; the last one: {error}. "
                    f"{ray_cluster.RESUME}"
                ) from error
            self._lose(worker, error)
        else:
            worker.is_ready = True

    def _take_result(self, reference: Any) -> None:
        number, worker = self._references[reference]
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise ray_cluster.cause(error, self._label) from error
        except self._ray.exceptions.RayError as error:
            self._lose(worker, error)
            return
        del self._references[reference]
        worker.running.remove(number)
        # Ray's arrays lie in its memory and hold it for as long as they live.
        self._finished[number] = copy.deepcopy(result)
        self._failed_starts = 0

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Gives the batches of a worker that died to others, unless too many died with one of them."""
        reason = str(error).split("\n")[0]
        log.warning("%s: a worker of the Ray cluster is lost: %s", self._label, reason)
        self._workers.remove(worker)
        self._references = {item: owner for item, owner in self._references.items() if owner[1] is not worker}
        for number in worker.running:  # Any of them may be the cause: the first may be done, and its result not sent.
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] >= LOSSES:
                raise UnavailableError(
                    f"{self._label}: {LOSSES} workers of the Ray cluster died with the same batch; the last one: "
                    f"{reason} Give workers more memory, or set compute.engine to local. {ray_cluster.RESUME}"
                ) from error
        self._to_do.extendleft(reversed(worker.running))


class _Actor:
    """A worker process."""

    def __init__(self, cpus: int) -> None:
        compute.become_worker(cpus)

    def ready(self) -> None:
        """Returns when the process has started."""

    def call(self, model: Callable[[Any], Any], batch: Any) -> Any:
        """The model's result. Ray gives the model as an object of its own each time, so the first one is kept."""
        self._model = getattr(self, "_model", model)
        return self._model(batch)
