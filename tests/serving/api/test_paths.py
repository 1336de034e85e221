"""The table of paths against the app's own router, and every reader of the table against the table."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.api import admin, embeddings, health, keys, rerank, search, thumbs
from serving.api import app as apps
from serving.api.paths import ENDPOINTS, UNKNOWN, UNKNOWN_ADMIN, Access, ErrorShape, find, no_such_path
from serving.api.request import RequestContext
from serving.rollout.lifecycle import Lifecycle
from serving.scoring.contents import NEEDS
from tests.serving.api.bodies import BODIES
from tests.serving.patience import patient


@pytest.fixture(scope="module")
def app(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    given: dict[str, Any] = {"admin_from": "anywhere", "thumbs": str(tmp_path_factory.mktemp("thumbs"))}
    given |= {"api_keys": (keys.digest("key").hex(),), "admin_keys": (keys.digest("admin").hex(),)}
    release = tiny.releases.resolve("live")
    lifecycle = Lifecycle(patient(workspace=tiny.path, release=release, threads=1, **given))
    lifecycle.start()
    yield apps.create(lifecycle)
    lifecycle.stop()


@pytest.fixture(scope="module")
def client(app: Any) -> TestClient:
    return TestClient(app)


def routes(app: Any) -> set[tuple[str, str]]:
    """Path and method of every route that the app answers."""
    return {(route.path, method) for route in app.router.routes for method in route.methods}


def test_the_table_equals_the_router(app: Any) -> None:
    table = [(endpoint.path, method) for endpoint in ENDPOINTS for method in endpoint.methods]
    assert len(table) == len(set(table))
    assert set(table) == routes(app)


def test_each_route_is_built_once(app: Any) -> None:
    """`include_router` would leave the modules' routes out and build its own, with the first request."""
    for module in (rerank, search, embeddings, health, thumbs, admin):
        assert {id(route) for route in module.router.routes} <= {id(route) for route in app.router.routes}


def test_each_endpoint_says_how_it_refuses_and_fails(app: Any) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            for status in ("4XX", "5XX"):
                (content,) = operation["responses"][status]["content"].values()
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}, (method, path)


def test_endpoints_that_the_settings_do_not_ask_for_do_not_exist(tiny: Any) -> None:
    plain = apps.create(Lifecycle(patient(workspace=tiny.path, threads=1)))
    assert {path for path, _ in routes(plain)} == {
        endpoint.path for endpoint in ENDPOINTS if endpoint.access is not Access.ADMIN and endpoint.path != "/thumbs"
    }


def test_each_path_that_reads_a_release_needs_a_part_of_it() -> None:
    needing = [path for paths in NEEDS.values() for path in paths]
    assert len(needing) == len(set(needing))
    assert set(needing) <= {endpoint.path for endpoint in ENDPOINTS}
    scoring = {endpoint.path for endpoint in ENDPOINTS if endpoint.scoring}
    # "/" answers with the model that there is. A shard answers "/candidates", which other releases do not miss.
    assert scoring - set(needing) == {"/", "/candidates"}
    guarded = {endpoint.path for endpoint in ENDPOINTS if endpoint.access is Access.API_KEY}
    about = {"/v1/models", "/v1/models/{model_id:path}", "/info"}
    assert set(needing) - scoring == guarded - scoring - about == {"/document", "/thumbs"}


def test_each_path_that_computes_counts_and_those_with_a_final_order_are_part_of_rollouts() -> None:
    computing = {
        endpoint.path for endpoint in ENDPOINTS if "POST" in endpoint.methods and endpoint.access is not Access.ADMIN
    }
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.scoring} == computing - {"/thumbs"} == BODIES.keys()
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.rollouts} == {*NEEDS["ranker"], "/search"}


def test_the_app_and_its_page_of_documentation_name_each_path_that_computes(client: TestClient) -> None:
    assert [path for path in BODIES if f" {path} " not in (apps.__doc__ or "")] == []
    page = (Path(apps.__file__).parents[1] / "docs.html").read_text(encoding="utf-8")
    block = page.partition("const EXAMPLES = {")[2].partition("};")[0]
    examples = {path: re.sub(r"(\w+):", r'"\1":', body) for path, body in re.findall(r'"(/.*?)": (\{.*\}),', block)}
    assert BODIES.keys() - examples.keys() == {"/", "/candidates"}  # Neither is shown on the page.
    for path in BODIES.keys() & examples.keys():
        answer = client.post(path, json=json.loads(examples[path]), headers={"authorization": "Bearer key"})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", sorted(BODIES.keys() - {"/candidates"}))  # The tiny release is no shard.
