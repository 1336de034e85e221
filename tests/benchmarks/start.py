"""Start of the service in two versions of this repository, by turns: seconds and CPU-seconds until it is ready.

    python tests/benchmarks/start.py WORKSPACE OLD NEW [TURNS]

OLD and NEW are check-outs; WORKSPACE holds a release that both can serve, such as the one unpacked from
tests/flows/before/workspace.tar.xz. The CPU-seconds are those of all processes of the service.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(process: int) -> float:
    """CPU-seconds of a process and of all that descend from it."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    own = sum(int(fields[number]) for number in (11, 12, 13, 14)) / TICKS
    children = [
        int(child)
        for thread in Path(f"/proc/{process}/task").iterdir()
        for child in (thread / "children").read_text(encoding="utf-8").split()
    ]
    return own + sum(cpu_s(child) for child in children)


def start(tree: Path, workspace: Path, port: int) -> tuple[float, float]:
    """Seconds and CPU-seconds of a service until it answers that it is ready."""
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "flows.cli", "serve", "--workspace", str(workspace), "--port", str(port)]
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        service = subprocess.Popen(command, env=environment, cwd=workspace, stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
                    return time.monotonic() - began, cpu_s(service.pid)
                except (urllib.error.URLError, OSError):
                    if service.poll() is not None or time.monotonic() - began > 120:
                        log.seek(0)
                        raise SystemExit(f"{tree} does not start: {log.read().decode()[-2000:]}") from None
                    time.sleep(0.02)
        finally:
            service.terminate()
            service.wait()


def main(workspace: Path, trees: list[Path], turns: int) -> None:
    """Prints the medians of each version."""
    measured: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder:
        copies = {tree: Path(folder) / str(number) for number, tree in enumerate(trees)}
        for copy in copies.values():
            shutil.copytree(workspace, copy)
        for turn in range(turns):
            for tree in trees if turn % 2 else reversed(trees):
                port = 18000 + 2 * turn + trees.index(tree)
                measured[tree].append(start(tree, copies[tree], port))
    for tree, values in measured.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{tree}: ready after {wall:.2f} s, {cpu:.2f} CPU-s (medians of {turns})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(sys.argv[2]), Path(sys.argv[3])], int(sys.argv[4]) if len(sys.argv) > 4 else 8)
