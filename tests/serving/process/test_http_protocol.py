"""Connections under limits, and what happens to each kind of connection while the service shuts down."""

import asyncio
import functools
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from serving.process import http_protocol, worker
from serving.process.http_protocol import ConnectionLimits, LimitedProtocol
from serving.process.listener import has_waiting, listen
from serving.settings import Settings

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
LONG = ConnectionLimits(read_s=60, requests=1000, age_s=1000)


class RunningServer:
    """A worker's HTTP server around a small app, in a thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.listener = listen(Settings(port=0))
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.draining = threading.Event()
        self.answer = threading.Event()
        self.answer.set()
        self.called = threading.Event()
        protocol: Any = functools.partial(LimitedProtocol, limits=limits, draining=self.draining)
        config = uvicorn.Config(
            self.app, http=protocol, log_config=None, interface="asgi3", lifespan="off", timeout_graceful_shutdown=60
        )
        self.server = worker.Server(config, self.draining, lambda: True)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.listener])))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.called.set()
        while not self.answer.is_set():
            await asyncio.sleep(0.005)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def stop(self) -> None:
        """Stops the server, like SIGTERM; returns when the shutdown has begun."""
        self.server.should_exit = True
        assert self.draining.wait(60)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)


@contextmanager
def running(limits: ConnectionLimits = LONG) -> Iterator[RunningServer]:
    server = RunningServer(limits)
    server.thread.start()
    try:
        yield server
    finally:
        server.answer.set()
        server.server.should_exit = True
        server.thread.join(60)
        assert not server.thread.is_alive()


def read_answer(connection: socket.socket) -> bytes:
    """Reads one answer, which ends with its body."""
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        part = connection.recv(4096)
        assert part, received
        received += part
    return received


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections without a request stay open for a minute, so that no test depends on the machine's speed."""
    monkeypatch.setattr(http_protocol, "GOODBYE_S", 60)


@pytest.mark.usefixtures("patient")
def test_connections_of_every_kind_are_answered_while_the_service_shuts_down() -> None:
    with running() as server, closing(server.connect()) as fresh, closing(server.connect()) as kept:
        half, busy = server.connect(), server.connect()
        kept.sendall(REQUEST)
        assert b"connection: close" not in read_answer(kept)
        half.sendall(REQUEST[:10])
        server.called.clear()
        server.answer.clear()
        busy.sendall(REQUEST)
        assert server.called.wait(60)
        server.stop()
        server.answer.set()
        fresh.sendall(REQUEST)
        kept.sendall(REQUEST)
        half.sendall(REQUEST[10:])
        for connection in (fresh, kept, half, busy):
            assert b"connection: close" in read_answer(connection)
            assert connection.recv(1) == b""
        half.close()
        busy.close()
        server.thread.join(60)
        assert not server.thread.is_alive()


def test_connections_that_nobody_has_accepted_are_answered_while_the_service_shuts_down() -> None:
    server = RunningServer(LONG)
    with closing(server.listener):
        waiting = [server.connect() for _ in range(20)]
        for connection in waiting:
            connection.sendall(REQUEST)
        assert has_waiting(server.listener)
        server.thread.start()
        server.stop()
        for connection in waiting:
            assert read_answer(connection)
            connection.close()
        server.thread.join(60)
        assert not server.thread.is_alive()


@pytest.mark.skipif(not hasattr(socket, "SO_INCOMING_CPU"), reason="packet filters are a feature of Linux")
@pytest.mark.usefixtures("patient")
def test_new_connections_are_not_taken_while_the_service_shuts_down() -> None:
    """A client's connection is refused, or tried again by its kernel, but never taken and dropped."""
    with running() as server, closing(server.connect()) as kept:
        server.stop()
        with pytest.raises(OSError, match=r"timed out|refused"):
            socket.create_connection(server.address, timeout=0.5)
        kept.sendall(REQUEST)
        assert b"connection: close" in read_answer(kept)


def test_idle_connections_do_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "GOODBYE_S", 0)
    with running() as server, closing(server.connect()) as idle, closing(server.connect()) as kept:
        kept.sendall(REQUEST)
        read_answer(kept)
        server.stop()
        assert idle.recv(1) == b""
        assert kept.recv(1) == b""


def test_a_connection_closes_after_its_number_of_requests() -> None:
    limits = ConnectionLimits(read_s=60, requests=3, age_s=1000)
    with running(limits) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        headers = [client.get("/").headers.get("connection") for _ in range(7)]
    assert headers == [None, None, "close", None, None, "close", None]


def test_a_connection_closes_after_its_age() -> None:
    limits = ConnectionLimits(read_s=60, requests=1000, age_s=1e-9)
    with running(limits) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert [client.get("/").headers.get("connection") for _ in range(2)] == ["close", "close"]


def test_a_head_that_stops_is_answered_with_408() -> None:
    with running(ConnectionLimits(read_s=0.05, requests=9, age_s=9)) as server, closing(server.connect()) as connection:
        connection.sendall(REQUEST[:10])
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1) == b""


def test_a_request_that_has_arrived_is_answered_though_its_connection_was_to_be_closed() -> None:
    """The timer of an idle connection may run before the event loop reads what the kernel holds."""
    ours, theirs = socket.socketpair()

    class Transport:
        closed = False

        def get_extra_info(self, name: str) -> Any:
            return ours if name == "socket" else None

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    async def close_idle(unread: bytes) -> bool:
        config = uvicorn.Config(lambda: None, log_config=None)
        state = uvicorn.server.ServerState()
        protocol = LimitedProtocol(config, state, {}, limits=LONG, draining=threading.Event())
        transport: Any = Transport()
        protocol.transport = transport
        theirs.sendall(unread)
        protocol.timeout_keep_alive_handler()
        return transport.closed

    with ours, theirs:
        assert asyncio.run(close_idle(b"")) is True
        assert asyncio.run(close_idle(b"GET")) is False
