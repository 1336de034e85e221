"""Start of the service, and `--help`, in two versions of this repository, by turns.

    python tests/benchmarks/start.py WORKSPACE OLD NEW [TURNS]

OLD and NEW are check-outs; WORKSPACE holds a release that both can serve, such as the one unpacked from
tests/flows/before/workspace.tar.xz. It prints seconds and CPU-seconds until the service is ready, those of all its
processes together, and CPU-seconds of `--help`.

Python's bytecode is compiled before the first turn, as it is for whatever pip has installed. Where the variable
PYTHONDONTWRITEBYTECODE is set, a check-out would otherwise compile its sources with every start.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "flows.cli")
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


def environment(tree: Path, workspace: Path) -> dict[str, str]:
    """The environment of a version's processes; its bytecode lies beside its copy of the workspace."""
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{workspace}-bytecode"}
    return {**os.environ, **bytecode, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}


def help_cpu_s(tree: Path, workspace: Path) -> float:
    """CPU-seconds of `--help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, "--help"], env=environment(tree, workspace), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start(tree: Path, workspace: Path, port: int) -> tuple[float, float]:
    """Seconds and CPU-seconds of a service until it answers that it is ready."""
    command = [*COMMAND, "serve", "--workspace", str(workspace), "--port", str(port)]
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        service = subprocess.Popen(command, env=environment(tree, workspace), cwd=workspace, stdout=log, stderr=log)
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


def measure(tree: Path, workspace: Path, port: int) -> tuple[float, float, float]:
    """Seconds and CPU-seconds until the service is ready, and CPU-seconds of `--help`."""
    return *start(tree, workspace, port), help_cpu_s(tree, workspace)


def main(workspace: Path, trees: list[Path], turns: int) -> None:
    """Prints the medians of each version."""
    measured: dict[Path, list[tuple[float, float, float]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder:
        copies = {tree: Path(folder) / str(number) for number, tree in enumerate(trees)}
        for number, (tree, copy) in enumerate(copies.items()):
            shutil.copytree(workspace, copy)
            measure(tree, copy, 17990 + number)  # Compiles the bytecode.
        for turn in range(turns):
            for tree in trees if turn % 2 else reversed(trees):
                port = 18000 + 2 * turn + trees.index(tree)
                measured[tree].append(measure(tree, copies[tree], port))
    for tree, values in measured.items():
        wall, cpu, help_cpu = (statistics.median(column) for column in zip(*values, strict=True))
        ready = f"ready after {wall:.2f} s, {cpu:.3f} CPU-s"
        print(f"{tree}: {ready}; --help {help_cpu:.3f} CPU-s (medians of {turns})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(sys.argv[2]), Path(sys.argv[3])], int(sys.argv[4]) if len(sys.argv) > 4 else 8)
