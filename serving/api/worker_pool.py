"""Where requests are worked on: a pool of threads beside the event loop, which never waits for a model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from serving.errors import ClientGoneError
from serving.runtime.deadline import Deadline

T = TypeVar("T")


class WorkerPool:
    """Runs one function a request; gives up on it when its deadline passes or its client goes."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")

    async def run(self, call: Callable[[], T], deadline: Deadline, receive: Receive, *, in_time: bool = False) -> T:
        """What `call` returns.

        Args:
            call: runs in a thread; it asks the same deadline between its parts, and so ends soon after it passed.
            receive: of the request, whose body was read; tells when the client goes.
            in_time: `call` has something to return when the deadline passes, so it is waited for.

        Raises:
            DeadlineError, ClientGoneError, or what `call` raises.
        """

        def begin() -> T:
            if not in_time:
                deadline.check()  # The time may have passed while all threads were busy.
            return call()

        future = asyncio.wrap_future(self._pool.submit(begin))
        gone = asyncio.create_task(_disconnect(receive))
        try:
            waited: set[asyncio.Future[Any]] = {future, gone}
            timeout = None if in_time else deadline.remaining
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise ClientGoneError("the client closed the connection")
            raise deadline.passed()
        finally:
            deadline.cancel()
            future.cancel()
            gone.cancel()

    def stop(self) -> None:
        """Lets running work end and takes no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
