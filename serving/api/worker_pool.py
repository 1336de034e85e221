"""Threads that work on requests beside the event loop, which never waits for a model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from serving.errors import ClientGoneError
from serving.runtime.deadline import Deadline

T = TypeVar("T")


class WorkerPool:
    """Runs functions for requests; gives up on one when its deadline passes or its client leaves."""

    def __init__(self, workers: int, name: str = "work") -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(
        self, call: Callable[[], T], deadline: Deadline, receive: Receive, *, past_deadline: bool = False
    ) -> T:
        """The result of `call`, made before the deadline.

        Args:
            call: runs in a thread; it checks the same deadline between its parts, so it ends soon after it passed.
            receive: the request's, after its body was read; tells when the client leaves.
            past_deadline: `call` returns something useful when the deadline passes, so it is waited for.

        Raises:
            DeadlineError: the deadline passed, perhaps while all threads were busy or just before `call` returned.
            ClientGoneError: nobody waits any more.
            Exception: whatever `call` raises.
        """

        def begin() -> T:
            if not past_deadline:
                deadline.check()  # The time may have passed while all threads were busy.
            return call()

        future = asyncio.wrap_future(self._pool.submit(begin))
        gone = asyncio.create_task(_disconnect(receive))
        try:
            waited: set[asyncio.Future[Any]] = {future, gone}
            timeout = None if past_deadline else deadline.remaining
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                result = future.result()
                if not past_deadline:
                    deadline.check()
                return result
            if gone.done():
                raise ClientGoneError("the client closed the connection")
            raise deadline.passed()
        except BaseException:
            deadline.cancel()  # Ends what `call` still does.
            raise
        finally:
            future.cancel()
            gone.cancel()

    def stop(self) -> None:
        """Lets running work end and takes no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
