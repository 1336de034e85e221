"""Releases that lack a model or documents answer what they can, and say of each other path why it is not answered."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import release_parts
from pipeline.errors import MissingError
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from serving.scoring.contents import NEEDS, lacks
from tests.serving.api.bodies import BODIES
from tests.serving.conftest import TinyWorkspace
from tests.serving.patience import patient

SEARCHABLE = ("lexical", "documents", "index")
CONTENTS = {
    "a ranker alone": ("ranker",),
    "an encoder alone": ("encoder",),
    "two models": ("ranker", "encoder"),
    "an encoder and documents": ("encoder", *SEARCHABLE, "fusion"),
    "all but the report": ("ranker", "encoder", *SEARCHABLE, "fusion"),
}
REQUESTS: dict[str, Any] = {
    **BODIES,
    "/document": None,
    "/thumbs": {"query": "sort", "doc_id": "d1", "thumb": "up", "voter": "a" * 16},
}
"""Path → the body of a request to it; None for a GET of the document d1."""


@pytest.fixture(params=CONTENTS, ids=str)
def partial(
    request: pytest.FixtureRequest, fresh: TinyWorkspace, tmp_path: Path
) -> Iterator[tuple[TestClient, tuple[str, ...], Path]]:
    """A client of a service whose release has these parts alone."""
    complete = fresh.releases.open(fresh.publish(1))
    names = CONTENTS[request.param]
    release = fresh.releases.publish(
        {name: release_parts.part(complete, name) for name in names}, {}, {"name": "partial"}
    )
    knobs = {"release": release.fingerprint, "threads": 1, "thumbs": str(tmp_path / "thumbs")}
    lifecycle = Lifecycle(patient(workspace=fresh.path, **knobs))
    lifecycle.start()
    with TestClient(apps.create(lifecycle), base_url="http://localhost") as client:
        yield client, names, fresh.path
    lifecycle.close()


def test_each_path_answers_or_says_what_the_release_lacks(partial: tuple[TestClient, tuple[str, ...], Path]) -> None:
    client, names, workspace = partial
    listed = client.get("/v1/models").json()
    assert {model["id"] for model in listed["data"]} == {"ranker", "encoder"} & set(names)
    for part, path in [(part, path) for part, paths in NEEDS.items() for path in paths]:
        body = REQUESTS[path]
        answer = client.post(path, json=body) if body else client.get(path, params={"id": "d1"})
        if part in names:
            assert (answer.status_code, path in listed["unanswered"]) == (200, False), answer.text
        else:
            assert answer.status_code == 404
            message = lacks(part, workspace)
            assert answer.json()["message"] == listed["unanswered"][path] == message
            assert "`" in message
            assert all(f"--workspace {workspace}" in command for command in re.findall("`([^`]*)`", message))


def test_a_release_with_some_parts_is_ready_and_described(partial: tuple[TestClient, tuple[str, ...], Path]) -> None:
    client, names, _ = partial
    assert client.get("/readyz").json()["ready"]
    assert client.get("/health").status_code == 200
    info = client.get("/info").json()
    assert info["thumbs"] == ("documents" in names), "the page shows thumbs only where they can be kept"
    assert info["model_id"] == ("ranker" if "ranker" in names else "encoder")
    assert (info["dimensions"] is None) == ("encoder" not in names)
    assert (info["documents"] == 0) == ("documents" not in names)
    assert "relevance_release_info" in client.get("/metrics").text


def test_a_least_relevance_is_refused_where_no_ranker_gives_any(
    partial: tuple[TestClient, tuple[str, ...], Path],
) -> None:
    client, names, _ = partial
    if "documents" not in names:
        return
    for bound, status in ((0.0, 200), (0.5, 200 if "ranker" in names else 422)):
        answer = client.post("/search", json={"query": "sort", "min_relevance": bound})
        assert answer.status_code == status, answer.text
        assert status == 200 or "this release has none; leave it out" in answer.json()["message"]


def test_without_a_ranker_the_final_order_is_that_of_bm25_and_encoder(fresh: TinyWorkspace) -> None:
    complete = fresh.releases.open(fresh.publish(1))
    parts = {name: release_parts.part(complete, name) for name in ("encoder", *SEARCHABLE)}
    release = fresh.releases.publish(parts, {}, {})
    lifecycle = Lifecycle(patient(workspace=fresh.path, release=release.fingerprint, threads=1))
    lifecycle.start()
    results = lifecycle.current.search("sorted list", top_n=50)
    lifecycle.close()
    assert results.degraded is None
    assert {answer.relevance for answer in results.reranked} == {None}
    assert {answer.rank_change for answer in results.reranked} == {0}
    with pytest.raises(MissingError, match="has no ranker; its parts are documents, encoder, index, lexical"):
        release_parts.part(release, "ranker")
