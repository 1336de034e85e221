"""CPU time of a request to the service in two versions of this repository, both running, by short turns.

    python tests/benchmarks/requests_per_cpu.py WORKSPACE OLD NEW [TURNS]

Each version's client asks /rerank over one connection for 20 new documents, and for two that the cache has. Models of
a few units, such as those of the workspace in tests/flows/before/workspace.tar.xz, show what the service itself costs.
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
from itertools import islice
from pathlib import Path
from typing import Any

from start import COMMAND, environment

WARM_UP, DOCUMENTS = 50, 20
REQUESTS = {True: 8, False: 24}
"""Requests of one turn, for new documents and for cached ones."""


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


def processes_of(service: int) -> list[int]:
    """The processes of a service: its parent process and all that descend from it."""
    command = ["ps", "-e", "-o", "pid=,ppid="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    parents = {int(process): int(parent) for process, parent in map(str.split, listed)}
    processes = [service]
    for process in processes:  # The list grows by the children of each.
        processes += [child for child, parent in parents.items() if parent == process]
    return processes


def cpu_ns(process: int) -> int:
    """CPU-nanoseconds of a process, of threads that have ended too; raises OSError if the process has ended."""
    return time.clock_gettime_ns(~process << 3 | 2)  # The clock of clock_getcpuclockid(3), which Python does not have.


class RunningService:
    """A version's service on its own copy of the workspace, with one client."""

    def __init__(self, tree: Path, workspace: Path, port: int) -> None:
        command = [*COMMAND, "serve", "--workspace", str(workspace), "--port", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.tree = tree
        self._parent = subprocess.Popen(command, env=environment(tree, workspace), cwd=workspace, **quiet)
        try:
            self._client = connect(port, self._parent)
            self._processes = processes_of(self._parent.pid)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._parent.terminate()
        self._parent.wait()

    def cpu_us(self, requests: list[str]) -> float:
        """CPU-microseconds of each of these requests on average."""
        began = sum(map(cpu_ns, self._processes))
        for body in requests:
            self._client.request("POST", "/rerank", body, {"content-type": "application/json"})
            answer = self._client.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"{self.tree}: status {answer.status}")
        return (sum(map(cpu_ns, self._processes)) - began) / len(requests) / 1000


def measure(services: list[RunningService], turns: int, *, new_documents: bool) -> None:
    """Prints the medians of each version, and of its ratio to the first one in the same turn."""
    texts = map(json.dumps, bodies(new_documents))
    for service in services:
        service.cpu_us(list(islice(texts, WARM_UP)))
    spent: dict[Path, list[float]] = {service.tree: [] for service in services}
    for turn in range(turns):
        requests = list(islice(texts, REQUESTS[new_documents]))
        for service in services if turn % 2 else reversed(services):
            spent[service.tree].append(service.cpu_us(requests))
    kind = f"{DOCUMENTS} new documents" if new_documents else "from the cache"
    first = spent[services[0].tree]
    for tree, values in spent.items():
        ratio = statistics.median(own / other for own, other in zip(values, first, strict=True))
        median = statistics.median(values)
        print(
            f"{tree}, {kind}: {median:.0f} CPU-µs a request, {1e6 / median:.0f} a CPU-second; {ratio:.3f} of the first"
        )


def main(workspace: Path, trees: list[Path], turns: int) -> None:
    """Measures both kinds of requests while all versions run, so that they meet the same load of the machine."""
    services: list[RunningService] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, tree in enumerate(trees):
                copy = Path(folder) / str(number)
                shutil.copytree(workspace, copy)
                services.append(RunningService(tree, copy, 21000 + number))
            for kind in (True, False):
                measure(services, turns, new_documents=kind)
        finally:
            for service in services:
                service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(sys.argv[2]), Path(sys.argv[3])], int(sys.argv[4]) if len(sys.argv) > 4 else 100)
