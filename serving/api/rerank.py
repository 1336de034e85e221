"""POST /rerank, /v1/rerank and /v2/rerank, in the shapes of text-embeddings-inference, Cohere and Jina."""

import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MaxLen
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo
from starlette.responses import Response

from pipeline import text
from pipeline.passages import MAX_PASSAGES
from serving.api import bulk, inputs
from serving.api.json_io import request_schema
from serving.api.request import Handler, RequestContext
from serving.api.schemas import ClientShape, RefusedField, RequestBody, check_length, shown
from serving.errors import InvalidRequestError
from serving.rollout import comparison
from serving.scoring import cascade
from serving.scoring.reranker import DocumentLimits, relevance

router = APIRouter()

MAX_RANK_FIELDS = 100
MAX_SCORE = 1e300
"""Bound of a first-stage score's size."""

OTHER_MODEL = "any name is taken; the live release answers"


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

_CUT_AT_END = RefusedField("texts are cut at their end, leave it out", accepted=("Right", "right"))

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
        "priority": "all requests of a service are equal; order is by deadline",
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
        "priority": "all requests of a service are equal; order is by deadline",
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

    query: str = Field(description="What is searched for.", examples=["fast sorting"])
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
        description="false: the order of the ranker alone, also where documents carry a `score`. true: 422 where there "
        "are no first-stage scores.",
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


class TextScore(BaseModel):
    """One text's score, as text-embeddings-inference gives it."""

    index: int = Field(description="Place in `texts`, from 0.")
    score: float = Field(
        description="In [0, 1], or the raw score when asked for; with first-stage scores the sigmoid of the fused "
        "score."
    )
    text: str | None = None
    ranker_score: float | None = Field(None, description="With first-stage scores: what `score` is without them.")
    reranked: bool | None = Field(None, description="In a cascade: false where the ranker did not reach it.")


class Ranked(BaseModel):
    """One document's relevance, as Cohere and Jina give it."""

    index: int = Field(description="Place in `documents`, from 0.")
    relevance_score: float = Field(
        description="In [0, 1], or the raw score when asked for; with first-stage scores the sigmoid of the fused "
        "score."
    )
    document: dict[str, Any] | None = None
    ranker_score: float | None = Field(
        None, description="With first-stage scores: what `relevance_score` is without them."
    )
    reranked: bool | None = Field(None, description="In a cascade: false where the ranker did not reach it.")


class RerankAnswer(BaseModel):
    """Documents by falling relevance."""

    id: str
    model: str
    results: list[Ranked]
    meta: dict[str, Any]
    usage: dict[str, int]


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


def first_stage(body: "RerankRequest") -> list[float] | None:
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
                f"{len(body.first_stage_scores)} first_stage_scores for {count} documents; send one for each"
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


def _check_bm25(scores: Sequence[float]) -> None:
    """Raises InvalidRequestError for a score below 0: the weights were fitted on BM25, which is never negative."""
    for index, score in enumerate(scores):
        if score < 0:
            raise InvalidRequestError(
                f"first-stage score {index} is {score:g}; the fusion was fitted on BM25, which is never below 0: send "
                'BM25 scores, or "fused": false for the order of the ranker alone'
            )


def _rerank_route(path: str) -> Callable[[Handler], Handler]:
    answer = list[TextScore] | RerankAnswer
    return router.post(
        path, tags=["rerank"], responses={200: {"model": answer}}, openapi_extra=request_schema(RerankRequest)
    )


@_rerank_route("/v2/rerank")
@_rerank_route("/v1/rerank")
@_rerank_route("/rerank")
async def rerank(request: Request) -> Response:
    """Scores documents against a query, best first.

    With `texts` the answer is a bare list, as text-embeddings-inference gives it; with `documents` it is that of
    Cohere and Jina. Both work on all three paths.
    """
    context = RequestContext(request)
    return await answer(context, await context.read(RerankRequest), request.url.path)


async def answer(context: RequestContext, body: RerankRequest, path: str) -> Response:
    """Scores the documents of a body that was read.

    Raises:
        InvalidRequestError: there is nothing to score, or a document has no text.
    """
    if body.texts is None and body.documents is None:
        raise InvalidRequestError("texts or documents is missing; send a list of texts")
    if not body.query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    documents: Sequence[str | dict[str, Any]] = body.texts if body.texts is not None else body.documents or []
    context.counts(len(documents))
    ranker = context.searcher.ranker
    if body.max_tokens_per_doc:
        inputs.check_limit(ranker, body.max_tokens_per_doc, "max_tokens_per_doc")
    first = None if body.fused is False and not body.cascade else first_stage(body)
    if body.fused and body.cascade:
        raise InvalidRequestError("fused is true in a cascade, which has the ranker's order; leave one of them out")
    if body.fused and first is None:
        raise InvalidRequestError("fused is true, but there are no first-stage scores; send first_stage_scores")
    call = _RerankCall(context, body, path, first)
    if body.cascade:
        return await context.answer(call.cascade, past_deadline=True)
    if first is None:
        return await context.answer(call.scores)
    _check_bm25(first)
    return await context.answer(call.fused)


