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


def _texts(value: Any) -> Any:
    """Refuses what OpenAI's own clients may send and only OpenAI can read."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text or a list of texts, and not empty")
    if all(isinstance(item, int | list) for item in value):
        raise ValueError(
            "token ids are not accepted, as they belong to another model's vocabulary; send texts "
            "(in LangChain: check_embedding_ctx_length=False)"
        )
    return value


Texts = Annotated[list[str], BeforeValidator(_texts)]


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
    raw_scores: bool | None = Field(None, description="text-embeddings-inference: scores as the model gives them.")
    return_text: bool | None = Field(None, description="text-embeddings-inference: put each text into its result.")
    truncate: Literal[True] | None = Field(
        None, description="Texts are always cut to what the model reads, so false is refused."
    )
    cascade: bool | None = Field(
        None,
        description="Rerank best first as far as the time goes and leave the rest in first-stage order, each result "
        "marked with `reranked`; never 429 or 504. The first stage is each document's `score`, else the encoder.",
    )


class SearchRequest(Request):
    """A question to the documents of the live release."""

    query: str = Field(description="What is searched for.", examples=["turn a list of dicts into a table"])
    top_n: int | None = Field(None, ge=1, description="Length of each list; 10 when not given.")


class EmbeddingsRequest(Request):
    """OpenAI's shape."""

    input: Texts = Field(description="One text or a list of texts.")
    model: str | None = Field(None, description="Any name; the live release answers.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64 is of float32, little-endian.")
    dimensions: int | None = Field(None, description="Only the encoder's own width.")
    input_type: str | None = Field(None, description="query or search_query embeds as a query, else as a document.")


class EmbedRequest(Request):
    """text-embeddings-inference's shape."""

    inputs: Texts = Field(description="One text or a list of texts.")
    normalize: bool | None = Field(None, description="Vectors have unit length; false is refused.")
    prompt_name: str | None = Field(None, description="query embeds as a query, else as a document.")
    dimensions: int | None = Field(None, description="Only the encoder's own width.")
    truncate: Literal[True] | None = Field(
        None, description="Texts are always cut to what the model reads, so false is refused."
    )


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
