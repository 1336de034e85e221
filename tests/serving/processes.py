"""Starts the service as processes of its own, for tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.patience import PATIENCE_S

FOR_TESTS = {
    "RELEVANCE_PORT": "0",
    "RELEVANCE_THREADS": "1",
    "RELEVANCE_DEADLINE_S": str(PATIENCE_S),
    "RELEVANCE_MAX_DEADLINE_S": str(PATIENCE_S),
}

START = """
import sys
from pathlib import Path
from pipeline.errors import RelevanceError
from serving import settings
from serving.process import launch
try:
    launch.serve(settings.from_environment(workspace=Path(sys.argv[1])))
except RelevanceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
heavy = {"numpy", "onnxruntime", "fastapi", "starlette", "torch", "transformers", "pandas", "sklearn", "scipy"}
heavy &= set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


@dataclass
class Server:
    """A running service; its log is read as it is written."""

    process: subprocess.Popen[str]
    port: int
    log: list[dict[str, Any]]
    reader: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return children(self.process.pid)

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.close()
        return code

    def close(self) -> None:
        """Frees what watched a process that has ended."""
        self.reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def logged(self, test: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """The first event that passes, once there is one."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in list(self.log):
                if test(line):
                    return line
            time.sleep(0.01)
        raise AssertionError(self.log[-5:])


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            pids.append(int(stat.parent.name))
    return pids


def clean_environment() -> dict[str, str]:
    """This process's environment without the variables that tell tests where services are."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELEVANCE_TEST_")}


def start(workspace: Path, code: str = START, **environ: str) -> Server:
    """Starts the service on a free port and waits until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace)],
        env={**clean_environment(), **FOR_TESTS, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    return watch(process)


def watch(process: subprocess.Popen[str]) -> Server:
    """The service of a process, once it answers; its standard error is a pipe."""
    log: list[dict[str, Any]] = []
    port: list[int] = []
    announced = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            # A command that prepares something before it serves writes plain lines until then.
            log.append(json.loads(line) if line.startswith("{") else {"message": line.rstrip()})
            if "port" in log[-1]:
                port.append(log[-1]["port"])
                announced.set()
        announced.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert announced.wait(120)
    assert port, log
    return Server(process, port[0], log, reader)
