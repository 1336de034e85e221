"""Requests that schemathesis makes from our own OpenAPI, valid and invalid: none may end in a failure of ours."""

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from tests.serving.api.bodies import BODIES
from tests.serving.patience import patient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; it is in the extra dev")

SCORES = tuple(f"POST {path}" for path in BODIES if path not in ("/", "/search", "/candidates"))
SEARCHES = ("POST /search", "GET /search")
OTHERS = ("GET /v1/models", "GET /v1/models/{model_id}", "GET /info", "GET /livez", "GET /readyz", "GET /metrics")


@asynccontextmanager
async def nothing(_: Any) -> AsyncIterator[None]:
    yield


@pytest.fixture(scope="module")
def api(tiny: Any) -> Any:
    lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1))
    lifecycle.start()
    app = apps.create(lifecycle)
    app.router.lifespan_context = nothing  # Each call would end the app else.
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def operation(api: Any, name: str) -> Any:
    method, path = name.split()
    return api[path][method]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *(("POSITIVE", name) for name in (*SCORES, *SEARCHES, *OTHERS)),
        *(("NEGATIVE", name) for name in (*SCORES, *SEARCHES)),
    ],
)
def test_no_request_ends_in_a_failure(api: Any, mode: str, name: str) -> None:
    endpoint = operation(api, name)
    strategy = endpoint.as_strategy(generation_mode=schemathesis.GenerationMode[mode])
    count = 25 if name in (*SCORES, *SEARCHES) else 5
    seen: set[int] = set()

    @given(case=strategy)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call()
        seen.add(response.status_code)
        assert response.status_code in {200, 400, 404, 405, 408, 413, 422}, response.text
        if response.status_code >= 400:
            assert {"error", "message", "detail", "type"} == set(response.json())
            assert len(response.content) < 4000
        endpoint.validate_response(response)

    ask()
    assert seen
