"""Two machines as two agents of torchrun on this one, each with one process; all are forks of one server."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests import forked

WAIT_S = 240
"""Seconds after which a test gives up."""


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
    agents = [
        forked.process(_agent, (number, len(arguments), endpoint, work, given), folder / f"node-{number}.log")
        for number, given in enumerate(arguments)
    ]
    forked.start(agents)
    return agents


def _agent(number: int, nodes: int, endpoint: str, work: Callable[..., None], given: Sequence[Any]) -> None:
    """Does what `torchrun --nnodes N --nproc-per-node 1 --rdzv-backend c10d` does."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
