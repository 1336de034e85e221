"""The vendors' own Python clients, pointed at the service: each reads our answers and our errors as its vendor's."""

import base64
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from serving.api import keys
from serving.scoring.reranker import relevance
from tests.serving.processes import Server, start

TEXTS = ["Shuffle list x in place", "Return a new sorted list", "Open file and return a stream"]
QUERY = "sort a list"

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, not ours.


def client(name: str) -> Any:
    """A vendor's module, without the figures that some send home."""
    os.environ.update(LANGCHAIN_TRACING_V2="false", LANGSMITH_TRACING="false", ANONYMIZED_TELEMETRY="false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed; pip install -e '.[clients]'")


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Server]:
    service = start(tiny.path, RELEVANCE_API_KEYS=keys.digest("a-key").hex(), RELEVANCE_MAX_DOCUMENTS="50")
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def models(tiny: Any) -> Any:
    return tiny.models[tiny.releases.resolve("live")]


@pytest.fixture(scope="module")
def best(models: Any) -> list[tuple[int, float]]:
    """Places and relevances, best first, by numpy."""
    scores = [relevance(models.score(QUERY, item)) for item in TEXTS]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def same(ranked: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [index for index, _ in ranked] == [index for index, _ in expected]
    assert [score for _, score in ranked] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_cohere(server: Server, best: list[tuple[int, float]]) -> None:
    cohere = client("cohere")
    for client_class in (cohere.ClientV2, cohere.Client):
        answer = client_class(api_key="a-key", base_url=server.url).rerank(
            model="rerank-v3.5", query=QUERY, documents=TEXTS, top_n=2
        )
        same([(item.index, item.relevance_score) for item in answer.results], best[:2])
        assert answer.id
    plain = cohere.Client(api_key="a-key", base_url=server.url)
    answer = plain.rerank(query=QUERY, documents=[{"text": item} for item in TEXTS], return_documents=True)
    assert [item.document.text for item in answer.results] == [TEXTS[index] for index, _ in best]


def test_cohere_reads_our_errors(server: Server) -> None:
    cohere = client("cohere")
    with pytest.raises(cohere.UnauthorizedError) as refused:
        cohere.ClientV2(api_key="wrong", base_url=server.url).rerank(model="m", query="q", documents=["a"])
    assert "API key is not known" in refused.value.body["message"]
    cohere_client = cohere.ClientV2(api_key="a-key", base_url=server.url)
    with pytest.raises(cohere.core.ApiError) as refused:
        cohere_client.rerank(model="m", query="q", documents=["a"] * 51)
    assert refused.value.status_code == 413
    assert "send at most 50" in refused.value.body["message"]
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        cohere_client.rerank(model="m", query="", documents=["a"])
    assert "query is empty" in refused.value.body["message"]


def test_cohere_embeds(server: Server, models: Any) -> None:
    cohere = client("cohere")
    expected = [models.vector(item).tolist() for item in TEXTS]
    plain = cohere.Client(api_key="a-key", base_url=server.url).embed(texts=TEXTS * 50, input_type="search_document")
    assert plain.embeddings == [pytest.approx(vector, abs=1e-5) for vector in expected * 50]  # Sent 96 at a time.
    assert plain.texts == TEXTS * 50
    kinds = ["float", "base64"]
    for client_class in (cohere.ClientV2, cohere.Client):
        answer = client_class(api_key="a-key", base_url=server.url).embed(
            model="embed-v4.0", texts=TEXTS, input_type="search_document", embedding_types=kinds
        )
        assert answer.embeddings.float_ == [pytest.approx(vector, abs=1e-5) for vector in expected]
        decoded = [np.frombuffer(base64.b64decode(item), "<f4") for item in answer.embeddings.base64]
        assert np.array_equal(decoded, np.array(answer.embeddings.float_, np.float32))
        assert answer.meta.billed_units.input_tokens > 0
    short = cohere.ClientV2(api_key="a-key", base_url=server.url).embed(
        model="m", texts=[QUERY], input_type="search_query", output_dimension=4
    )
    first_numbers = models.vector(QUERY)[:4]
    assert short.embeddings.float_[0] == pytest.approx(
        (first_numbers / np.linalg.norm(first_numbers)).tolist(), abs=1e-5
    )
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        cohere.ClientV2(api_key="a-key", base_url=server.url).embed(
            model="m", texts=[QUERY], input_type="search_query", embedding_types=["int8"]
        )
    assert "embedding_types: holds 'int8'; the encoder gives float and base64" in refused.value.body["message"]


def test_hugging_face_embeds_at_the_address_itself(server: Server, models: Any) -> None:
    inference_client = client("huggingface_hub").InferenceClient(model=server.url, token="a-key")
    vectors = inference_client.feature_extraction(QUERY, prompt_name="query", truncate=True, normalize=True)
    assert vectors == pytest.approx(models.vector(QUERY)[None], abs=1e-5)


def test_default_bulk_sizes_are_taken(server: Server, models: Any) -> None:
    """OpenAI takes this many texts at once; LangChain sends 1,000."""
    openai = client("openai")
    openai_client = openai.OpenAI(api_key="a-key", base_url=f"{server.url}/v1", max_retries=0)
    texts = [f"list number {number} " + "sorted " * 40 for number in range(2048)]
    answer = openai_client.embeddings.create(model="m", input=texts)
    assert answer.data[2047].embedding == pytest.approx(models.vector(texts[2047]).tolist(), abs=1e-5)


def test_openai(server: Server, models: Any) -> None:
    openai = client("openai")
    openai_client = openai.OpenAI(api_key="a-key", base_url=f"{server.url}/v1")
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = openai_client.embeddings.create(model="text-embedding-3-small", input=TEXTS, **form)
        for item, text in zip(answer.data, TEXTS, strict=True):
            vector = item.embedding
            if isinstance(vector, str):  # base64 that the caller asked for stays as it is.
                vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
            assert vector == pytest.approx(models.vector(text).tolist(), abs=1e-5)
    assert answer.usage.prompt_tokens > 0
    short = openai_client.embeddings.create(model="m", input=QUERY, dimensions=4).data[0].embedding
    first_numbers = models.vector(QUERY)[:4]
    assert short == pytest.approx((first_numbers / np.linalg.norm(first_numbers)).tolist(), abs=1e-5)
    names = {model.id: model for model in openai_client.models.list()}
    assert set(names) == {"ranker", "encoder"}
    digest = names["encoder"].digest
    ids = models.ids(QUERY)
    assert openai_client.embeddings.create(model=digest, input=[ids]).data[0].embedding == pytest.approx(
        models.vector(QUERY).tolist(), abs=1e-5
    )


def test_openai_reads_our_errors(server: Server) -> None:
    openai = client("openai")
    openai_client = openai.OpenAI(api_key="a-key", base_url=f"{server.url}/v1", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions is 256") as refused:
        openai_client.embeddings.create(model="m", input="a", dimensions=256)
    assert refused.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="no model called 'gpt-4'"):
        openai_client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="did you mean /v1/embeddings"):
        openai.OpenAI(api_key="a-key", base_url=server.url, max_retries=0).embeddings.create(model="m", input="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1").models.list()


