"""POST /v1/embed and /v2/embed: vectors in Cohere's shape."""

import uuid
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo
from starlette.responses import Response

from serving.api.direct_route import DirectRoute
from serving.api.embeddings import QUERY_TYPES, EmbedCall, base64_floats
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import (
    ERROR_ANSWERS,
    OTHER_MODEL,
    OTHER_PRIORITY,
    ClientShape,
    RefusedField,
    RequestBody,
    check_length,
    shown,
)
from serving.scoring.embedder import Vector

VECTOR_TYPES = ("float", "base64")
"""The types of vectors that the encoder gives, of those that Cohere has."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)


def _texts(value: Any, info: ValidationInfo) -> Any:
    """Checks the number of texts before any of them is looked at."""
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of texts, and not empty")
    check_length(value, info, "max_texts", "texts")
    return value


def _vector_types(value: Any) -> Any:
    """One message for any type that the encoder does not give."""
    if not isinstance(value, list):
        raise ValueError("must be a list, such as ['float']")
    unknown = next((item for item in value if item not in VECTOR_TYPES), None)
    if unknown is not None:
        raise ValueError(f"holds {shown(unknown)}; the encoder gives {' and '.join(VECTOR_TYPES)}")
    if len(set(value)) < len(value):
        raise ValueError("a type stands there twice")
    return value


COHERE_EMBED = ClientShape(
    client="Cohere",
    honoured=frozenset({"texts", "input_type", "embedding_types", "truncate", "output_dimension"}),
    ignored={"model": OTHER_MODEL, "priority": OTHER_PRIORITY},
    refused={
        "images": RefusedField("the encoder reads texts only", accepted=([],)),
        "inputs": RefusedField("the encoder reads texts only; send them as texts", accepted=([],)),
        "max_tokens": RefusedField("the release fixes how much of a text is read, leave it out"),
    },
)


class CohereEmbedRequest(RequestBody):
    """The body of Cohere's shape, in both of its versions."""

    shapes: ClassVar[tuple[ClientShape, ...]] = (COHERE_EMBED,)

    texts: Annotated[list[str], Field(fail_fast=True), BeforeValidator(_texts)]
    input_type: str | None = Field(None, description="search_query embeds as a query, any other as a document.")
    embedding_types: Annotated[list[str], BeforeValidator(_vector_types)] | None = Field(
        None, description="float, base64 of float32, or both; float when not given."
    )
    truncate: Literal["END", "NONE"] | None = Field(
        None, description="NONE: 422 rather than cut what is longer than the model reads. Texts are cut at their end."
    )
    output_dimension: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")


class VectorsByType(BaseModel):
    """The vectors of all texts, by their type."""

    floats: list[list[float]] | None = Field(None, alias="float")
    base64: list[str] | None = None


class CohereEmbedAnswer(BaseModel):
    """Vectors in the order of their texts, in Cohere's shape."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: VectorsByType | list[list[float]] = Field(
        description="A plain list only of /v1/embed without `embedding_types`."
    )
    texts: list[str]
    meta: dict[str, Any]


@router.post(
    "/v1/embed",
    tags=["embed"],
    responses={200: {"model": CohereEmbedAnswer}},
    openapi_extra=request_schema(CohereEmbedRequest),
)
@router.post(
    "/v2/embed",
    tags=["embed"],
    responses={200: {"model": CohereEmbedAnswer}},
    openapi_extra=request_schema(CohereEmbedRequest),
)
async def embed(request: Request) -> Response:
    """Vectors of texts in Cohere's shape."""
    context = RequestContext(request)
    body = await context.read(CohereEmbedRequest)
    version = "2" if request.scope["path"].startswith("/v2") else "1"
    context.counts(len(body.texts))
    call = EmbedCall(
        context,
        body.texts,
        field="texts",
        role="query" if body.input_type in QUERY_TYPES else "document",
        dimensions=body.output_dimension,
        cut=body.truncate != "NONE",
    )

    def work() -> Any:
        vectors, tokens = call.vectors()
        is_plain = version == "1" and not body.embedding_types
        return {
            "id": uuid.uuid4().hex,
            "response_type": "embeddings_floats" if is_plain else "embeddings_by_type",
            "embeddings": vectors if is_plain else _by_type(vectors, body.embedding_types or ["float"]),
            "texts": body.texts,
            "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": tokens}},
        }

    return await context.answer(work)


def _by_type(vectors: list[Vector], types: list[str]) -> dict[str, list[Any]]:
    return {name: [base64_floats(item) for item in vectors] if name == "base64" else vectors for name in types}
