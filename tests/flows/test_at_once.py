"""Commands of one workspace at the same time: equal retrainings, and gc beside a service that answers."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx

from flows import gc
from flows import reindex as reindexing
from flows import releases as listing
from pipeline.releases import Releases
from tests.flows.conftest import Trained
from tests.flows.test_gc_and_recovery import changed_documents
from tests.serving.processes import start


def test_two_equal_retrainings_at_once_both_end_well_with_one_live_release(tiny_world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "flows.cli", "retrain", str(tiny_world / "tiny.toml"), "--json"]
    command += ["--workspace", str(tmp_path / "workspace"), "--set", f"data.root={tiny_world}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [(*process.communicate(), process.returncode) for process in processes]
    assert [code for _, _, code in results] == [0, 0], [errors[-2000:] for _, errors, _ in results]
    releases = {json.loads(output)["release"] for output, _, _ in results}
    registry = Releases(tmp_path / "workspace")
    live = registry.live()
    assert live is not None
    assert releases == {live.release}
    assert live.generation == 1
    assert registry.ids() == [live.release]
    assert any("waits" in errors or "waiting" in errors for _, errors, _ in results)


def test_gc_beside_a_service_takes_nothing_that_it_answers_from(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    server = start(copied.workspace)
    served = httpx.get(f"{server.url}/search?q=knife", timeout=60).json()
    ends: Counter[int] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                ends[client.get(f"{server.url}/search?q=knife").status_code] += 1

    client = threading.Thread(target=ask)
    client.start()
    for number in range(3):
        reindexing.reindex(
            [changed_documents(copied, tmp_path / "d", f"samovar {number}")], copied.workspace, promote=False
        )
        gc.gc(copied.workspace, keep=1, act=True)
    stop.set()
    client.join()
    assert set(ends) == {200}
    answer = httpx.get(f"{server.url}/search?q=knife", timeout=60).json()
    assert (answer["release"], answer["reranked"]) == (served["release"], served["reranked"])
    assert server.stop() == 0
    live = registry.live()
    assert live is not None
    assert live.release == served["release"]
    assert len(registry.ids()) == 2  # The served one and the newest.
    assert not [item for item in listing.releases(copied.workspace)["releases"] if item["damaged"]]
