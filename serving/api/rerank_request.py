"""The bodies of rerank requests, in the shapes of text-embeddings-inference, Cohere, Jina, Voyage and vLLM."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MaxLen
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from pipeline import text
from pipeline.passages import MAX_PASSAGES
from pipeline.text import counted
from serving.api.schemas import OTHER_MODEL, OTHER_PRIORITY, ClientShape, RefusedField, RequestBody, check_length, shown
from serving.errors import InvalidRequestError
from serving.scoring.document_scores import DocumentLimits

MAX_RANK_FIELDS = 100
"""Most fields of a document that a request may name."""
MAX_SCORE = 1e300
"""Bound of a first-stage score's size."""


def _few(value: Any, info: ValidationInfo) -> Any:
    """Checks the number of documents before any of them is looked at."""
    check_length(value, info, "max_documents", "documents")
    return value


def _text_or_object(value: Any) -> Any:
    """One message in place of one for each type of a union."""
    if not isinstance(value, str | dict):
        raise ValueError("a document is a text, or an object with texts")
    return value


def _all_different(names: list[str]) -> list[str]:
    """Names no field twice: the same text many times over would be a body that grows after it was measured."""
    if len(set(names)) < len(names):
        raise ValueError("a field is named twice")
    return names


def _finite(value: Any) -> float:
    """One message for all that is no finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_SCORE < value < MAX_SCORE:
        raise ValueError(f"a first-stage score is {shown(value)}; send a finite number for each document")
    return float(value)


Score = Annotated[float, BeforeValidator(_finite)]
Texts = Annotated[list[str], Field(fail_fast=True), BeforeValidator(_few)]
Document = Annotated[str | dict[str, Any], BeforeValidator(_text_or_object)]
Documents = Annotated[list[Document], Field(fail_fast=True), BeforeValidator(_few)]
FirstStageScores = Annotated[list[Score], Field(fail_fast=True), BeforeValidator(_few)]
RankFields = Annotated[list[str], Field(fail_fast=True), MaxLen(MAX_RANK_FIELDS), AfterValidator(_all_different)]


TEI_RERANK = ClientShape(
    client="text-embeddings-inference",
    honoured=frozenset({"query", "texts", "raw_scores", "return_text", "truncate", "truncation_direction"}),
)
COHERE_RERANK = ClientShape(
    client="Cohere",
    honoured=frozenset(
        {"query", "documents", "top_n", "return_documents", "rank_fields", "max_tokens_per_doc", "max_chunks_per_doc"},
    ),
    ignored={
        "model": OTHER_MODEL,
        "priority": OTHER_PRIORITY,
    },
)
JINA_RERANK = ClientShape(
    client="Jina",
    honoured=frozenset({"query", "documents", "top_n", "return_documents", "truncation"}),
    ignored={
        "model": OTHER_MODEL,
        "max_doc_length": "the release fixes how much of a document is read",
        "max_query_length": "the release fixes how much of a query is read",
    },
    refused={
        "return_embeddings": RefusedField("a ranker makes no vectors; POST /embed does", accepted=(False,)),
    },
)
VOYAGE_RERANK = ClientShape(
    client="Voyage",
    honoured=frozenset({"query", "documents", "top_k", "return_documents", "truncation"}),
    ignored={"model": OTHER_MODEL},
)
VLLM_RERANK = ClientShape(
    client="vLLM",
    honoured=frozenset({"query", "documents", "top_n", "max_tokens_per_doc"}),
    ignored={
        "model": OTHER_MODEL,
        "user": "requests are not told apart by their users",
        "priority": OTHER_PRIORITY,
        "request_id": "the header x-request-id names a request",
        "truncate_prompt_tokens": "the release fixes how much is read",
    },
    refused={
        "mm_processor_kwargs": RefusedField("the ranker reads texts only"),
        "use_activation": RefusedField("send raw_scores: true for scores without the sigmoid", accepted=(True,)),
        "activation": RefusedField("send raw_scores: true for scores without the sigmoid", accepted=(True,)),
        "softmax": RefusedField("scores are sigmoids, independent of the other documents", accepted=(False,)),
    },
)
OWN_RERANK = ClientShape(
    client="search-relevance",
    honoured=frozenset(
        {"query", "documents", "texts", "top_n", "top_k", "return_documents", "return_text", "raw_scores", "cascade",
         "rank_fields", "max_tokens_per_doc", "max_chunks_per_doc", "truncate", "truncation", "truncation_direction",
         "first_stage_scores", "fused"}
    ),
    ignored={"model": OTHER_MODEL},
)  # fmt: skip


class RerankRequest(RequestBody):
    """`texts` asks for the answer of text-embeddings-inference, `documents` for that of Cohere and Jina."""

    shapes: ClassVar[tuple[ClientShape, ...]] = (
        *(TEI_RERANK, COHERE_RERANK, JINA_RERANK, VOYAGE_RERANK, VLLM_RERANK, OWN_RERANK),
    )

    query: str = Field(description="The search query.", examples=["fast sorting"])
    texts: Texts | None = Field(None, description="text-embeddings-inference: the texts to score.")
    documents: Documents | None = Field(
        None, description="Cohere, Jina: texts, or objects with `text` and perhaps `title`."
    )
    model: str | None = Field(None, description="Any name; the live release answers.")
    top_n: int | None = Field(
        None, ge=0, description="Cohere, Jina: number of results, the best first; null or 0 for all. Without effect "
        "beside `texts`, whose answer holds all."
    )  # fmt: skip
    top_k: int | None = Field(None, ge=0, description="Voyage: the same as `top_n`.")
    return_documents: bool | None = Field(
        None, description="Cohere, Jina: put each document into its result. Without effect beside `texts`."
    )
    rank_fields: RankFields | None = Field(
        None, description="Cohere: the keys of an object to read, in this order. Without effect on texts."
    )
    max_tokens_per_doc: int | None = Field(
        None,
        description="Cohere, vLLM: the most tokens of a document that are read in passages; 0 for no limit, else no "
        "fewer than the ranker reads of a pair, 422 rather than pretend to cut more.",
    )
    max_chunks_per_doc: int | None = Field(
        None,
        ge=1,
        le=MAX_PASSAGES,
        description="Cohere: the most passages that a document is read in which does not fit beside the query; 1 cuts "
        "it at its end. The default is the release's. The best passage gives the score, or the mean of the best few "
        "where the release says so.",
    )
    raw_scores: bool | None = Field(None, description="Scores as the model gives them, in place of their sigmoid.")
    return_text: bool | None = Field(
        None, description="text-embeddings-inference: put each text into its result; beside `documents` the same as "
        "`return_documents`."
    )  # fmt: skip
    truncate: bool | None = Field(None, description="false: 422 rather than cut what is longer than the model reads.")
    truncation: bool | None = Field(None, description="Jina, Voyage: the same as `truncate`.")
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")
    cascade: bool | None = Field(
        None,
        description="Rerank best first as far as the time goes and leave the rest in first-stage order, each result "
        "marked with `reranked`; never 429, and 504 only when the time is over before the ranker can begin. The first "
        "stage is each document's `score`, else the encoder.",
    )

    first_stage_scores: FirstStageScores | None = Field(
        None,
        description="BM25 scores of the documents or texts, in their order, in place of a `score` in each document. "
        "The answer is then in the fused order of `/search`: the release weighs BM25, the encoder's cosine and the "
        "ranker, and each result has `ranker_score` beside. In a cascade they only say which documents come first.",
    )
    fused: bool | None = Field(
        None,
        description="true: the fused order; without first-stage scores BM25 is taken by the words of the release's own "
        "documents. false: the order of the ranker alone, also where documents carry a `score`. Without it the order "
        "is fused where there are first-stage scores, or where the release's ranker alone was below BM25.",
    )

    @property
    def limit(self) -> int | None:
        """Number of results; None for all.

        Raises:
            InvalidRequestError: `top_n` and `top_k` contradict each other.
        """
        if self.top_n and self.top_k and self.top_n != self.top_k:
            raise InvalidRequestError(f"top_n is {self.top_n} and top_k is {self.top_k}; send one of them")
        return self.top_n or self.top_k or None

    @property
    def limits(self) -> DocumentLimits:
        """The part of each document that is read, as far as the request says."""
        return DocumentLimits(max_passages=self.max_chunks_per_doc, max_tokens=self.max_tokens_per_doc or None)

    @property
    def cut(self) -> bool:
        """Whether longer texts are cut; otherwise they are refused."""
        return self.truncate is not False and self.truncation is not False


def document_text(document: str | dict[str, Any], fields: Sequence[str] | None, name: str) -> str:
    """A document as the ranker reads it: the named fields, else title and text, else all its texts, in order.

    Args:
        name: path of the document in the request, for messages.

    Raises:
        InvalidRequestError: the document has no text where it is asked for, or something else in its place.
    """
    if isinstance(document, str):
        return document
    if fields:
        values = [
            _field_text(document[field], f"{name}.{field}") for field in fields if document.get(field) is not None
        ]
        if not values:
            raise InvalidRequestError(f"{name} has none of the fields in rank_fields; it has {_names(document)}")
        return "\n".join(values)
    for field in ("text", "title"):
        if not isinstance(document.get(field), str | None):
            raise InvalidRequestError(f"{name}.{field} is {shown(document[field])}; send a text")
    if document.get("text") is not None:
        return text.document_text(document.get("title") or "", document["text"])
    values = [value for value in document.values() if isinstance(value, str)]
    if not values:
        raise InvalidRequestError(f"{name} has no text; it has {_names(document)}: send `text`, or name rank_fields")
    return "\n".join(values)


def _field_text(value: Any, name: str) -> str:
    """A text, or a number or truth value as JSON writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise InvalidRequestError(f"{name} is {shown(value)}; a field in rank_fields is a text or a number")


