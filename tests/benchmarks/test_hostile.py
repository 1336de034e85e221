"""Hostile bodies beside a probe of small requests: the probe's P99, peak memory, and no answer of 500 or above.

    RELEVANCE_HOSTILE_S=600 pytest tests/benchmarks/test_hostile.py -m benchmark -s

First each kind of body is sent alone, at the limit and to each path, and its peak memory is measured. Then one client
sends bodies up to the limit as fast as it is answered: wrong items by the million, texts of white space, deep nesting,
long keys, torn JSON, wrong heads and raw bytes. A second one repeats the same small request. The model is tiny, so what
is measured is the service.
"""

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from tests.serving.conftest import TinyWorkspace
from tests.serving.processes import Server, start

SECONDS = float(os.environ.get("RELEVANCE_HOSTILE_S", "60"))
LIMIT = 16 * 2**20
"""Default of `Settings.max_body_bytes`."""
MOST_GROWTH = 20
"""Times the largest body, that the memory of the service may grow by."""
PROBE = {"query": "a list", "texts": ["sort a list", "open a file"]}

PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/search", "/embed", "/v1/embeddings", "/")


def _repeated(head: str, item: str, tail: str, size: int) -> bytes:
    return (head + ",".join([item] * max(1, size // (len(item) + 1))) + tail).encode()


BODIES: dict[str, Callable[[int], bytes]] = {
    "numbers for documents": lambda size: _repeated('{"query": "q", "documents": [', "1", "]}", size),
    "objects without text": lambda size: _repeated('{"query": "q", "documents": [', '{"id": 7}', "]}", size),
    "rank fields": lambda size: (
        _repeated('{"query": "q", "rank_fields": [', '"f"', "], ", size // 2)
        + _repeated('"documents": [', '{"f": "t"}', "]}", size // 2)
    ),
    "one long text": lambda size: json.dumps({"query": "q", "texts": ["word " * (size // 5)]}).encode(),
    "white space": lambda size: json.dumps({"query": "q", "texts": [" " * size]}).encode(),
    "a long query": lambda size: json.dumps({"query": "list " * (size // 5)}).encode(),
    "many short texts": lambda size: _repeated('{"query": "q", "texts": [', '"a"', "]}", size),
    "inputs": lambda size: _repeated('{"input": [', '"a"', "]}", size),
    "token ids": lambda size: _repeated('{"input": [[', "7", "]]}", size),
    "nesting": lambda size: b'{"query": ' + b"[" * size,
    "keys": lambda size: json.dumps({f"k{number}": number for number in range(size // 12)}).encode(),
    "torn": lambda size: b'{"query": "q", "texts": ["' + b"a" * size,
    "surrogates": lambda size: b'{"query": "' + b"\\ud800" * (size // 6) + b'"}',
    "nulls": lambda size: _repeated('{"query": null, "texts": [', "null", "]}", size),
    "low surrogates": lambda size: b'{"query": "' + b"\\udc00" * (size // 6) + b'"}',
    "backslashes": lambda size: b'{"query": "' + b"\\\\" * (size // 2) + b'"}',
    "brackets in a text": lambda size: b'{"query": "q", "texts": ["' + b"[,{" * (size // 3) + b'"]}',
    "empty objects": lambda size: _repeated('{"query": "q", "documents": [', "{}", "]}", size),
    "lists of token ids": lambda size: _repeated('{"inputs": [', "[7,8,9]", "]}", size),
    "deep lists": lambda size: _repeated('{"query": "q", "documents": [', "[" * 150 + "]" * 150, "]}", size),
    "filters": lambda size: _repeated('{"query": "q", "filters": {"year": [', "{}", "]}}", size),
    "documents given back": lambda size: json.dumps(
        {"query": "q", "return_documents": True, "documents": ["a" * (size // 1000)] * 1000}
    ).encode(),
    "many long texts": lambda size: json.dumps({"query": "q", "texts": ["list " * (size // 5000)] * 1000}).encode(),
    "bytes": lambda size: random.Random(size).randbytes(size),
}

RAW = (
    b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 200_000,
    b"POST /rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n{",
    b"POST /rerank HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzzzz\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000,
    b"POST /rerank HTTP/1.1\r\nhost: localhost\r\nx-request-timeout-ms: " + b"9" * 5000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(3000)) + b"\r\n",
    b"GET /search?q=" + b"%F0%9F" * 5000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * 500,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    b"\r\n" * 1000,
)


@dataclass
class Seen:
    """The statuses that the hostile client got, and the milliseconds of the probe."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    """Body → seconds until the slowest answer."""
    probe: list[float] = field(default_factory=list)
    probe_statuses: Counter[int] = field(default_factory=Counter)


def _post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (ConnectionError, http.client.HTTPException):
        return 0  # The service closed on a body that it had refused already.
    finally:
        connection.close()


def _attack(port: int, seen: Seen, until: float) -> None:
    draw = random.Random(11)
    while time.monotonic() < until:
        if draw.random() < 0.1:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, contextlib.suppress(OSError):
                raw.sendall(draw.choice(RAW))
            continue
        name, path = draw.choice(list(BODIES)), draw.choice(PATHS)
        size = draw.choice((100, 10_000, 1_000_000, 4_000_000, LIMIT - 2**16))
        body = BODIES[name](size)
        began = time.monotonic()
        status = _post(port, path, body)
        seen.slowest[name] = max(seen.slowest.get(name, 0.0), time.monotonic() - began)
        seen.statuses[status] += 1
        if status >= 500 and status != 504:
            seen.failures.append(f"{status} for {name} of {size:,} bytes at {path}")


def _attack_and_tell(port: int, until: float, sender: Connection) -> None:
    seen = Seen()
    _attack(port, seen, until)
    sender.send(seen)


def _probe(port: int, seen: Seen, until: float) -> None:
    body = json.dumps(PROBE).encode()
    while time.monotonic() < until:
        began = time.monotonic()
        seen.probe_statuses[_post(port, "/rerank", body)] += 1
        seen.probe.append(1000 * (time.monotonic() - began))
        time.sleep(0.02)


def _resident_mb(pid: int, what: str) -> float:
    """Memory of a process and its children, in MB: `VmRSS` now, `VmHWM` at the most."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if folder.name == str(pid) or lines["PPid"].strip() == str(pid):
            total += int(lines.get(what, "0 kB").split()[0])
    return total / 1024


def _growth_by_kind(server: Server) -> dict[str, tuple[float, float]]:
    """Kind of body → MB that the service grew by at the peak while it answered such bodies, and times the body."""
    growth = {}
    for name, make in BODIES.items():
        body = make(LIMIT - 2**16)
        before = _resident_mb(server.process.pid, "VmRSS")
        for worker in server.workers:
            Path(f"/proc/{worker}/clear_refs").write_text("5")  # Makes the present memory the peak.
        for path in PATHS:
            status = _post(server.port, path, body)
            assert status < 500 or status == 504, f"{status} for {name} at {path}"
        grown = _resident_mb(server.process.pid, "VmHWM") - before
        growth[name] = (grown, grown * 2**20 / len(body))
    return growth


@pytest.mark.benchmark
def test_small_requests_beside_hostile_ones(tmp_path: Path) -> None:
    workspace = TinyWorkspace(tmp_path)
    workspace.releases.promote(workspace.publish(1), reason="test")
    server = start(tmp_path)
    try:
        quiet, loaded = Seen(), Seen()
        _probe(server.port, quiet, time.monotonic() + 5)
        before = _resident_mb(server.process.pid, "VmRSS")
        kinds = _growth_by_kind(server)
        until = time.monotonic() + SECONDS
        # Another process: making large bodies in this one would hold up the probe itself.
        receiver, sender = (forks := multiprocessing.get_context("fork")).Pipe(duplex=False)
        attacker = forks.Process(target=_attack_and_tell, args=(server.port, until, sender), daemon=True)
        attacker.start()
        _probe(server.port, loaded, until)
        attacks: Seen = receiver.recv()
        attacker.join()
        loaded.statuses, loaded.failures, loaded.slowest = attacks.statuses, attacks.failures, attacks.slowest
        peak = _resident_mb(server.process.pid, "VmHWM")
    finally:
        code = server.stop()
    print(f"{SECONDS:.0f} s, {loaded.statuses.total():,} hostile requests: {dict(sorted(loaded.statuses.items()))}")
    for name, seen in (("alone", quiet), ("beside them", loaded)):
        p50, p99, most = np.percentile(seen.probe, [50, 99, 100])
        print(f"probe {name}: {len(seen.probe):,} requests, ms: p50 {p50:.1f}, p99 {p99:.1f}, most {most:.1f}")
    for name, seconds in sorted(loaded.slowest.items(), key=lambda item: -item[1])[:6]:
        print(f"slowest answer to {name}: {seconds:.2f} s")
    for name, (grown, ratio) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        print(f"memory for {name}: {grown:.0f} MB more at the peak, {ratio:.1f} × the body")
    growth = (peak - before) * 2**20 / LIMIT
    print(f"memory: {before:.0f} MB before, {peak:.0f} MB at the most: {growth:.1f} × the largest body")
    assert max(growth, *(ratio for _, ratio in kinds.values())) <= MOST_GROWTH
    assert loaded.failures == []
    assert set(loaded.probe_statuses) == {200}
    assert code == 0
