"""Thumbs of the search page: what is written, what is refused, and what survives a torn line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import release_parts
from pipeline.errors import ConfigError
from pipeline.thumbs import Thumb
from serving.api import app as apps
from serving.api import thumb_file
from serving.api.thumb_file import ThumbFile
from serving.errors import BusyError, ServingError, StateError
from serving.rollout.lifecycle import Lifecycle
from tests.serving.conftest import TinyWorkspace
from tests.serving.patience import patient

BODY = {"query": "sort a list", "doc_id": "d1", "thumb": "up", "voter": "a" * 16}

Start = Callable[..., Lifecycle]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not yet there"


@pytest.fixture
def client(started: Start, folder: Path) -> TestClient:
    return TestClient(apps.create(started(thumbs=str(folder))), base_url="http://localhost")


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "thumbs.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def a_thumb(**changed: str) -> Thumb:
    values = {"query": "q", "doc_id": "d", "thumb": "up", "voter": "somebody", "release": "r", "time": "now"}
    return Thumb(**{**values, **changed})  # type: ignore[arg-type]


def test_a_thumb_is_one_whole_line(client: TestClient, folder: Path) -> None:
    body = {**BODY, "query": "  sort\na  list\u2028 "}
    answer = client.post("/thumbs", json=body)
    assert (answer.status_code, answer.json()) == (200, {"kept": True})
    client.post("/thumbs", json={**BODY, "thumb": "none", "query": "排序"})
    first, second = lines(folder)
    assert first.pop("time") <= second.pop("time")
    release = answer.headers["x-release"]
    assert first == {**BODY, "query": "sort a list", "release": release}
    assert second == {**BODY, "query": "排序", "thumb": "none", "release": release}
    assert client.get("/info").json()["thumbs"] is True


def test_a_folder_that_is_gone_is_not_made_anew(client: TestClient, folder: Path) -> None:
    """The folder may be on a disk that is away: what is written below its mount point nobody finds later."""
    away = folder.with_name("away")
    folder.rename(away)
    answer = client.post("/thumbs", json=BODY)
    assert (answer.status_code, "its folder is gone" in answer.json()["message"]) == (500, True)
    assert not folder.exists()
    away.rename(folder)
    assert client.post("/thumbs", json=BODY).status_code == 200
    assert len(lines(folder)) == 1


def test_without_a_folder_there_are_no_thumbs(started: Start) -> None:
    client = TestClient(apps.create(started()), base_url="http://localhost")
    assert client.post("/thumbs", json=BODY).status_code == 404
    assert client.get("/info").json()["thumbs"] is False
    assert "/thumbs" not in client.get("/openapi.json").json()["paths"]


def test_a_service_without_thumbs_does_not_say_that_its_release_lacks_them(fresh: TinyWorkspace) -> None:
    encoder = release_parts.part(fresh.releases.open(fresh.publish(1)), "encoder")
    release = fresh.releases.publish({"encoder": encoder}, {}, {})
    lifecycle = Lifecycle(patient(workspace=fresh.path, release=release.fingerprint, threads=1))
    lifecycle.start()
    with TestClient(apps.create(lifecycle), base_url="http://localhost") as client:
        for path in ("/v1/models", "/info"):
            unanswered = client.get(path).json()["unanswered"]
            assert "/document" in unanswered
            assert "/thumbs" not in unanswered
    lifecycle.close()


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"query": " \n"}, 422, "query is empty"),
        ({"query": "x" * 2001}, 422, "query"),
        ({"doc_id": "d999"}, 404, "no document has the id 'd999'"),
        ({"thumb": "sideways"}, 422, "thumb"),
        ({"voter": "a b c d e f"}, 422, "voter"),
        ({"voter": "short"}, 422, "voter"),
        ({"grade": 3}, 422, "'grade' is not known"),
    ],
)
def test_what_is_no_thumb_on_a_result_is_refused(
    client: TestClient, folder: Path, changed: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/thumbs", json={**BODY, **changed})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["message"]
    assert lines(folder) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain", "origin": "http://elsewhere.example"}, 415),
        ({"content-type": "application/x-www-form-urlencoded", "origin": "http://elsewhere.example"}, 415),
        ({"origin": "http://elsewhere.example"}, 415),
        ({"content-type": "application/json", "host": "elsewhere.example"}, 421),
    ],
)
def test_a_page_of_another_host_cannot_write_thumbs(
    client: TestClient, folder: Path, headers: dict[str, str], status: int
) -> None:
    """These are the requests that a browser sends for a foreign page without asking the service first."""
    assert client.post("/thumbs", content=json.dumps(BODY), headers=headers).status_code == status
    preflight = client.options("/thumbs", headers={"origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in preflight.headers
    assert lines(folder) == []


def test_thumbs_are_limited_in_rate(folder: Path) -> None:
    now = [0.0]
    file = ThumbFile(folder, clock=lambda: now[0])
    for _ in range(thumb_file.BURST):
        file.append(a_thumb())
    with pytest.raises(BusyError) as refused:
        file.append(a_thumb())
    assert refused.value.retry_after == 1
    now[0] += 1 / thumb_file.RATE
    file.append(a_thumb())
    with pytest.raises(BusyError):
        file.append(a_thumb())
    assert len(lines(folder)) == thumb_file.BURST + 1


def test_a_full_file_takes_no_more_and_keeps_what_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ThumbFile(folder)
    file.append(a_thumb())
    monkeypatch.setattr(thumb_file, "MAX_BYTES", (folder / "thumbs.jsonl").stat().st_size + 10)
    with pytest.raises(StateError, match="takes no more"):
        file.append(a_thumb())
    assert len(lines(folder)) == 1


def test_a_torn_line_stays_apart_from_the_next(folder: Path) -> None:
    ThumbFile(folder).append(a_thumb(query="first"))
    with (folder / "thumbs.jsonl").open("ab") as file:
        file.write(b'{"query": "torn')
    ThumbFile(folder).append(a_thumb(query="second"))
    first, torn, second = (folder / "thumbs.jsonl").read_text(encoding="utf-8").splitlines()
    assert Thumb.from_json(first).query == "first"
    assert torn == '{"query": "torn'
    assert Thumb.from_json(second).query == "second"


def test_a_write_that_fails_leaves_no_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ThumbFile(folder)
    file.append(a_thumb())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(thumb_file.os, "fsync", full)
    with pytest.raises(ServingError, match=r"not kept.*No space left"):
        file.append(a_thumb(query="lost"))
    assert [line["query"] for line in lines(folder)] == ["q"]


def test_a_folder_that_cannot_be_written_is_said_at_the_start(started: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="RELEVANCE_THUMBS"):
        apps.create(started(thumbs=str(tmp_path / "file")))


def test_many_writers_lose_nothing(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = [ThumbFile(folder) for _ in range(4)]  # As four processes have them.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: files[number % 4].append(a_thumb(query=str(number))), range(60)))
    assert sorted(int(line["query"]) for line in lines(folder)) == list(range(60))
