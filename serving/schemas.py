"""What clients send and get, as text-embeddings-inference, Cohere, Jina and OpenAI shaped it.

Unknown fields and nulls are accepted, because real clients send both. Lengths of lists are checked in `app`, where
the limits are known.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline import text
from serving.errors import InvalidRequestError


def _named(value: Any) -> Any:
    """One message in place of one for each type of a union."""
    if not isinstance(value, str | dict):
        raise ValueError("a document is a text, or an object with texts")
    return value


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

Value = bool | int | float | str


def _wanted(value: Any) -> Any:
    """The values of one filter as a list; one message in place of one for each type of the union."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Value) for item in values):
        raise ValueError("a filter is a text, a number, true or false, or a list of these")
    return values


Wanted = Annotated[list[Value], BeforeValidator(_wanted)]


class Request(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class RerankRequest(Request):
    """`texts` asks for the answer of text-embeddings-inference, `documents` for that of Cohere and Jina."""

    query: str = Field(description="What is searched for.", examples=["fast sorting"])
    texts: list[str] | None = Field(None, description="text-embeddings-inference: the texts to score.")
    documents: list[Annotated[str | dict[str, Any], BeforeValidator(_named)]] | None = Field(
        None, description="Cohere, Jina: texts, or objects with `text` and perhaps `title`."
    )
    model: str | None = Field(None, description="Any name; the live release answers.")
    top_n: int | None = Field(None, ge=0, description="Cohere, Jina: the best so many; null or 0 for all.")
    return_documents: bool | None = Field(None, description="Cohere, Jina: put each document into its result.")
    rank_fields: list[str] | None = Field(None, description="Cohere: the keys of an object to read, in this order.")
    max_tokens_per_doc: int | None = Field(
        None, description="Cohere: no fewer than the ranker reads of a pair; 422 rather than pretend to cut more."
    )
    raw_scores: bool | None = Field(None, description="text-embeddings-inference: scores as the model gives them.")
    return_text: bool | None = Field(None, description="text-embeddings-inference: put each text into its result.")
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")
    cascade: bool | None = Field(
        None,
        description="Rerank best first as far as the time goes and leave the rest in first-stage order, each result "
        "marked with `reranked`; never 429 or 504. The first stage is each document's `score`, else the encoder.",
    )


class SearchRequest(Request):
    """A question to the documents of the live release."""

    query: str = Field(description="What is searched for.", examples=["turn a list of dicts into a table"])
    top_n: int | None = Field(None, ge=1, description="Length of each list; 10 when not given.")
    filters: dict[str, Wanted] | None = Field(
        None,
        description="Only documents whose field has this value, or one of these; of several fields, all must fit.",
        examples=[{"language": "en", "year": [2025, 2026]}],
    )


class EmbeddingsRequest(Request):
    """OpenAI's shape."""

    input: Inputs = Field(description="One text or a list of texts; or their token ids, see `model`.")
    model: str | None = Field(
        None, description="Any name; the live release answers. With token ids it must be the encoder's digest."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64 is of float32, little-endian.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    input_type: str | None = Field(None, description="query or search_query embeds as a query, else as a document.")


class EmbedRequest(Request):
    """text-embeddings-inference's shape."""

    inputs: Inputs = Field(description="One text or a list of texts, or their token ids in the encoder's vocabulary.")
    normalize: bool | None = Field(None, description="Vectors have unit length; false is refused.")
    prompt_name: str | None = Field(None, description="query embeds as a query, else as a document.")
    dimensions: int | None = Field(None, description="The encoder's own width, or one of its `widths` in /info.")
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")


class TextScore(BaseModel):
    """One text's score, as text-embeddings-inference gives it."""

    index: int = Field(description="Place in `texts`, from 0.")
    score: float = Field(description="In [0, 1], or the raw score when asked for.")
    text: str | None = None
    reranked: bool | None = Field(None, description="In a cascade: false where the ranker did not reach it.")


class Ranked(BaseModel):
    """One document's relevance, as Cohere and Jina give it."""

    index: int = Field(description="Place in `documents`, from 0.")
    relevance_score: float = Field(description="In [0, 1].")
    document: dict[str, Any] | None = None
    reranked: bool | None = Field(None, description="In a cascade: false where the ranker did not reach it.")


class RerankAnswer(BaseModel):
    """Documents by falling relevance."""

    id: str
    model: str
    results: list[Ranked]
    meta: dict[str, Any]
    usage: dict[str, int]


class Found(BaseModel):
    """One document in one of the three lists of a search."""

    doc_id: str
    title: str
    snippet: str
    score: float
    rank: int
    lexical_rank: int | None
    semantic_rank: int | None
    rank_change: int | None = Field(description="Places it rose against BM25 and encoder together; final list only.")
    relevance: float | None = Field(description="What the ranker alone says, in [0, 1]; final list only.")


class SearchAnswer(BaseModel):
    """The same question answered in three ways."""

    query: str
    release: str
    lexical: list[Found]
    semantic: list[Found]
    reranked: list[Found]
    milliseconds: dict[str, float]
    candidates: int
    cache_hits: int
    cache_misses: int


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


class Model(BaseModel):
    """A model of the live release."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    digest: str
    precision: str
    release: str


class Models(BaseModel):
    """The models of the live release."""

    object: Literal["list"]
    data: list[Model]


class ErrorAnswer(BaseModel):
    """What every failed request gets; on OpenAI's routes `error` is an object."""

    error: str | dict[str, Any]
    message: str
    detail: str
    type: str


def document_text(document: str | dict[str, Any], fields: list[str] | None) -> str:
    """A document as the ranker reads it: the named fields, else title and text, else all its texts, in order."""
    if isinstance(document, str):
        return document
    if fields:
        return "\n".join(str(document[name]) for name in fields if document.get(name) is not None)
    if isinstance(document.get("text"), str):
        title = document.get("title")
        return text.document_text(title if isinstance(title, str) else "", document["text"])
    return "\n".join(value for value in document.values() if isinstance(value, str))


def first_stage(documents: Sequence[str | dict[str, Any]]) -> list[float] | None:
    """The first-stage scores that documents carry; None where none does.

    Raises:
        InvalidRequestError: some carry one and some do not, or one is not a number.
    """
    scores = [document.get("score") if isinstance(document, dict) else None for document in documents]
    if all(score is None for score in scores):
        return None
    for place, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not -1e300 < score < 1e300:
            raise InvalidRequestError(
                f"documents[{place}].score is {str(score)[:40]}; a cascade needs a number in every document, or in none"
            )
    return [float(score) for score in scores if score is not None]
