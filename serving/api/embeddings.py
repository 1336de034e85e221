"""POST /v1/embeddings and POST /embed: vectors in the shapes of OpenAI and text-embeddings-inference."""

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from serving.api import (
    inputs,
    json_io,
)
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import RequestBody
from serving.errors import InvalidRequestError
from serving.runtime.items import Item
from serving.scoring.cache import Fetched
from serving.scoring.reranker import Role, Vector

QUERY_TYPES = {"query", "search_query", "retrieval.query"}
"""How clients of Cohere, Voyage and Jina say that a text is a query."""

router = APIRouter()


def _inputs(value: Any) -> Any:
    """One text or one list of token ids as a list of one; one message in place of one for each type of the union."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_id(item) for item in value)):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text or a list of texts, and not empty")
    for place, item in enumerate(value):
        ids = isinstance(item, list) and item and all(_is_id(part) for part in item)
        if not isinstance(item, str) and not ids:
            raise ValueError(f"item {place} must be a text, or a list of token ids from 0")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Inputs = Annotated[list[str | list[int]], BeforeValidator(_inputs)]


class EmbeddingsRequest(RequestBody):
    """OpenAI's shape."""

    input: Inputs = Field(description="One text or a list of texts; or their token ids, see `model`.")
    model: str | None = Field(
        None, description="Any name; the live release answers. With token ids it must be the encoder's digest."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64 is of float32, little-endian.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    input_type: str | None = Field(None, description="query or search_query embeds as a query, else as a document.")


class EmbedRequest(RequestBody):
    """text-embeddings-inference's shape."""

    inputs: Inputs = Field(description="One text or a list of texts, or their token ids in the encoder's vocabulary.")
    normalize: bool | None = Field(None, description="Vectors have unit length; false is refused.")
    prompt_name: str | None = Field(None, description="query embeds as a query, else as a document.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of their texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


@router.post(
    "/v1/embeddings",
    tags=["embed"],
    responses={200: {"model": EmbeddingsAnswer}},
    openapi_extra=request_schema(EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """Vectors of texts in OpenAI's shape."""
    asked = json_io.parse(await request.body(), EmbeddingsRequest)
    role: Role = "query" if asked.input_type in QUERY_TYPES else "document"
    call = RequestContext(request)
    if asked.model != call.searcher.encoder.digest and not all(isinstance(item, str) for item in asked.input):
        raise InvalidRequestError(
            "input holds token ids, which mean nothing without their vocabulary; send texts (in LangChain: "
            "check_embedding_ctx_length=False), or name the vocabulary with the encoder's digest in /v1/models as model"
        )
    vectors, read = await _vectors(call, asked.input, role, asked.dimensions, "input")
    coded: Callable[[Vector], Any] = _base64 if asked.encoding_format == "base64" else (lambda vector: vector)
    return call.answer(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": coded(vector)}
                for place, vector in enumerate(vectors)
            ],
            "model": "encoder",
            "usage": {"prompt_tokens": read, "total_tokens": read},
        }
    )


@router.post(
    "/embed",
    tags=["embed"],
    responses={200: {"model": list[list[float]]}},
    openapi_extra=request_schema(EmbedRequest),
)
async def embed(request: Request) -> Response:
    """Vectors of texts in the shape of text-embeddings-inference."""
    asked = json_io.parse(await request.body(), EmbedRequest)
    if asked.normalize is False:
        raise InvalidRequestError("normalize is false; the encoder's vectors have unit length, leave it out")
    role: Role = "query" if asked.prompt_name in QUERY_TYPES else "document"
    call = RequestContext(request)
    cut = asked.truncate is not False
    vectors, _ = await _vectors(call, asked.inputs, role, asked.dimensions, "inputs", cut=cut)
    return call.answer(vectors)


async def _vectors(
    call: RequestContext,
    given: Sequence[inputs.Input],
    role: Role,
    dimensions: int | None,
    field: str,
    *,
    cut: bool = True,
) -> tuple[list[Vector], int]:
    """The vectors of what was given in `field`, and the tokens that it has as the encoder reads it."""
    call.takes(len(given), f"texts in {field}")
    encoder, embedder = call.searcher.encoder, call.searcher.embedder
    width = dimensions or encoder.dimensions
    if width not in encoder.bundle.widths:
        known = " or ".join(map(str, encoder.bundle.widths))
        raise InvalidRequestError(f"dimensions is {width}; this encoder gives {known}")

    def compute() -> tuple[Fetched[Vector], int]:
        texts = inputs.texts(encoder, given, role, field)
        if not cut:
            inputs.check_texts(encoder, texts, role, field)
        found = embedder.vectors(texts, role, call.terms)
        return found, tokens(encoder.texts(texts, role, remember=call.terms.remember))

    found, read = await call.run(compute)
    call.spent(found.hits, found.misses, by="encoder")
    return [_cut(vector, width) for vector in found.values], read


def _cut(vector: Vector, width: int) -> Vector:
    """The first dimensions, of unit length again."""
    if width == len(vector):
        return vector
    first = vector[:width]
    return first / np.float32(np.linalg.norm(first) or 1.0)


def tokens(items: Sequence[Item]) -> int:
    """How many the model reads, special ones included; after scoring, as the ids are then remembered."""
    return sum(len(item.ids) for item in items)


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
