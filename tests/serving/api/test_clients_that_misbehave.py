"""Clients that are slow, leave, or send nonsense, on real sockets; none of them may cost another its answer."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.serving.processes import Server, start

BODY = json.dumps({"query": "q", "texts": ["a"]}).encode()
HEAD = b"POST /rerank HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Server]:
    """A service that waits for its clients longer than a busy machine holds them up."""
    service = start(tiny.path, RELEVANCE_READ_S="60.0", RELEVANCE_LOG="json")
    yield service
    assert service.stop() == 0
    assert_no_failure(service)


@pytest.fixture(scope="module")
def hasty(tiny: Any) -> Iterator[Server]:
    """A service that gives up on a client after a second."""
    service = start(tiny.path, RELEVANCE_READ_S="1.0", RELEVANCE_LOG="json")
    yield service
    assert service.stop() == 0
    assert_no_failure(service)


def assert_no_failure(service: Server) -> None:
    """Asserts that nothing that a client did left a traceback in the log."""
    assert not [line for line in service.log if "traceback" in line or line["level"] == "error"]


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """The bytes that arrive until the other side closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def dribble(connection: socket.socket, data: bytes) -> bool:
    """Sends a byte at a time; whether the other side had enough before the end."""
    for position in range(len(data)):
        try:
            connection.sendall(data[position : position + 1])
        except OSError:
            return True
        time.sleep(0.1)
    return False


