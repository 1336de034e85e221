"""The example scripts run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

from flows.examples import rerank_over_http
from tests.flows.conftest import Trained
from tests.serving.processes import start

EXAMPLES = Path(__file__).parents[2] / "flows" / "examples"


def test_train_and_search_finds_the_thing_that_is_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_and_search.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES.parents[1], timeout=600)
    assert done.returncode == 0, done.stderr
    assert "hammer" in done.stdout.splitlines()[1]


def test_rerank_over_http_gives_each_text_once(trained: Trained) -> None:
    server = start(trained.workspace)
    try:
        ranked = rerank_over_http.rerank(server.url, "red knife", ["blue lawn", "red knife"])
    finally:
        assert server.stop() == 0
    assert sorted(result["index"] for result in ranked) == [0, 1]
    assert ranked[0]["score"] >= ranked[1]["score"]
