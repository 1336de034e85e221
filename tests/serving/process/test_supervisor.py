"""Several processes behind one port: they share the work, are replaced when they die, and lose nothing at the end."""

import ast
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import MissingError, RelevanceError
from serving.process import fork
from serving.process import worker as worker_process
from serving.process.supervisor import Supervisor
from serving.settings import Settings
from tests.serving.metrics_text import series
from tests.serving.process.shutdown import stop_under_load
from tests.serving.processes import START, Server, clean_environment, start, watch
from tests.shadows import add_shadows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Server]:
    running = start(tiny.path, RELEVANCE_WORKERS="2")
    yield running
    assert running.stop() == 0


def counters(server: Server) -> dict[str, float]:
    return series(httpx.get(f"{server.url}/metrics", timeout=60).text)


def rerank(url: str, *texts: str) -> httpx.Response:
    return httpx.post(f"{url}/rerank", json={"query": "q", "texts": list(texts)}, timeout=60)


def test_metrics_are_sums_over_all_processes(server: Server) -> None:
    before = counters(server)
    for number in range(20):  # A connection each, so both processes get some.
        assert rerank(server.url, f"text {number}", "same").status_code == 200

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    until = time.monotonic() + 60
    while True:  # A process tells of its caches once a second.
        after = counters(server)
        known = grown('relevance_cache_hits_total{cache="scores"}') + grown(
            'relevance_cache_misses_total{cache="scores"}'
        )
        if known >= 40 or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert known == 40
    assert grown('te_request_count{method="batch"}') == 20
    assert grown("te_request_duration_count") == 20
    assert grown("te_request_queue_duration_count") == 20
    assert grown("relevance_texts_total") == 40
    (info,) = [value for name, value in after.items() if name.startswith("relevance_release_info{")]
    assert info == 2
    assert len(server.workers) == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the processes")
def test_a_worker_that_is_killed_is_replaced_while_the_other_answers(server: Server) -> None:
    before = server.workers
    counted = counters(server)["relevance_texts_total"]
    os.kill(before[0], signal.SIGKILL)
    until = time.monotonic() + 60
    while len(now := server.workers) < 2 or set(now) == set(before):
        assert time.monotonic() < until
        assert rerank(server.url, "a").status_code == 200
    ended = server.logged(lambda line: "ended with -9, by SIGKILL, while release" in line["message"])
    assert "the system does that where memory runs out" in ended["message"]
    while counters(server).get("relevance_requests_in_flight", 0) != 1:  # The question itself; nothing of the dead.
        assert time.monotonic() < until
    assert counters(server)["relevance_texts_total"] >= counted  # What the dead one counted is kept.


def test_workers_end_when_their_parent_is_killed(tiny: Any) -> None:
    running = start(tiny.path, RELEVANCE_WORKERS="2")
    workers = running.workers
    assert len(workers) == 2
    running.process.kill()
    running.process.wait(60)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
    running.close()


def state(pid: int) -> str:
    try:
        return re.search(r"\) (\S)", Path(f"/proc/{pid}/stat").read_text())[1]
    except OSError:
        return "Z"