def test_langchain_reranks(server: Server, best: list[tuple[int, float]]) -> None:
    rerank, documents = client("langchain_cohere").CohereRerank, client("langchain_core.documents")
    compressor = rerank(cohere_api_key="a-key", base_url=server.url, model="rerank-v3.5", top_n=2)
    same([(item["index"], item["relevance_score"]) for item in compressor.rerank(TEXTS, QUERY)], best[:2])
    kept = compressor.compress_documents([documents.Document(page_content=item) for item in TEXTS], QUERY)
    assert [item.page_content for item in kept] == [TEXTS[index] for index, _ in best[:2]]


def test_langchain_embeds(server: Server, models: Any) -> None:
    embeddings = client("langchain_openai").OpenAIEmbeddings(
        api_key="a-key", base_url=f"{server.url}/v1", model="encoder", check_embedding_ctx_length=False
    )
    assert embeddings.embed_query(QUERY) == pytest.approx(models.vector(QUERY).tolist(), abs=1e-5)
    vectors = embeddings.embed_documents(TEXTS)
    assert np.array(vectors) == pytest.approx(np.stack([models.vector(item) for item in TEXTS]), abs=1e-5)


def test_langchain_embeds_as_cohere(server: Server, models: Any) -> None:
    embeddings = client("langchain_cohere").CohereEmbeddings(
        cohere_api_key="a-key", base_url=server.url, model="embed-v4.0", max_retries=1
    )
    assert embeddings.embed_query(QUERY) == pytest.approx(models.vector(QUERY).tolist(), abs=1e-5)
    vectors = embeddings.embed_documents(TEXTS)
    assert np.array(vectors) == pytest.approx(np.stack([models.vector(item) for item in TEXTS]), abs=1e-5)


def test_llama_index_reranks(server: Server, best: list[tuple[int, float]]) -> None:
    postprocessor, schema = client("llama_index.postprocessor.tei_rerank"), client("llama_index.core.schema")
    reranker = postprocessor.TextEmbeddingInference(top_n=2, base_url=server.url, auth_token="a-key")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=item), score=0.0) for item in TEXTS]
    kept = reranker.postprocess_nodes(nodes, query_str=QUERY)
    same([(TEXTS.index(item.node.get_content()), item.score) for item in kept], best[:2])


def test_llama_index_embeds(server: Server, models: Any) -> None:
    embedding_class = client("llama_index.embeddings.text_embeddings_inference").TextEmbeddingsInference
    embedder = embedding_class(model_name="encoder", base_url=server.url, auth_token="a-key")
    vectors = embedder.get_text_embedding_batch(TEXTS)
    assert np.array(vectors) == pytest.approx(np.stack([models.vector(item) for item in TEXTS]), abs=1e-5)
    openai = client("llama_index.embeddings.openai").OpenAIEmbedding
    embedder = openai(model_name="text-embedding-3-small", api_key="a-key", api_base=f"{server.url}/v1")
    assert embedder.get_text_embedding(QUERY) == pytest.approx(models.vector(QUERY).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        # The client of Voyage, version 0.5, sends this and reads `data`.
        ("/v1/rerank", {"top_k": None, "truncation": True, "documents": TEXTS}, ("data", "relevance_score")),
        # Open WebUI reads all results by index; Dify asks at /rerank; `rerankers` sends more than is known.
        ("/v1/rerank", {"model": "m", "top_n": 3, "documents": TEXTS}, ("results", "relevance_score")),
        ("/rerank", {"model": "m", "top_n": 3, "documents": TEXTS}, ("results", "relevance_score")),
        ("/rerank", {"model": "m", "top_n": 3, "texts": TEXTS, "return_text": True}, (None, "score")),
    ],
)
def test_clients_that_write_their_own_http(
    server: Server, best: list[tuple[int, float]], path: str, body: dict[str, Any], read: tuple[str | None, str]
) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"query": QUERY, **body}, headers={"authorization": "a-key"}).json()
    results = answer[read[0]] if read[0] else answer
    same([(item["index"], item[read[1]]) for item in results], best)
