"""The folder of metrics on a disk without room, and what is left there of processes that ended."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.process import metrics_folder
from tests.serving.metrics_text import series
from tests.serving.processes import START, start

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""
"""Before `START`: a disk on which no file of metrics has room."""


def rerank(url: str) -> int:
    body = {"query": "q", "texts": ["a"]}
    return httpx.post(f"{url}/rerank", json=body, timeout=60).status_code


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the worker")
def test_all_files_of_metrics_are_there_with_their_room_before_the_first_request(tiny: Any, tmp_path: Path) -> None:
    """A page of a file that the disk has no room for would end the worker by SIGBUS."""
    server = start(tiny.path, TMPDIR=str(tmp_path))
    try:
        (worker,) = server.workers
        (folder,) = tmp_path.glob(f"{metrics_folder.PREFIX}*")
        names = {f"{kind}_{worker}.db" for kind in metrics_folder.KINDS}
        assert {path.name for path in folder.iterdir()} == names | {"lock"}
        opened = {os.path.realpath(f"/proc/{worker}/fd/{name}") for name in os.listdir(f"/proc/{worker}/fd")}
        assert {str(folder / name) for name in names} <= opened
        assert rerank(server.url) == 200
        assert httpx.post(f"{server.url}/search", json={"query": "a list"}, timeout=60).status_code == 200
        for path in (folder / name for name in names):
            assert path.stat().st_size == metrics_folder.RESERVED
            assert path.stat().st_blocks * 512 >= metrics_folder.RESERVED
        assert {path.name for path in folder.iterdir()} == names | {"lock"}
        os.kill(worker, signal.SIGKILL)
        server.logged(lambda line: "starting it again" in line["message"])
        assert rerank(server.url) == 200
        left = {path.name: path.stat().st_size for path in folder.glob(f"*_{worker}.db")}
        assert left.keys() == {f"{kind}_{worker}.db" for kind in ("counter", "histogram", "unknown")}
        assert max(left.values()) < metrics_folder.RESERVED // 2
        assert series(httpx.get(f"{server.url}/metrics", timeout=60).text)["relevance_texts_total"] >= 2
    finally:
        assert server.stop() == 0


def test_a_service_on_a_full_disk_answers_and_says_that_its_metrics_have_no_room(tiny: Any) -> None:
    server = start(tiny.path, code=LIMITED + START)
    try:
        assert rerank(server.url) == 200
        assert series(httpx.get(f"{server.url}/metrics", timeout=60).text)["relevance_texts_total"] == 1
        server.logged(lambda line: "no room for metrics" in line["message"])
    finally:
        assert server.stop() == 0


def test_files_without_room_are_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics_folder.reserve(tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == len(metrics_folder.KINDS)
    real, calls = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not metrics_folder.reserve(tmp_path)
    assert list(tmp_path.glob("*.db")) == []


def test_the_room_that_a_dead_process_does_not_use_is_given_back(tmp_path: Path) -> None:
    assert metrics_folder.reserve(tmp_path)
    counters = tmp_path / f"counter_{os.getpid()}.db"
    with counters.open("rb+") as file:
        file.write((1000).to_bytes(4, sys.byteorder))
    (tmp_path / f"histogram_{os.getpid()}.db").unlink()
    metrics_folder.forget(tmp_path, os.getpid())
    assert counters.stat().st_size == 1000
    assert list(tmp_path.iterdir()) == [counters]
