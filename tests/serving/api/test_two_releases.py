"""Two loaded releases side by side: a search, a document and a thumb may name one, and trials count none of these."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.errors import MissingError
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from tests.serving.conftest import TinyWorkspace
from tests.serving.patience import patient

QUERY = "sort a list"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> TinyWorkspace:
    """A live release of seed 1 and another of seed 2."""
    workspace = TinyWorkspace(tmp_path_factory.mktemp("two"))
    workspace.releases.promote(workspace.publish(1), reason="test")
    workspace.publish(2)
    return workspace


@pytest.fixture(scope="module")
def names(workspace: TinyWorkspace) -> tuple[str, str]:
    live = workspace.releases.resolve("live")
    return live, next(name for name in workspace.models if name != live)


@pytest.fixture(scope="module")
def lifecycle(workspace: TinyWorkspace, names: tuple[str, str], tmp_path_factory: Any) -> Iterator[Lifecycle]:
    thumbs = str(tmp_path_factory.mktemp("thumbs"))
    lifecycle = Lifecycle(patient(workspace=workspace.path, threads=1, compare=names[1][:10], thumbs=thumbs))
    lifecycle.start()
    yield lifecycle
    lifecycle.close()


@pytest.fixture(scope="module")
def client(lifecycle: Lifecycle) -> TestClient:
    return TestClient(apps.create(lifecycle), base_url="http://localhost")


def test_the_named_release_answers(client: TestClient, lifecycle: Lifecycle, names: tuple[str, str]) -> None:
    live, other = names
    orders = {}
    for name in names:
        answer = client.post("/search", json={"query": QUERY, "release": name[:12]})
        body = answer.json()
        assert (body["release"], answer.headers["x-release"], answer.headers["x-variant"]) == (name, name, "chosen")
        expected = lifecycle.loaded_as(name).search(QUERY).reranked
        assert [hit["doc_id"] for hit in body["reranked"]] == [hit.doc_id for hit in expected]
        assert client.get("/search", params={"q": QUERY, "release": name}).json()["reranked"] == body["reranked"]
        orders[name] = [hit["doc_id"] for hit in body["reranked"]]
    assert orders[live] != orders[other]
    plain = client.post("/search", json={"query": QUERY})
    assert [hit["doc_id"] for hit in plain.json()["reranked"]] == orders[live]
    assert plain.headers["x-variant"] == "live"
    opened = client.get("/document", params={"id": "d1", "release": other})
    assert opened.json()["release"] == other


def test_info_lists_the_loaded_releases_with_their_roles(client: TestClient, names: tuple[str, str]) -> None:
    listed = client.get("/info").json()["releases"]
    assert [(item["release"], item["roles"]) for item in listed] == [(names[0], ["live"]), (names[1], ["compared"])]


@pytest.mark.parametrize("name", ["", "f" * 12, "live"])
def test_a_release_that_is_not_loaded_is_not_found(client: TestClient, names: tuple[str, str], name: str) -> None:
    answer = client.post("/search", json={"query": QUERY, "release": name})
    assert answer.status_code == 404
    assert names[0][:12] in answer.json()["message"]


def test_a_thumb_names_the_release_that_showed_the_result(
    client: TestClient, lifecycle: Lifecycle, names: tuple[str, str]
) -> None:
    body = {"query": QUERY, "doc_id": "d1", "thumb": "up", "voter": "somebody", "release": names[1][:12]}
    assert client.post("/thumbs", json=body).status_code == 200
    lines = (Path(lifecycle.settings.thumbs) / "thumbs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["release"] == names[1]


def test_a_canary_counts_no_request_that_named_a_release(
    client: TestClient, lifecycle: Lifecycle, names: tuple[str, str]
) -> None:
    from serving.rollout.trials import Bounds, Canary

    lifecycle.rollout.active.file.begin("canary", Canary(release=names[1], share=0.5, bounds=Bounds()))
    lifecycle.poll()
    assert [item["roles"] for item in client.get("/info").json()["releases"]] == [["live"], ["canary", "compared"]]
    before = lifecycle.rollout.requests.copy()
    for name in names:
        client.post("/search", json={"query": QUERY, "release": name})
    assert lifecycle.rollout.requests == before
    client.post("/search", json={"query": QUERY})
    assert lifecycle.rollout.requests.total() == before.total() + 1


def test_a_release_to_compare_with_that_is_not_there_is_said_at_the_start(workspace: TinyWorkspace) -> None:
    with pytest.raises(MissingError):
        Lifecycle(patient(workspace=workspace.path, threads=1, compare="0123456789")).start()


def test_the_live_release_compared_with_itself_is_no_reason_not_to_serve(
    workspace: TinyWorkspace, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    lifecycle = Lifecycle(patient(workspace=workspace.path, threads=1, compare=names[0]))
    lifecycle.start()
    assert lifecycle.held[0].roles == ("live", "compared")
    assert "no other to compare it with" in caplog.text
    lifecycle.close()
