"""The tables of clients' fields: complete against what the vendors' own clients send, and obeyed."""

import importlib
import inspect
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.api import candidates, cohere_embed, embeddings, rerank_request, search_request
from serving.api.schemas import ClientShape, RequestBody
from serving.rollout.lifecycle import Lifecycle
from tests.serving.patience import patient


def _request_models(parent: type[RequestBody]) -> Iterator[type[RequestBody]]:
    for model in parent.__subclasses__():
        if model.__module__.startswith("serving."):
            yield model
        yield from _request_models(model)


MODELS = tuple(_request_models(RequestBody))
"""Every request model of the service; importing the application defines them all."""
SHAPES = [(model, shape) for model in MODELS for shape in model.shapes]

PUBLISHED = [
    (rerank_request.TEI_RERANK, {"query", "texts", "raw_scores", "return_text", "truncate", "truncation_direction"}),
    (rerank_request.JINA_RERANK, {"model", "query", "documents", "top_n", "return_documents", "max_doc_length"}),
    (rerank_request.VOYAGE_RERANK, {"model", "query", "documents", "top_k", "return_documents", "truncation"}),
    (
        rerank_request.VLLM_RERANK,
        {
            *(
                "model",
                "query",
                "documents",
                "top_n",
                "max_tokens_per_doc",
                "truncate_prompt_tokens",
                "priority",
                "user",
            ),
            *("mm_processor_kwargs", "request_id", "activation"),
        },
    ),
    (
        embeddings.JINA_EMBEDDINGS,
        {
            *("model", "input", "task", "dimensions", "normalized", "embedding_type", "late_chunking", "truncate"),
            "return_multivector",
        },
    ),
    (
        embeddings.VOYAGE_EMBEDDINGS,
        {
            *("model", "input", "input_type", "truncation", "output_dimension", "output_dtype", "encoding_format"),
        },
    ),
    (
        embeddings.VLLM_EMBEDDINGS,
        {
            *(
                "model",
                "input",
                "encoding_format",
                "dimensions",
                "user",
                "truncate_prompt_tokens",
                "add_special_tokens",
            ),
            *("priority", "request_id", "normalize"),
        },
    ),
    (embeddings.TEI_EMBED, {"inputs", "normalize", "prompt_name", "truncate", "truncation_direction", "dimensions"}),
]
"""Fields in the vendors' published API references, of those whose clients are not installed here."""


def names(shape: ClientShape) -> str:
    return shape.client


@pytest.mark.parametrize(
    ("model", "shape"), SHAPES, ids=[f"{model.__name__}-{shape.client}" for model, shape in SHAPES]
)
def test_a_table_fits_its_model(model: type[RequestBody], shape: ClientShape) -> None:
    assert shape.honoured <= model.model_fields.keys()
    groups = (shape.honoured, shape.ignored.keys(), shape.refused.keys())
    assert sum(map(len, groups)) == len(shape.fields)
    assert all(shape.ignored.values())
    assert all(rule.reason for rule in shape.refused.values())


def test_each_field_of_a_model_is_in_a_table() -> None:
    assert MODELS
    for model in MODELS:
        assert set(model.model_fields) == set().union(*(shape.fields for shape in model.shapes)) & set(
            model.model_fields
        )


def test_published_fields_are_in_the_tables() -> None:
    for shape, fields in PUBLISHED:
        assert fields <= shape.fields, (shape.client, fields - shape.fields)


class _Recorder(BaseHTTPRequestHandler):
    bodies: list[dict[str, Any]] = []  # noqa: RUF012  # One for all requests, on purpose.

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(418)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def recorder() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Recorder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SAMPLES = {
    "query": "q", "documents": ["a"], "input": ["a"], "text": "a", "model": "m", "top_n": 1, "max_tokens_per_doc": 512,
    "priority": 1, "rank_fields": ["text"], "return_documents": True, "max_chunks_per_doc": 1, "dimensions": 8,
    "encoding_format": "float", "user": "u", "normalize": True, "prompt_name": "query", "truncate": True,
    "truncation_direction": "right", "texts": ["a"], "images": [], "inputs": [], "input_type": "search_query",
    "embedding_types": ["float"], "output_dimension": 8, "max_tokens": 512,
}  # fmt: skip
"""A value for each parameter of the clients' calls."""
TRANSPORT = {"self", "request_options", "extra_headers", "extra_query", "extra_body", "timeout", "batching"}


def with_all_arguments(call: Callable[..., Any], **fixed: Any) -> None:
    """Calls a client with a value for every parameter that becomes a field."""
    parameters = inspect.signature(call).parameters.keys() - TRANSPORT - fixed.keys()
    with pytest.raises(Exception, match=r".*"):  # Whatever the client makes of 418.
        call(**{name: SAMPLES[name] for name in parameters}, **fixed)


def _cohere(url: str, version: str, method: str) -> None:
    cohere = importlib.import_module("cohere")
    with_all_arguments(getattr(getattr(cohere, version)(api_key="k", base_url=url), method))


def _openai(url: str) -> None:
    with_all_arguments(
        importlib.import_module("openai").OpenAI(api_key="k", base_url=url, max_retries=0).embeddings.create
    )


def _hugging_face(url: str) -> None:
    inference_client = importlib.import_module("huggingface_hub").InferenceClient(model=url, token="k")
    with_all_arguments(inference_client.feature_extraction, model=url)


