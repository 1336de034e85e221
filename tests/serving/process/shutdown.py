"""Rounds of SIGTERM under load, and what became of each request."""

import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.serving.processes import start

KEPT_CLIENTS, FRESH_CLIENTS = 5, 5


@dataclass
class Load:
    """Clients' requests around one SIGTERM, by how they ended."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """Requests whose connection was made and which have no answer."""
    refused: int = 0
    """Requests whose connection was never made; their clients know that nothing was done."""
    began: threading.Barrier = field(default_factory=lambda: threading.Barrier(KEPT_CLIENTS + FRESH_CLIENTS + 1))


def run_client(url: str, load: Load, number: int, *, keeps: bool) -> None:
    """Sends requests until the service is gone, over one kept connection or over a new one each time."""
    draw = random.Random(number)
    client = httpx.Client(timeout=60)
    for turn in itertools.count():
        body = {"query": "q", "texts": [f"{number} {turn} {word}" for word in range(5)]}
        try:
            response = (
                client.post(f"{url}/rerank", json=body) if keeps else httpx.post(f"{url}/rerank", json=body, timeout=60)
            )
        except httpx.ConnectError:
            load.refused += 1
            break
        except httpx.HTTPError as error:
            load.lost.append(f"client {number}, turn {turn}: {error!r}")
            break
        load.statuses[response.status_code] += 1
        if turn == 0:
            load.began.wait(60)
        time.sleep(draw.choice([0.0, 0.0, 0.02, 0.2]))
    client.close()


def stop_under_load(workspace: Path, workers: int, pause_s: float) -> tuple[Load, int]:
    """Starts a service, lets clients send requests, and sends SIGTERM after a pause.

    Returns:
        How the requests ended, and the exit code of the service.
    """
    server = start(workspace, RELEVANCE_WORKERS=str(workers), RELEVANCE_DEADLINE_S="30")
    load = Load()
    threads = [
        threading.Thread(target=run_client, args=(server.url, load, number), kwargs={"keeps": number < KEPT_CLIENTS})
        for number in range(KEPT_CLIENTS + FRESH_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    load.began.wait(60)
    time.sleep(pause_s)
    code = server.stop()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return load, code