def test_each_answer_tells_its_texts_its_cache_what_to_send_when_late_and_for_rollouts_its_question(
    app: Any, client: TestClient, caplog: Any, monkeypatch: Any, path: str
) -> None:
    answered: list[Any] = []
    advised: list[Any] = []
    rollout = app.state.service.lifecycle.rollout
    monkeypatch.setattr(rollout, "answered", lambda _, request: answered.append(request))
    monkeypatch.setattr(RequestContext, "advise", lambda _, advice: advised.append(advice))
    with caplog.at_level(logging.INFO, "serving.requests"):
        response = client.post(path, json=BODIES[path], headers={"authorization": "Bearer key"})
    assert response.status_code == 200, response.text
    assert caplog.records[-1].facts.keys() >= {"items", "hits", "misses"}
    assert "/" in response.headers["x-cache"]
    assert [request.question is not None for request in answered] == [True] * find(path, "POST").rollouts
    # A search has no texts of the client to send fewer of, and the body for /v2/rerank is a cascade, which is in time.
    assert bool(advised) is (path not in ("/search", "/v2/rerank"))


def concrete(path: str) -> str:
    return path.replace("{model_id:path}", "ranker")


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.methods[0]} {endpoint.path}")
def test_each_row_is_found_and_guarded(client: TestClient, endpoint: Any, caplog: Any) -> None:
    path = concrete(endpoint.path)
    for method in endpoint.methods:
        assert find(path, method) is endpoint
        with caplog.at_level(logging.DEBUG, "serving.requests"):
            response = client.request(method, path)
        if endpoint.access is Access.OPEN:
            assert response.status_code < 400
        else:
            assert response.status_code == 401
            nested = isinstance(response.json()["error"], dict)
            assert nested is (endpoint.errors is ErrorShape.OPENAI)
        assert caplog.records[-1].facts["path"] == endpoint.path
        wrong = {Access.ADMIN: "key", Access.API_KEY: "admin"}.get(endpoint.access)
        if wrong:
            response = client.request(method, path, headers={"authorization": f"Bearer {wrong}"})
            assert response.status_code == 401


def test_paths_that_are_not_in_the_table() -> None:
    assert find("/nope", "GET") is find("", "GET") is UNKNOWN
    assert find("/admin/nope", "GET") is UNKNOWN_ADMIN
    assert find("/rerank", "GET").path == "/rerank"
    assert find("/v1/models/a/b", "GET").errors is ErrorShape.OPENAI


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/v1/search", "/search"),
        ("/embed_all", "/embed"),
        ("/thumbs", ""),
        ("/admin/canary", ""),
        ("/chat/completions", ""),
    ],
)
def test_a_path_that_is_not_there_is_answered_with_the_one_that_is_meant(
    client: TestClient, path: str, meant: str
) -> None:
    """Clients of infinity leave `/v1` out; the answer to an administrator's path tells nothing of it."""
    hint = f"did you mean {meant}? " if meant else ""
    assert no_such_path(path) == f"no such path: {path}; {hint}GET /docs lists them"
    if meant:
        answer = client.post(path, json={}, headers={"authorization": "Bearer key"})
        assert (answer.status_code, answer.json()["message"]) == (404, no_such_path(path))


def test_metrics_count_what_the_table_calls_scoring(client: TestClient) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("te_request_count{"))

    for endpoint in ENDPOINTS:
        for method in endpoint.methods:
            before = count()
            client.request(method, concrete(endpoint.path), headers={"authorization": "Bearer key"})
            assert count() - before == endpoint.scoring, (method, endpoint.path)


def test_only_rows_of_rollouts_are_answered_by_a_canary(app: Any, client: TestClient, monkeypatch: Any) -> None:
    request_ids: list[str] = []
    rollout = app.state.service.lifecycle.rollout
    real = rollout.choose
    monkeypatch.setattr(
        rollout, "choose", lambda live, request_id, wish: request_ids.append(request_id) or real(live, "", wish)
    )
    for endpoint in ENDPOINTS:
        for method in endpoint.methods:
            request_ids.clear()
            client.request(method, concrete(endpoint.path))
            assert bool(request_ids) is endpoint.rollouts, (method, endpoint.path)
