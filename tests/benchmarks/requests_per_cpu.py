"""Requests per CPU-second of the service in two versions of this repository, by turns.

    python tests/benchmarks/requests_per_cpu.py WORKSPACE OLD NEW [TURNS]

One client with one connection asks /rerank for 20 new documents, and for two that the cache has. Models of a few
units, such as those of the workspace in tests/flows/before/workspace.tar.xz, show what the service itself costs.
"""

import http.client
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from start import COMMAND, cpu_s, environment

WARM_UP, REQUESTS, DOCUMENTS = 50, 1000, 20


def bodies(new_documents: bool) -> Iterator[dict[str, Any]]:
    """Request bodies without end."""
    draw = random.Random(7)
    words = [f"w{number}" for number in range(5000)]
    while True:
        if new_documents:
            texts = [" ".join(draw.choices(words, k=12)) for _ in range(DOCUMENTS)]
            yield {"query": f"q {draw.choice(words)}", "texts": texts}
        else:
            yield {"query": "same", "texts": ["one", "two"]}


def connect(port: int, service: subprocess.Popen[bytes]) -> http.client.HTTPConnection:
    """A connection to the service, as soon as it is ready."""
    until = time.monotonic() + 120
    while service.poll() is None and time.monotonic() < until:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            client.request("GET", "/readyz")
            client.getresponse().read()
            # Head and body go out in two writes; without this, the second waits 40 ms for the first one's receipt.
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"the service on port {port} does not start")


def rate(tree: Path, workspace: Path, port: int, *, new_documents: bool) -> float:
    """Requests per CPU-second of all processes of the service."""
    command = [*COMMAND, "serve", "--workspace", str(workspace), "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    service = subprocess.Popen(command, env=environment(tree, workspace), cwd=workspace, **quiet)
    try:
        client = connect(port, service)
        began = 0.0
        for number, body in zip(range(WARM_UP + REQUESTS), bodies(new_documents), strict=False):
            if number == WARM_UP:
                began = cpu_s(service.pid)
            client.request("POST", "/rerank", json.dumps(body), {"content-type": "application/json"})
            answer = client.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"{tree}: status {answer.status}")
        return REQUESTS / (cpu_s(service.pid) - began)
    finally:
        service.terminate()
        service.wait()


def main(workspace: Path, trees: list[Path], turns: int) -> None:
    """Prints the medians of each version."""
    rates: dict[tuple[Path, bool], list[float]] = {(tree, kind): [] for tree in trees for kind in (True, False)}
    with tempfile.TemporaryDirectory() as folder:
        copies = {tree: Path(folder) / str(number) for number, tree in enumerate(trees)}
        for copy in copies.values():
            shutil.copytree(workspace, copy)
        for turn in range(turns):
            for tree in trees if turn % 2 else reversed(trees):
                for kind in (True, False):
                    port = 21000 + 4 * turn + 2 * trees.index(tree) + kind
                    rates[tree, kind].append(rate(tree, copies[tree], port, new_documents=kind))
    for tree in trees:
        new, cached = (statistics.median(rates[tree, kind]) for kind in (True, False))
        print(f"{tree}: requests per CPU-second {new:.0f} with {DOCUMENTS} new documents, {cached:.0f} from the cache")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(sys.argv[2]), Path(sys.argv[3])], int(sys.argv[4]) if len(sys.argv) > 4 else 4)