class _RerankCall:
    """The work on one request, in its thread."""

    def __init__(self, context: RequestContext, body: RerankRequest, path: str, first: Sequence[float] | None) -> None:
        """
        Args:
            first: first-stage scores of the documents; None where there are none.
        """
        self._context, self._body, self._path, self._first = context, body, path, first
        self._limit = body.limit
        self._searcher = context.searcher
        self._options = context.options
        self._reranker = self._searcher.reranker_within(body.limits, context.service.settings.max_passages)

    def scores(self) -> Any:
        """The answer in which every document has a score."""
        context, body = self._context, self._body
        texts = self._texts()
        context.compare(comparison.Rerank(body.query, texts, limits=body.limits))
        context.advise(bulk.advice(self._searcher.ranker, texts, self._tokens_read, "documents"))
        fetched = self._reranker.scores(body.query, texts, self._options)
        tokens = self._tokens(texts)
        context.spent(fetched.hits, fetched.misses, by="ranker")
        scores = fetched.values
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return self._in_shape([self._result(index, scores[index]) for index in order], tokens)

    def fused(self) -> Any:
        """The answer in the order of `/search`, from first-stage scores, the encoder and the ranker."""
        context, body, searcher = self._context, self._body, self._searcher
        texts, first = self._texts(), self._first or []
        context.compare(comparison.Rerank(body.query, texts, first, body.limits))
        scores = searcher.fused(body.query, texts, first, self._options, self._reranker)
        tokens = self._tokens(texts)
        context.spent(scores.hits, scores.misses)
        order = sorted(range(len(texts)), key=lambda index: -scores.values[index])
        results = []
        for index in order:
            ranker = scores.ranker[index]
            value = ranker if body.raw_scores else relevance(ranker)
            results.append({**self._result(index, scores.values[index]), "ranker_score": value})
        return self._in_shape(results, tokens)

    def cascade(self) -> Any:
        """The answer that the request's time allows: scored documents first, each result marked."""
        context, body, searcher = self._context, self._body, self._searcher
        texts = self._texts()
        context.compare(comparison.Rerank(body.query, texts, limits=body.limits))
        embedder = searcher.embedder if "encoder" in searcher.models else None
        result = cascade.rerank(self._reranker, embedder, body.query, texts, self._first, self._options)
        tokens = self._tokens([texts[index] for index in result.order[: result.reached]])
        unreached = len(texts) - result.reached
        context.spent(result.hits, result.misses, by="ranker", of=result.hits + result.misses + unreached)
        context.reached(result.reached, len(texts))
        # What was not reached has the lowest score, so that no client's own sorting brings it before what was.
        lowest = min((score for score in result.scores if score is not None), default=None)
        marked = []
        for index in result.order:
            score = result.scores[index]
            marked.append({**self._result(index, lowest if score is None else score), "reranked": score is not None})
        return self._in_shape(marked, tokens)

    def _texts(self) -> list[str]:
        """The texts to score.

        Raises:
            InvalidRequestError: a document has no text, or one would be cut and must not be.
            DeadlineError: the time is over.
        """
        body = self._body
        if body.texts is not None:
            texts = body.texts
        else:
            texts = [
                document_text(document, body.rank_fields, f"documents[{index}]")
                for index, document in enumerate(body.documents or [])
            ]
        if not body.cut:
            ranker, passages = self._searcher.ranker, self._reranker.passages
            inputs.check_pairs(ranker, body.query, texts, self._options.deadline, passages)
        return texts

    def _tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the ranker read; 0 in a shape that does not tell them."""
        if self._body.texts is not None:
            return 0
        return self._tokens_read(texts)

    def _tokens_read(self, texts: Sequence[str]) -> int:
        passages = self._reranker.passages
        return self._searcher.ranker.pair_tokens(self._body.query, texts, passages, remember=self._options.remember)

    def _result(self, index: int, score: float | None) -> dict[str, Any]:
        """One document's result; without any score to go by, its value is 0."""
        body = self._body
        value = 0.0 if score is None else score if body.raw_scores else relevance(score)
        if body.texts is not None:
            given = {"text": body.texts[index]} if body.return_text else {}
            return {"index": index, "score": value, **given}
        result: dict[str, Any] = {"index": index, "relevance_score": value}
        if (body.return_documents or body.return_text) and body.documents is not None:
            document = body.documents[index]
            result["document"] = {"text": document} if isinstance(document, str) else document
        return result

    def _in_shape(self, results: list[dict[str, Any]], tokens: int) -> Any:
        """All results as a bare list, or the best of them as Cohere and Jina give them."""
        if self._body.texts is not None:
            return results
        return {
            "id": uuid.uuid4().hex,
            "model": "ranker",
            "results": results[: self._limit],
            "meta": {"api_version": {"version": "2" if self._path.startswith("/v2") else "1"}},
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