def _names(document: dict[str, Any]) -> str:
    return ", ".join(name[:40] for name in list(document)[:10]) or "no fields"


def first_stage(body: RerankRequest) -> list[float] | None:
    """The first-stage scores of a request, by `first_stage_scores` or by each document's `score`; None without any.

    Raises:
        InvalidRequestError: both forms, scores for some documents only, or one that is not a finite number.
    """
    documents = body.documents if body.texts is None and body.documents is not None else []
    carried = [document.get("score") if isinstance(document, dict) else None for document in documents]
    carry = any(score is not None for score in carried)
    if body.first_stage_scores is not None:
        count = len(body.texts if body.texts is not None else documents)
        if len(body.first_stage_scores) != count:
            raise InvalidRequestError(
                f"{len(body.first_stage_scores)} first_stage_scores for {counted(count, 'document')}; send one for each"
            )
        if carry:
            raise InvalidRequestError("first_stage_scores and documents[].score are both there; send one of them")
        return body.first_stage_scores
    if not carry:
        return None
    for index, score in enumerate(carried):
        try:
            _finite(score)
        except ValueError:
            raise InvalidRequestError(
                f"documents[{index}].score is {shown(score)}; a first-stage score is a finite number in every "
                'document, or in none: send "fused": false if `score` means something else'
            ) from None
    return [float(score) for score in carried if score is not None]


def check_bm25(scores: Sequence[float]) -> None:
    """Raises InvalidRequestError for a score below 0: the weights were fitted on BM25, which is never negative."""
    for index, score in enumerate(scores):
        if score < 0:
            raise InvalidRequestError(
                f"first-stage score {index} is {score:g}; the fusion was fitted on BM25, which is never below 0: send "
                'BM25 scores, or "fused": false for the order of the ranker alone'
            )