def post(server: Server, body: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/rerank", content=body, timeout=60)


def answers(server: Server) -> bool:
    """Whether an ordinary client gets its answer; a hasty service may find it late on a busy machine, so it repeats."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            answer = post(server, BODY)
        except httpx.RemoteProtocolError:
            continue
        if answer.status_code != 408:
            return answer.status_code == 200
    return False


def test_a_head_that_comes_a_byte_at_a_time_is_given_up_on(hasty: Server) -> None:
    with connect(hasty) as slow:
        assert dribble(slow, HEAD * 10)  # All of it would take more than a minute.
        assert answers(hasty)


def test_what_is_late_is_told_so(hasty: Server) -> None:
    with connect(hasty) as slow:
        slow.sendall(HEAD)
        assert everything(slow).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(hasty: Server) -> None:
    with connect(hasty) as silent:
        assert everything(silent) == b""


def test_a_body_that_does_not_come_is_a_408_that_clients_can_read(hasty: Server) -> None:
    with connect(hasty) as slow:
        slow.sendall(HEAD + b"content-length: 100\r\n\r\n" + b"{")
        answer = everything(slow)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert "did not arrive in 1 s" in json.loads(body)["message"]


def test_the_next_head_on_a_kept_connection_is_timed_too(hasty: Server) -> None:
    with connect(hasty) as kept:
        kept.sendall(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        time.sleep(1.5)  # Longer than a head may take: an idle connection is not a slow one.
        kept.sendall(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        kept.sendall(b"POST /re")
        answer = everything(kept)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b"HTTP/1.1 408 " in answer


def test_a_head_that_begins_with_the_bytes_of_the_request_before_is_timed_too(hasty: Server) -> None:
    with connect(hasty) as kept:
        kept.sendall(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY + b"POST /re")
        answer = everything(kept)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"HTTP/1.1 408 " in answer


def test_a_client_that_leaves_within_its_body_is_noted_and_harms_nobody(server: Server) -> None:
    with connect(server) as gone:
        gone.sendall(HEAD + b"x-request-id: left-1\r\ncontent-length: 100\r\n\r\n" + b"{")
    line = server.logged(lambda line: line.get("request_id") == "left-1")
    assert line["status"] == 499
    assert answers(server)


def test_what_is_not_http_is_refused(hasty: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, b"GET\r\n\r\n", b"\r\n" * 50_000):
        with connect(hasty) as wrong:
            try:
                wrong.sendall(nonsense)
                answer = everything(wrong)
            except ConnectionError:
                continue
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))
    assert answers(hasty)


def test_heads_larger_than_any_client_sends_are_refused(server: Server) -> None:
    with connect(server) as large:
        try:
            large.sendall(b"GET / HTTP/1.1\r\n" + b"x-y: " + b"a" * 10_000_000)
            answer = everything(large)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP/1.1 200")
    assert answers(server)


def test_a_body_of_single_bytes_is_refused(server: Server) -> None:
    with connect(server) as slow:
        try:
            slow.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000)
            answer = everything(slow)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    with connect(server) as patient:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
        patient.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert everything(patient).startswith(b"HTTP/1.1 200 ")
    assert answers(server)


def test_a_request_that_a_proxy_may_end_elsewhere_is_refused_with_its_connection(server: Server) -> None:
    """The request after the last chunk is a part of the body by content-length, so no proxy has looked at it."""
    hidden = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for length in (len(BODY), 6 + len(hidden)):
        framing = b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % length
        with connect(server) as smuggling:
            smuggling.sendall(HEAD + framing + b"0\r\n\r\n" + hidden)
            answer = everything(smuggling)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
    assert answers(server)


def test_bodies_that_wait_take_no_more_memory_than_is_allowed(tiny: Any) -> None:
    service = start(tiny.path, RELEVANCE_MAX_BODY_BYTES="2000", RELEVANCE_MAX_HELD_BYTES="3000", RELEVANCE_READ_S="60")
    body = BODY.ljust(2000)
    head = HEAD + b"content-length: 2000\r\nconnection: close\r\n\r\n"
    try:
        with connect(service) as first:
            first.sendall(head + body[:1900])
            until = time.monotonic() + 60
            # The service may read what the first one sent after it has answered another.
            while (refused := post(service, body)).status_code == 200:
                assert time.monotonic() < until
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert "RELEVANCE_MAX_HELD_BYTES" in refused.json()["message"]
            assert answers(service)
            first.sendall(body[1900:])
            assert everything(first).startswith(b"HTTP/1.1 200")
        assert post(service, body).status_code == 200
    finally:
        assert service.stop() == 0


def test_a_client_that_does_not_read_its_answers_is_cut_off(hasty: Server) -> None:
    """Else it would hold what its requests take for as long as it likes."""
    large = json.dumps({"query": "q", "documents": ["a" * 200_000] * 5, "return_documents": True}).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", hasty.port))
        deaf.settimeout(120)
        head = HEAD + b"content-length: %d\r\n\r\n" % len(large)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            # The network takes some of them; then only a reset ends the wait.
            deaf.sendall(100 * (head + large))
    assert answers(hasty)


def test_a_client_on_a_slow_line_reads_a_large_answer_to_its_end(tiny: Any) -> None:
    """It takes several times RELEVANCE_READ_S, and the buffers of the network hold a part of it only."""
    service = start(tiny.path, RELEVANCE_READ_S="2.0", RELEVANCE_LOG="json")
    large = json.dumps({"query": "q", "documents": ["a" * 200_000] * 75, "return_documents": True}).encode()
    received = b""
    try:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
            slow.connect(("127.0.0.1", service.port))
            slow.settimeout(120)
            slow.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(large) + large)
            while part := slow.recv(2**20, socket.MSG_WAITALL):
                received += part
                time.sleep(0.1)
        status, results = received[:12], received.count(b'"relevance_score"')
        assert (status, results) == (b"HTTP/1.1 200", 75)
    finally:
        assert service.stop() == 0


def test_a_refused_upload_leaves_its_room_to_the_others(tiny: Any) -> None:
    service = start(tiny.path, RELEVANCE_MAX_BODY_BYTES="2000", RELEVANCE_MAX_HELD_BYTES="5000", RELEVANCE_READ_S="60")
    body, head = BODY.ljust(2000), HEAD + b"content-length: 2000\r\nconnection: close\r\n\r\n"
    until = time.monotonic() + 60
    try:
        # A service that is held up reads an upload whole before the next; then there is room for each.
        while (statuses := three_at_once(service, head, body)) == [b"200", b"200", b"200"]:
            assert time.monotonic() < until
        assert statuses == [b"200", b"200", b"429"]
    finally:
        assert service.stop() == 0


def three_at_once(service: Server, head: bytes, body: bytes) -> list[bytes]:
    """The sorted statuses of three uploads that arrive in three parts each."""
    with ExitStack() as stack:
        uploads = [stack.enter_context(connect(service)) for _ in range(3)]
        for start_of, end in ((0, 1500), (1500, 1900), (1900, 2000)):
            for number, upload in enumerate(uploads):
                part = body[start_of:end]
                upload.sendall(head + part if not start_of else part)
                time.sleep(0.1 + 0.1 * number)
        return sorted(everything(upload).split()[1] for upload in uploads)
