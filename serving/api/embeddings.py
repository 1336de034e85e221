"""POST /v1/embeddings, /embed and /: vectors in the shapes of OpenAI and text-embeddings-inference."""

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo
from starlette.responses import Response

from serving.api import bulk, inputs
from serving.api.direct_route import DirectRoute
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import (
    ERROR_ANSWERS,
    OTHER_PRIORITY,
    ClientShape,
    RefusedField,
    RequestBody,
    check_length,
)
from serving.errors import InvalidRequestError
from serving.runtime.items import Item
from serving.scoring.embedder import Vector
from serving.scoring.scoring_engine import Role

QUERY_TYPES = {"query", "search_query", "retrieval.query"}
"""Values by which clients of Cohere, Voyage and Jina say that a text is a query."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)


def _as_list(value: Any, info: ValidationInfo) -> Any:
    """The inputs as a list: one text, or one list of token ids, becomes a list of one.

    Checked here rather than by pydantic, which would report each type that a wrong item is not.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_id(item) for item in value)):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text or a list of texts, and not empty")
    check_length(value, info, "max_texts", f"texts in {info.field_name}")
    for index, item in enumerate(value):
        is_ids = isinstance(item, list) and item and all(_is_id(part) for part in item)
        if not isinstance(item, str) and not is_ids:
            raise ValueError(f"item {index} must be a text, or a list of token ids from 0")
    return value


def _is_id(value: Any) -> bool:
    """Whether a JSON value is a token id: a whole number from 0; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Inputs = Annotated[list[str | list[int]], BeforeValidator(_as_list)]
"""Texts, or lists of token ids; a client may send one of them alone."""

_USER = {"user": "requests are not told apart by their users"}
_UNIT_LENGTH = RefusedField("the encoder's vectors have unit length, leave it out", accepted=(True,))

OPENAI_EMBEDDINGS = ClientShape(
    client="OpenAI",
    honoured=frozenset({"input", "model", "encoding_format", "dimensions"}),
    ignored=_USER,
)
JINA_EMBEDDINGS = ClientShape(
    client="Jina",
    honoured=frozenset({"input", "model", "task", "dimensions", "truncate"}),
    refused={
        "normalized": _UNIT_LENGTH,
        **dict.fromkeys(
            ("embedding_type", "encoding_type"),  # LlamaIndex sends the second.
            RefusedField("the vectors are float; base64 is encoding_format", accepted=("float",)),
        ),
        "late_chunking": RefusedField("each text is embedded by itself, leave it out", accepted=(False,)),
        "return_multivector": RefusedField("a text has one vector, leave it out", accepted=(False,)),
    },
)
VOYAGE_EMBEDDINGS = ClientShape(
    client="Voyage",
    honoured=frozenset({"input", "model", "input_type", "truncation", "output_dimension", "encoding_format"}),
    refused={"output_dtype": RefusedField("the vectors are float, leave it out", accepted=("float",))},
)
VLLM_EMBEDDINGS = ClientShape(
    client="vLLM",
    honoured=frozenset({"input", "model", "encoding_format", "dimensions"}),
    ignored={
        **_USER,
        "priority": OTHER_PRIORITY,
        "request_id": "the header x-request-id names a request",
        "truncate_prompt_tokens": "the release fixes how much is read",
    },
    refused={
        "add_special_tokens": RefusedField("special tokens are always put on, leave it out", accepted=(True,)),
        "normalize": _UNIT_LENGTH,
        "use_activation": _UNIT_LENGTH,
        "embed_dtype": RefusedField("base64 holds float32, leave it out", accepted=("float32",)),
        "endianness": RefusedField("base64 is little-endian, leave it out", accepted=("little",)),
    },
)
TEI_EMBED = ClientShape(
    client="text-embeddings-inference",
    honoured=frozenset({"inputs", "prompt_name", "dimensions", "truncate", "truncation_direction"}),
    refused={"normalize": _UNIT_LENGTH},
)
HUGGING_FACE_EMBED = ClientShape(
    client="huggingface_hub",
    honoured=frozenset({"inputs", "prompt_name", "dimensions", "truncate", "truncation_direction"}),
    refused={
        "normalize": _UNIT_LENGTH,
        "encoding_format": RefusedField("the vectors are lists of numbers, leave it out", accepted=("float",)),
    },
)


class EmbeddingsRequest(RequestBody):
    """The body of OpenAI's shape, with what Jina, Voyage and vLLM add."""

    shapes: ClassVar[tuple[ClientShape, ...]] = (OPENAI_EMBEDDINGS, JINA_EMBEDDINGS, VOYAGE_EMBEDDINGS, VLLM_EMBEDDINGS)

    input: Inputs = Field(description="One text or a list of texts; or their token ids, see `model`.")
    model: str | None = Field(
        None, description="Any name; the live release answers. With token ids it must be the encoder's digest."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64 is of float32, little-endian.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    output_dimension: int | None = Field(None, description="Voyage: the same as `dimensions`.")
    input_type: str | None = Field(
        None, description="Voyage, Cohere: query or search_query embeds as a query, any other as a document."
    )
    task: str | None = Field(None, description="Jina: retrieval.query embeds as a query, any other as a document.")
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation: bool | None = Field(None, description="Voyage: the same as `truncate`.")


class EmbedRequest(RequestBody):
    """The body of text-embeddings-inference's shape."""

    shapes: ClassVar[tuple[ClientShape, ...]] = (TEI_EMBED, HUGGING_FACE_EMBED)

    inputs: Inputs = Field(description="One text or a list of texts, or their token ids in the encoder's vocabulary.")
    normalize: bool | None = Field(None, description="Vectors have unit length; false is refused.")
    prompt_name: str | None = Field(None, description="query embeds as a query, any other as a document.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    """Index of the text in the request."""
    embedding: list[float] | str
    """Numbers, or base64 of them where the request asks for it."""


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of their texts, in OpenAI's shape."""

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
    context = RequestContext(request)
    body = await context.read(EmbeddingsRequest)
    context.counts(len(body.input))
    _check_values(body, context.searcher.encoder.digest)
    is_query = body.input_type in QUERY_TYPES or body.task in QUERY_TYPES
    call = EmbedCall(
        context,
        body.input,
        field="input",
        role="query" if is_query else "document",
        dimensions=body.output_dimension if body.dimensions is None else body.dimensions,
        cut=body.truncate is not False and body.truncation is not False,
    )
    coded: Callable[[Vector], Any] = base64_floats if body.encoding_format == "base64" else (lambda vector: vector)

    def work() -> Any:
        vectors, tokens = call.vectors()
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": coded(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": "encoder",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    return await context.answer(work)


def _check_values(body: EmbeddingsRequest, digest: str) -> None:
    """Raises InvalidRequestError for token ids of an unnamed vocabulary, and for two widths of a vector.

    Args:
        digest: the encoder's, which names its vocabulary.
    """
    if body.model != digest and not all(isinstance(item, str) for item in body.input):
        raise InvalidRequestError(
            "input holds token ids, which mean nothing without their vocabulary; send texts (in LangChain: "
            "check_embedding_ctx_length=False), or name the vocabulary with the encoder's digest in /v1/models as model"
        )
    if len({body.dimensions, body.output_dimension} - {None}) > 1:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions} and output_dimension is {body.output_dimension}; send one of them"
        )


