"""POST /rerank, /v1/rerank and /v2/rerank, in the shapes of text-embeddings-inference, Cohere and Jina."""

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from pipeline import text
from serving.api import (
    inputs,
    json_io,
)
from serving.api.json_io import request_schema
from serving.api.request import Handler, RequestContext
from serving.api.schemas import RequestBody
from serving.errors import InvalidRequestError
from serving.rollout import comparison
from serving.scoring import cascade
from serving.scoring.cache import Fetched
from serving.scoring.reranker import relevance

router = APIRouter()


def _named(value: Any) -> Any:
    """One message in place of one for each type of a union."""
    if not isinstance(value, str | dict):
        raise ValueError("a document is a text, or an object with texts")
    return value


class RerankRequest(RequestBody):
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
    asked = json_io.parse(await request.body(), RerankRequest)
    if asked.texts is not None:
        texts: Sequence[str] = asked.texts
    elif asked.documents is not None:
        texts = [document_text(document, asked.rank_fields) for document in asked.documents]
    else:
        raise InvalidRequestError("texts or documents is missing; send a list of texts")
    if not asked.query.strip():
        raise InvalidRequestError("query is empty; send what is searched for")
    call = RequestContext(request)
    call.takes(len(texts), "documents")
    searcher = call.searcher
    if asked.max_tokens_per_doc is not None:
        inputs.check_limit(searcher.ranker, asked.max_tokens_per_doc, "max_tokens_per_doc")

    if asked.cascade:
        return await _cascade(request, call, asked, texts)

    def score() -> tuple[Fetched[float], int]:
        if asked.truncate is False:
            inputs.check_pairs(searcher.ranker, asked.query, texts)
        found = searcher.reranker.scores(asked.query, texts, call.terms)
        if asked.texts is not None:
            return found, 0
        return found, searcher.ranker.pair_tokens(asked.query, texts, remember=call.terms.remember)

    scored, read = await call.run(score)
    call.spent(scored.hits, scored.misses, by="ranker")
    scores = scored.values
    question = comparison.Rerank(asked.query, texts)
    call.said(question, lambda: question.outcome(scores))
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if asked.texts is not None:
        return call.answer([_text_score(place, scores[place], asked) for place in order])
    results = [_ranked(place, scores[place], asked) for place in order[: asked.top_n or None]]
    return call.answer(_cohere(request, results, read))


async def _cascade(request: Request, call: RequestContext, asked: RerankRequest, texts: Sequence[str]) -> Response:
    """The answer that the request's time allows: scored documents first, each result marked."""
    searcher = call.searcher
    first = first_stage(asked.documents) if asked.documents is not None else None

    def score() -> tuple[cascade.Cascade, int]:
        if asked.truncate is False:
            inputs.check_pairs(searcher.ranker, asked.query, texts)
        found = cascade.rerank(searcher.reranker, searcher.embedder, asked.query, texts, first, call.terms)
        if asked.texts is not None:
            return found, 0
        reached = [texts[place] for place in found.order[: found.reached]]
        return found, searcher.ranker.pair_tokens(asked.query, reached, remember=call.terms.remember)

    found, read = await call.run(score, in_time=True)
    call.spent(found.hits, found.misses, by="ranker", of=len(texts))
    call.reached(found.reached, len(texts))
    # What was not reached has the lowest score, so that no client's own sorting brings it before what was.
    nothing = 0.0 if asked.raw_scores else -math.inf
    lowest = min((score for score in found.scores if score is not None), default=nothing)

    def marked(place: int) -> dict[str, Any]:
        score = found.scores[place]
        made = _text_score if asked.texts is not None else _ranked
        result = made(place, score if score is not None else lowest, asked)
        return {**result, "reranked": score is not None}

    if asked.texts is not None:
        return call.answer([marked(place) for place in found.order])
    results = [marked(place) for place in found.order[: asked.top_n or None]]
    return call.answer(_cohere(request, results, read))


def _cohere(request: Request, results: list[dict[str, Any]], read: int) -> dict[str, Any]:
    meta = {"api_version": {"version": "2" if request.url.path.startswith("/v2") else "1"}}
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"id": uuid.uuid4().hex, "model": "ranker", "results": results, "meta": meta, "usage": usage}


def _text_score(place: int, score: float, asked: RerankRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"index": place, "score": score if asked.raw_scores else relevance(score)}
    if asked.return_text and asked.texts is not None:
        found["text"] = asked.texts[place]
    return found


def _ranked(place: int, score: float, asked: RerankRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"index": place, "relevance_score": relevance(score)}
    if asked.return_documents and asked.documents is not None:
        document = asked.documents[place]
        found["document"] = {"text": document} if isinstance(document, str) else document
    return found
