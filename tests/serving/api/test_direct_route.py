"""Routes whose endpoint gets the request alone, beside those for which FastAPI reads parameters."""

from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from serving.api import candidates, embeddings, rerank, root, search, thumbs
from serving.api.direct_route import DirectRoute


@pytest.mark.parametrize("module", [candidates, embeddings, rerank, root, search, thumbs])
def test_post_endpoints_are_called_without_preparation(module: Any) -> None:
    posts = [route for route in module.router.routes if "POST" in route.methods]
    assert posts
    for route in posts:
        assert isinstance(route, DirectRoute)
        assert route.is_direct, route.path


def test_an_endpoint_with_parameters_gets_them_from_fastapi() -> None:
    router = APIRouter(route_class=DirectRoute)

    @router.get("/alone")
    async def alone(request: Request) -> Response:
        return PlainTextResponse(request.headers["x-name"])

    @router.get("/asks")
    async def asks(request: Request, number: int) -> Response:
        return PlainTextResponse(f"{request.headers['x-name']} {number + 1}")

    @router.get("/depends")
    async def depends(name: str = Depends(lambda: "given")) -> Response:
        return PlainTextResponse(name)

    @router.get("/nothing")
    async def nothing() -> Response:
        return PlainTextResponse("nothing")

    @router.get("/headers")
    async def headers(request: Request, response: Response) -> str:
        response.headers["x-answer"] = request.headers["x-name"]
        return "headers"

    done: list[str] = []

    @router.get("/tasks")
    async def tasks(request: Request, later: BackgroundTasks) -> str:
        later.add_task(done.append, request.headers["x-name"])
        return "tasks"

    @router.post("/body")
    async def body(request: Request, value: dict[str, int]) -> Response:
        return PlainTextResponse(f"{sorted(value)}")

    app = FastAPI()
    app.router.routes.extend(router.routes)
    client = TestClient(app, headers={"x-name": "n"})
    assert client.get("/alone").text == "n"
    assert client.get("/asks", params={"number": 3}).text == "n 4"
    assert client.get("/asks", params={"number": "x"}).status_code == 422
    assert client.get("/depends").text == "given"
    assert client.get("/nothing").text == "nothing"
    assert client.get("/headers").headers["x-answer"] == "n"
    assert client.get("/tasks").json() == "tasks"
    assert done == ["n"]
    assert client.post("/body", json={"b": 1, "a": 2}).text == "['a', 'b']"
