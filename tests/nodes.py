"""Two machines as two agents of torchrun on this one, each with one process.

Agents and processes are forks of one server that has imported everything, as imports take most of the time otherwise.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]

WAIT_S = 240
"""Seconds after which a test gives up."""

CONTEXT = multiprocessing.get_context("forkserver")

MODULES = ("flows.cli.command", "flows.retrain", "flows.summary", "tests.pipeline.training.loop.test_peers")
"""Modules that the server imports."""


def command(*arguments: str | Path) -> None:
    """Runs the command `relevance` with these arguments."""
    from flows.cli.command import main

    sys.argv = ["relevance", *map(str, arguments)]
    main()


def start(work: Callable[..., None], arguments: Sequence[Sequence[Any]], folder: Path) -> list[BaseProcess]:
    """Starts a node for each list of arguments; each writes to `node-0.log`, `node-1.log`, … of a new folder.

    The first one keeps the store, and starts process 0.
    """
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    CONTEXT.set_forkserver_preload(list(MODULES))
    agents: list[BaseProcess] = []
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"):  # For the server.
        for number, given in enumerate(arguments):
            log = folder / f"node-{number}.log"
            log.touch()
            agents.append(CONTEXT.Process(target=_agent, args=(number, len(arguments), endpoint, log, work, given)))
            agents[-1].start()
    return agents


def _agent(number: int, nodes: int, endpoint: str, log: Path, work: Callable[..., None], given: Sequence[Any]) -> None:
    """Does what `torchrun --nnodes N --nproc-per-node 1 --rdzv-backend c10d` does."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=1,
        run_id="none",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"is_host": number == 0},
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, work)(*given)


def finish(agents: Sequence[BaseProcess]) -> list[int | None]:
    """Waits for the nodes and returns their exit codes; kills those that do not end, and their processes."""
    try:
        for agent in agents:
            agent.join(WAIT_S)
        return [agent.exitcode for agent in agents]
    finally:
        for agent in agents:
            if agent.is_alive():
                kill(agent.pid)


def kill(agent: int | None) -> None:
    """Kills a node's agent, whose id this is, and its processes."""
    assert agent
    for process in (agent, *workers(agent)):
        os.kill(process, signal.SIGKILL)


def workers(agent: int | None) -> list[int]:
    """The ids of the processes that a node's agent started."""
    children = [path.read_text().split() for path in Path(f"/proc/{agent}/task").glob("*/children")]
    return [int(child) for listed in children for child in listed]


def logs(folder: Path) -> list[str]:
    """The outputs of the nodes, in their order."""
    return [path.read_text() for path in sorted(folder.glob("node-*.log"))]
