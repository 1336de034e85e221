"""The service as a process of its own, and its page in a real browser."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import InputError
from serving.process import launch, listener
from serving.settings import Settings
from tests.serving.processes import START, Server, clean_environment, start


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Server]:
    running = start(tiny.path, RELEVANCE_MAX_BODY_BYTES="100000")
    yield running
    assert running.stop() == 0


def test_a_process_answers_and_writes_json_lines(server: Server) -> None:
    response = httpx.post(f"{server.url}/v1/rerank", json={"query": "secretq", "documents": ["secretd"]}, timeout=60)
    assert response.status_code == 200
    assert "server" not in response.headers
    line = server.logged(lambda line: line.get("path") == "/v1/rerank")
    assert {"time", "level", "request_id", "status", "milliseconds", "release", "items", "hits", "misses"} <= set(line)
    assert "secret" not in json.dumps(server.log)


def test_a_client_that_sends_too_much_reads_the_answer(server: Server) -> None:
    """It must not see a broken connection, though its body is never parsed."""
    response = httpx.post(f"{server.url}/rerank", content=b" " * 5_000_000, timeout=60)
    assert response.status_code == 413
    assert "5,000,000 bytes" in response.json()["message"]


def test_sigterm_loses_no_request_and_leaves_no_heavy_import(tiny: Any) -> None:
    running = start(tiny.path, RELEVANCE_DEADLINE_S="60", RELEVANCE_MAX_DEADLINE_S="60")

    def send(number: int) -> int:
        texts = [f"{number} {word} " + "a list of words " * 30 for word in range(1000)]
        return httpx.post(f"{running.url}/rerank", json={"query": "q", "texts": texts}, timeout=60).status_code

    def in_flight() -> float:
        lines = httpx.get(f"{running.url}/metrics", timeout=60).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("relevance_requests_in_flight "))

    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(send, number) for number in range(8)]
        # All eight and the question itself; or fewer, if some are answered already.
        while in_flight() + sum(request.done() for request in requests) < 9:
            time.sleep(0.005)
        unanswered = sum(not request.done() for request in requests)
        code = running.stop()
        assert unanswered
        assert [request.result(60) for request in requests] == [200] * 8
    # Zero also says that neither torch nor transformers, pandas, scikit-learn or scipy were imported.
    assert code == 0


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read"), ("# none yet\n", "holds no hash")])
def test_a_file_of_keys_that_opens_to_nobody_is_refused_at_the_start(
    text: str | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        launch.serve(Settings(port=0, api_keys_file=str(file), log="plain"))


def test_a_port_in_use_is_one_clear_message(tiny: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: the port is in use; .* --port"):
            listener.listen(Settings(port=port))
        ended = subprocess.run(
            [sys.executable, "-c", START, str(tiny.path)],
            env={**clean_environment(), "RELEVANCE_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("InputError: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "203.0.113.7", "..", "a" * 70])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{host}:0: ")):
        listener.listen(Settings(host=host, port=0))


def test_a_workspace_without_release_is_named(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)],
        env={**clean_environment(), "RELEVANCE_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "MissingError" in ended.stderr
    assert "relevance retrain" in ended.stderr
    assert "Traceback" not in ended.stderr


def browse(url: str, folder: Path, *options: str) -> str:
    """The page as a browser has it after its scripts ran."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder}", "--virtual-time-budget=8000", *options, "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


@pytest.mark.chromium
def test_the_page_shows_three_lists_in_a_browser(server: Server, tmp_path: Path) -> None:
    page = browse(f"{server.url}/?q=a+list+that+fails", tmp_path)
    for name in ("lexical", "semantic", "reranked"):
        section = page.split(f'<section class="list" data-list="{name}"')[1].split("</section>")[0]
        assert section.count("<li ") == 10, name
        assert " ms</span>" in section
        assert section.count('class="open"') == 10
    assert section.count("Open and why") == 10
    assert section.count("ranker 0.") + section.count("ranker 1.") == 10
    assert 'aria-pressed="false"' in page.split('id="facets"')[1].split("</div>")[0]
    # A document that is called <script>alert(1)</script> is shown, not run.
    assert "&lt;<mark>script</mark>&gt;" in page or "&lt;script&gt;alert(1)" in page
    assert "<img" not in page
    assert "candidates read" in page
    assert "sort a list" in page
    assert 'value="' not in page or "a list that fails" in page
    assert '<div class="notice" id="notice" role="alert" hidden="">' in page
    (worth,) = page.split('id="worth">')[1].split("</p>")[0].splitlines()
    assert worth.startswith("/rerank: ")
    assert worth.endswith(" judged queries")


@pytest.mark.chromium
def test_the_list_of_endpoints_is_drawn_in_a_browser(server: Server, tmp_path: Path) -> None:
    page = browse(f"{server.url}/docs", tmp_path)
    for path in ("/rerank", "/v1/rerank", "/search", "/v1/embeddings", "/v1/models", "/readyz", "/metrics"):
        assert f"<code>{path}</code>" in page
    assert page.count('<details class="post" open="">') + page.count('<details class="get" open="">') == 1
    assert page.count('<pre class="curl">curl -s \'http') == page.count("<details")


@pytest.mark.chromium
def test_a_document_opens_in_a_browser(server: Server, tmp_path: Path) -> None:
    page = browse(f"{server.url}/?q=a+list&doc=d5", tmp_path)
    dialog = page.split("<dialog")[1].split("</dialog>")[0]
    assert "<h2>&lt;script&gt;alert(1)&lt;/script&gt;</h2>" in dialog
    assert "&lt;img src=x onerror=alert(2)&gt;" in dialog
    assert dialog.count('class="near"') == 5
    assert "<th>year</th><td>2005</td>" in dialog
    assert "<img" not in page


@pytest.mark.chromium
def test_the_page_has_thumbs_and_another_release_where_the_settings_say_so(fresh: Any, tmp_path: Path) -> None:
    fresh.releases.promote(fresh.publish(1), reason="test")
    other = fresh.publish(2)
    running = start(fresh.path, RELEVANCE_THUMBS=str(tmp_path / "thumbs"), RELEVANCE_COMPARE=other)
    try:
        page = browse(f"{running.url}/?q=a+list", tmp_path / "browser")
    finally:
        assert running.stop() == 0
    reranked = page.split('<section class="list" data-list="reranked"')[1].split("</section>")[0]
    assert reranked.count('class="thumb up"') == reranked.count('class="thumb down"') == 10
    assert page.split('<section class="list" data-list="lexical"')[1].split("</section>")[0].count('class="thumb') == 0
    assert f'<option value="{other}"' in page
    assert '<label class="tool" id="compare" hidden' not in page


def test_the_service_may_open_as_many_files_as_the_system_allows() -> None:
    """Idle connections would reach the usual soft limit of 1,024, or the 256 of other systems."""
    code = (
        "import resource as r; from serving.process import launch; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; "
        "r.setrlimit(r.RLIMIT_NOFILE, (256, hard)); launch.allow_files(); soft = r.getrlimit(r.RLIMIT_NOFILE)[0]; "
        "assert soft == (launch.MOST_FILES if hard == r.RLIM_INFINITY else min(hard, launch.MOST_FILES)), soft"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