@router.post(
    "/embed",
    tags=["embed"],
    responses={200: {"model": list[list[float]]}},
    openapi_extra=request_schema(EmbedRequest),
)
async def embed(request: Request) -> Response:
    """Vectors of texts in the shape of text-embeddings-inference."""
    context = RequestContext(request)
    return await answer(context, await context.read(EmbedRequest))


async def answer(context: RequestContext, body: EmbedRequest) -> Response:
    """The answer to a parsed body: a list of vectors and nothing around it. Both /embed and / answer so."""
    context.counts(len(body.inputs))
    call = EmbedCall(
        context,
        body.inputs,
        field="inputs",
        role="query" if body.prompt_name in QUERY_TYPES else "document",
        dimensions=body.dimensions,
        cut=body.truncate is not False,
    )
    return await context.answer(lambda: call.vectors()[0])


class EmbedCall:
    """One request for vectors, in whatever shape it came.

    The constructor runs on the event loop and makes the quick checks; `vectors` does the work in a worker thread.
    """

    def __init__(
        self,
        context: RequestContext,
        given: Sequence[inputs.Input],
        *,
        field: str,
        role: Role,
        dimensions: int | None,
        cut: bool,
    ) -> None:
        """Checks the width of the vectors, and puts a request for many texts behind the others.

        Args:
            context: the request.
            given: the texts or token ids.
            field: the request's field that holds them, for messages.
            role: whether the encoder reads them as queries or as documents.
            dimensions: number of dimensions of the vectors; None for all.
            cut: whether a text that is longer than the encoder reads is cut; otherwise it is refused.

        Raises:
            InvalidRequestError: the encoder does not give vectors of these dimensions.
        """
        self._context, self._given = context, given
        self._field, self._role, self._cut = field, role, cut
        self._searcher = context.searcher
        encoder = self._searcher.encoder
        self._width = encoder.dimensions if dimensions is None else dimensions
        if self._width not in encoder.bundle.widths:
            known = " or ".join(map(str, encoder.bundle.widths))
            raise InvalidRequestError(f"dimensions is {self._width}; this encoder gives {known}")
        if len(given) > bulk.BULK_TEXTS:
            context.work_in_bulk()

    def vectors(self) -> tuple[list[Vector], int]:
        """The vectors, and the number of tokens that the encoder read.

        Raises:
            InvalidRequestError: an empty text, ids of another tokenizer, or a long text that must not be cut.
            InferenceError: the encoder raised.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        context, encoder, role, options = self._context, self._searcher.encoder, self._role, self._context.options
        texts = inputs.texts(encoder, self._given, role, self._field, options.deadline)
        if not self._cut:
            inputs.check_texts(encoder, texts, role, self._field, options.deadline)

        def tokens_read(some: Sequence[str]) -> int:
            return count_tokens(encoder.texts(some, role, remember=options.remember))

        context.advise(bulk.advice(encoder, texts, tokens_read, "texts"))
        fetched = self._searcher.embedder.vectors(texts, role, options)
        tokens = tokens_read(texts)  # After the vectors, when the token ids are cached.
        context.spent(fetched.hits, fetched.misses, by="encoder")
        return [_first(vector, self._width) for vector in fetched.values], tokens


def _first(vector: Vector, width: int) -> Vector:
    """The first `width` dimensions, scaled to unit length again."""
    if width == len(vector):
        return vector
    first = vector[:width]
    return first / np.float32(np.linalg.norm(first) or 1.0)


def count_tokens(items: Sequence[Item]) -> int:
    """Number of tokens that the model reads, special ones included."""
    return sum(len(item.ids) for item in items)


def base64_floats(vector: Vector) -> str:
    """The numbers as little-endian float32, in base64: the form that OpenAI's clients ask for."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