CLIENTS: dict[str, tuple[Callable[[str], None], ClientShape]] = {
    "cohere v2": (lambda url: _cohere(url, "ClientV2", "rerank"), rerank_request.COHERE_RERANK),
    "cohere v1": (lambda url: _cohere(url, "Client", "rerank"), rerank_request.COHERE_RERANK),
    "cohere v2 embed": (lambda url: _cohere(url, "ClientV2", "embed"), cohere_embed.COHERE_EMBED),
    "cohere v1 embed": (lambda url: _cohere(url, "Client", "embed"), cohere_embed.COHERE_EMBED),
    "openai": (_openai, embeddings.OPENAI_EMBEDDINGS),
    "huggingface_hub": (_hugging_face, embeddings.HUGGING_FACE_EMBED),
}
"""Calls of the vendors' own packages, each with the shape that it must fit."""


def test_each_shape_is_held_against_its_client_or_its_published_fields() -> None:
    held = [shape for shape, _ in PUBLISHED] + [shape for _, shape in CLIENTS.values()]
    unheld = [shape for _, shape in SHAPES if not any(shape is other for other in held)]
    assert {shape.client for shape in unheld} == {"search-relevance"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("call", "shape"), CLIENTS.values(), ids=CLIENTS)
def test_every_field_that_a_client_can_send_is_in_its_table(
    recorder: str, call: Callable[[str], None], shape: ClientShape
) -> None:
    os.environ.update(ANONYMIZED_TELEMETRY="false")
    _Recorder.bodies.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(recorder)
        except ImportError as error:
            pytest.skip(f"{error.name} is not installed; pip install -e '.[clients]'")
    (sent, *_) = _Recorder.bodies
    assert len(sent) > 3
    assert sent.keys() <= shape.fields, sent.keys() - shape.fields


@pytest.fixture(scope="module")
def client(tiny: Any) -> TestClient:
    lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1))
    lifecycle.start()
    return TestClient(apps.create(lifecycle))


BASES: dict[type[RequestBody], tuple[str, dict[str, Any]]] = {
    rerank_request.RerankRequest: ("/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
    embeddings.EmbeddingsRequest: ("/v1/embeddings", {"input": "a"}),
    embeddings.EmbedRequest: ("/embed", {"inputs": "a"}),
    cohere_embed.CohereEmbedRequest: ("/v2/embed", {"texts": ["a"]}),
    search_request.SearchRequest: ("/search", {"query": "a"}),
    candidates.CandidatesRequest: ("/candidates", {"query": "a"}),
}
"""A path and the smallest body that it answers, for each request with a number or a refused field."""
REFUSED = [(model, shape, name) for model, shape in SHAPES for name in shape.refused]


@pytest.mark.parametrize(
    ("model", "shape", "name"), REFUSED, ids=[f"{shape.client}-{name}" for _, shape, name in REFUSED]
)
def test_a_refused_field_is_refused_except_where_it_changes_nothing(
    client: TestClient, model: type[RequestBody], shape: ClientShape, name: str
) -> None:
    path, body = BASES[model]
    plain = client.post(path, json=body).json()
    rules = [other.refused[name] for other in model.shapes if name in other.refused]
    for value in (None, *rules[0].accepted):
        answer = client.post(path, json={**body, name: value})
        assert answer.status_code == 200, answer.text
        assert {**answer.json(), "id": 0} == {**plain, "id": 0} if isinstance(plain, dict) else answer.json() == plain
    response = client.post(path, json={**body, name: "other"})
    assert response.status_code == 422
    assert name in response.json()["message"]


def test_a_query_is_a_query_in_the_words_of_each_client(client: TestClient) -> None:
    def vector(**more: Any) -> Any:
        return client.post("/v1/embeddings", json={"input": "sort a list", **more}).json()["data"][0]["embedding"]

    from serving.runtime import engine

    seen: list[str] = []
    real = engine.Engine.texts

    def texts(self: Any, items: Any, role: Any, **knobs: Any) -> Any:
        seen.append(role)
        return real(self, items, role, **knobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "texts", texts)
        for more, role in (
            ({"task": "retrieval.query"}, "query"),
            ({"task": "retrieval.passage"}, "document"),
            ({"input_type": "search_query"}, "query"),
            ({"input_type": "query"}, "query"),
            ({"input_type": "document"}, "document"),
            ({}, "document"),
        ):
            seen.clear()
            vector(**more)
            assert set(seen) == {role}, more


def _numbers(model: type[RequestBody]) -> list[str]:
    """The fields of a request that are numbers."""
    fields = model.model_fields.items()
    return [name for name, field in fields if {int, float} & {field.annotation, *get_args(field.annotation)}]


NUMBERS = [(path, body, name) for model, (path, body) in BASES.items() for name in _numbers(model)]


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("path", "body", "name"), NUMBERS)
def test_true_and_false_are_no_numbers(started: Any, path: str, body: dict[str, Any], name: str, value: bool) -> None:
    answer = TestClient(apps.create(started())).post(path, json={**body, name: value})
    assert answer.status_code == 422
    assert f"{name} is {str(value).lower()}; send a number" in answer.json()["message"]
    without = TestClient(apps.create(started())).post(path, json={**body, name: None})
    assert without.status_code == (404 if path == "/candidates" else 200)  # The tiny release is no shard.


def test_every_request_with_a_number_is_in_that_list() -> None:
    assert {model for model in MODELS if _numbers(model)} <= BASES.keys()