def test_what_stops_a_worker_from_starting_stops_the_service_with_its_message(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)],
        env={**clean_environment(), "RELEVANCE_PORT": "0", "RELEVANCE_WORKERS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "MissingError: " in ended.stderr
    assert "relevance retrain" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(tiny: Any, workers: int) -> None:
    """The fifty rounds are in tests/benchmarks/test_shutdown.py."""
    for turn in range(2):
        load, code = stop_under_load(tiny.path, workers, pause_s=0.1 * turn)
        assert code == 0
        assert load.lost == []
        assert set(load.statuses) == {200}


CLOCK = """
import os, signal, time, types
from serving.process import supervisor
signals = []
supervisor.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(signals))
supervisor.GRACE_S = float(os.environ["GRACE_S"])
signal.signal(signal.SIGUSR1, lambda *_: signals.append(1))
"""
"""Before `START`: each SIGUSR1 sets the supervisor's clock forward, so that no test waits for its limits."""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the process")
def test_a_single_worker_that_hangs_is_replaced(tiny: Any) -> None:
    server = start(tiny.path, code=CLOCK + START, RELEVANCE_SILENT_S="900", GRACE_S="1")
    (hung,) = server.workers
    os.kill(hung, signal.SIGSTOP)
    server.process.send_signal(signal.SIGUSR1)
    server.logged(lambda line: "worker 1: silent for" in line["message"])
    ended = server.logged(lambda line: "worker 1: ended with -9" in line["message"])
    assert "memory" not in ended["message"]
    # The parent keeps the listening socket, so a connection made meanwhile waits for the replacement.
    assert rerank(server.url, "a").status_code == 200
    assert hung not in server.workers
    assert server.stop() == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the process")
def test_workers_that_stood_still_with_their_parent_stay(tiny: Any) -> None:
    """A container that was paused, or a machine that slept: when all go on, no worker has reported for a long time."""
    server = start(tiny.path, code=CLOCK + START, RELEVANCE_SILENT_S="900", GRACE_S="60")
    (worker,) = server.workers
    for pid in (worker, server.process.pid):
        os.kill(pid, signal.SIGSTOP)
    server.process.send_signal(signal.SIGUSR1)  # The parent's clock stands forward when it goes on.
    server.process.send_signal(signal.SIGCONT)
    time.sleep(2)  # The parent looks five times a second.
    os.kill(worker, signal.SIGCONT)
    assert rerank(server.url, "a").status_code == 200
    assert server.workers == [worker]
    assert server.stop() == 0
    assert not [line for line in server.log if "silent" in line["message"]]


def test_a_service_answers_again_after_its_only_worker_was_ended_by_a_signal(tiny: Any) -> None:
    """A worker that ends refuses new connections at the socket that its successor accepts from."""
    server = start(tiny.path)
    try:
        (worker,) = server.workers
        os.kill(worker, signal.SIGTERM)
        server.logged(lambda line: "starting it again" in line["message"])
        answer = httpx.get(f"{server.url}/livez", timeout=60)
        assert answer.status_code == 200
        assert server.workers != [worker]
    finally:
        assert server.stop() == 0


def test_a_worker_whose_folder_of_metrics_was_removed_is_replaced(tiny: Any, tmp_path: Path) -> None:
    """A cleaner of temporary folders removes it; a replacement of the worker makes it again."""
    server = start(tiny.path, TMPDIR=str(tmp_path))
    try:
        (folder,) = tmp_path.glob("relevance-metrics-*")
        shutil.rmtree(folder)
        assert rerank(server.url, "a").status_code == 200
        refused = httpx.get(f"{server.url}/metrics", timeout=60)
        assert refused.status_code == 500
        assert "the folder of metrics was removed; start the service again" in refused.json()["message"]
        (worker,) = server.workers
        os.kill(worker, signal.SIGKILL)
        server.logged(lambda line: "starting it again" in line["message"])
        assert rerank(server.url, "b").status_code == 200
        assert counters(server)["relevance_texts_total"] == 1
        assert [line for line in server.log if "starting it again" in line["message"]][1:] == []
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("everybody", [True, False])
def test_a_terminal_that_closes_ends_a_service_as_sigterm_does(tiny: Any, everybody: bool) -> None:
    server = start(tiny.path)
    for pid in (*(server.workers if everybody else []), server.process.pid):
        os.kill(pid, signal.SIGHUP)
    assert server.process.wait(60) == 0
    server.close()
    assert "stopped; running requests were finished" in server.log[-1]["message"]


def test_a_service_under_nohup_goes_on_when_its_terminal_closes(tiny: Any) -> None:
    server = start(tiny.path, code="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + START)
    for pid in (*server.workers, server.process.pid):
        os.kill(pid, signal.SIGHUP)
    assert rerank(server.url, "a").status_code == 200
    assert server.stop() == 0


def test_a_parent_that_stands_still_does_not_hold_up_its_workers() -> None:
    """Nobody reads their reports, so the pipe fills."""
    parents_end, workers_end = os.pipe()
    os.set_blocking(workers_end, False)
    for _ in range(2**16):
        assert worker_process.report(workers_end, release="a")
    os.close(parents_end)
    assert not worker_process.report(workers_end, release="a")
    os.close(workers_end)


def test_a_worker_writes_its_reports_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MissingError("no release")

    monkeypatch.setattr(worker_process, "run", fail)
    parents_end, workers_end = os.pipe()
    with socket.socket() as listener, pytest.raises(SystemExit):
        worker_process.work(Settings(), listener, workers_end, tmp_path)
    assert not os.get_blocking(workers_end)
    assert json.loads(os.read(parents_end, 1000)) == {"error": "no release", "kind": "MissingError"}
    for end in (parents_end, workers_end):
        os.close(end)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_worker_that_the_system_refuses_is_tried_again_once_the_service_answers(
    has_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "no process left")

    monkeypatch.setattr(fork, "start", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor = Supervisor(Settings(workspace=tmp_path), listener)
        supervisor._has_begun = has_begun
        supervisor._start_times = {1: 0.0}
        files = set(os.listdir("/proc/self/fd"))
        if not has_begun:
            with pytest.raises(RelevanceError, match=r"worker 1 cannot be started \(.*no process left\); give the"):
                supervisor._start_due(tmp_path)
        for pause_s in (0.1, 0.2, 0.4) if has_begun else ():
            supervisor._start_due(tmp_path)
            assert f"trying again in {pause_s} s" in caplog.records[-1].message
            assert supervisor._start_times[1] > time.monotonic()
            supervisor._start_times = {1: 0.0}
        assert set(os.listdir("/proc/self/fd")) == files
        supervisor._end()


def test_a_truncated_release_is_named_when_its_worker_dies(fresh: Any) -> None:
    """The files of a release are memory-mapped: who truncates one in place kills the process that reads it."""
    release = fresh.publish(1)
    fresh.releases.promote(release, reason="test")
    server = start(fresh.path)
    (worker,) = server.workers
    os.kill(worker, signal.SIGBUS)
    line = server.logged(lambda line: "by SIGBUS" in line["message"])
    assert release[:12] in line["message"]
    assert "truncated in place" in line["message"]
    assert line["release"] == release
    assert rerank(server.url, "a").status_code == 200
    assert server.stop() == 0


def test_a_worker_that_answers_has_loaded_no_library_that_it_does_not_need(server: Server) -> None:
    """The files mapped into its memory tell, those that its libraries import by themselves included."""
    assert rerank(server.url, "a").status_code == 200
    needless = {"torch", "transformers", "sklearn", "prefect", "pandas", "scipy", "sqlalchemy", "websockets"}
    for worker in server.workers:
        mapped = Path(f"/proc/{worker}/maps").read_text(encoding="utf-8")
        packages = set(re.findall(r"/site-packages/([^/.]+)", mapped))
        assert {"onnxruntime", "faiss", "numpy"} <= packages
        assert not packages & needless


def test_a_client_that_wants_a_websocket_gets_an_answer_over_http(server: Server) -> None:
    wishes = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = httpx.get(f"{server.url}/livez", headers=wishes | {"sec-websocket-key": "x" * 24}, timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("safe_path", [True, False])
def test_files_of_the_working_folder_do_not_replace_our_packages(tiny: Any, tmp_path: Path, safe_path: bool) -> None:
    """`relevance serve` in a folder whose files are called as our packages are."""
    add_shadows(tmp_path)
    if not safe_path:  # These the parent imports: without -P it does not even begin.
        for name in ("flows/__init__.py", "pipeline.py", "serving.py"):
            (tmp_path / name).unlink()
        (tmp_path / "flows").rmdir()
    options = ["-P"] if safe_path else []
    command = [sys.executable, *options, "-m", "flows.cli", "serve", "--workspace", str(tiny.path), "--port", "0"]
    environ = clean_environment() | {"PYTHONPATH": str(ROOT), "RELEVANCE_LOG": "json"}
    server = watch(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, cwd=tmp_path))
    assert rerank(server.url, "a text").status_code == 200
    assert server.stop() == 0


def test_each_module_that_we_start_ignores_the_working_folder() -> None:
    """`python -m` puts the working folder first on Python's path, unless -P stands before it."""
    commands = []
    for package in ("pipeline", "index", "serving", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                values = [item.value for item in getattr(node, "elts", ()) if isinstance(item, ast.Constant)]
                if "-m" in values:
                    commands.append((str(path.relative_to(ROOT)), values))
    assert "flows/examples/ready_made_folder.py" in {path for path, _ in commands}
    assert [(path, values) for path, values in commands if "-P" not in values[: values.index("-m")]] == []
