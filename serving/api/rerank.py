"""POST /rerank, /v1/rerank and /v2/rerank, in the shapes of text-embeddings-inference, Cohere and Jina."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipeline.features import by_score
from serving.api import bulk, inputs
from serving.api.direct_route import DirectRoute
from serving.api.json_io import request_schema
from serving.api.request import Handler, RequestContext
from serving.api.rerank_request import RerankRequest, check_bm25, document_text, first_stage
from serving.api.schemas import ERROR_ANSWERS
from serving.errors import InvalidRequestError
from serving.rollout import comparison
from serving.scoring import cascade
from serving.scoring.reranker import relevance

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)


class TextScore(BaseModel):
    """One text's score, as text-embeddings-inference gives it."""

    index: int = Field(description="Index in `texts`, from 0.")
    score: float = Field(
        description="A number in [0, 1], or the raw score where `raw_scores` is true; in the fused order the "
        "sigmoid of the fused score."
    )
    text: str | None = None
    ranker_score: float | None = Field(None, description="The ranker's own score, beside the fused one.")
    reranked: bool | None = Field(None, description="Whether the ranker scored it in time; only in a cascade.")


class Ranked(BaseModel):
    """One document's relevance, as Cohere and Jina give it."""

    index: int = Field(description="Index in `documents`, from 0.")
    relevance_score: float = Field(
        description="A number in [0, 1], or the raw score where `raw_scores` is true; in the fused order the "
        "sigmoid of the fused score."
    )
    document: dict[str, Any] | str | None = None
    ranker_score: float | None = Field(None, description="The ranker's own score, beside the fused one.")
    reranked: bool | None = Field(None, description="Whether the ranker scored it in time; only in a cascade.")


class RerankAnswer(BaseModel):
    """Documents by falling relevance."""

    id: str
    model: str
    results: list[Ranked]
    data: list[Ranked] | None = Field(
        None, description="Voyage: `results` once more, with each document as it was sent. Only where the request has "
        "`top_k`, also as null."
    )  # fmt: skip
    meta: dict[str, Any]
    usage: dict[str, int]


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
    return await answer(context, await context.read(RerankRequest), request.scope["path"])


async def answer(context: RequestContext, body: RerankRequest, path: str) -> Response:
    """Scores the documents of a body that was read.

    Raises:
        InvalidRequestError: there is nothing to score, or a document has no text.
    """
    if body.texts is None and body.documents is None:
        raise InvalidRequestError("texts or documents is missing; send a list of texts")
    if body.texts is not None and body.documents is not None:
        raise InvalidRequestError("texts and documents are both there; send one of them")
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
    call = _RerankCall(context, body, path, first)
    if body.cascade:
        return await context.answer(call.cascade, past_deadline=True)
    if first is not None:
        check_bm25(first)
    return await context.answer(call.scores)


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
        """The answer in which every document has a score: the ranker's, or in the order of `/search` the fused one."""
        context, body, searcher = self._context, self._body, self._searcher
        texts, first = self._texts(), self._first
        context.compare(comparison.Rerank(body.query, texts, first, body.limits, body.fused))
        context.advise(bulk.advice(searcher.ranker, texts, self._tokens_read, "documents"))
        scores = searcher.rerank(body.query, texts, first, body.fused, options=self._options, reranker=self._reranker)
        tokens = self._tokens(texts)
        context.spent(scores.hits, scores.misses, by="" if scores.fused else "ranker")
        results = []
        for index in by_score(scores.values):
            result = self._result(index, scores.values[index])
            if scores.fused:
                ranker = scores.ranker[index]
                result["ranker_score"] = ranker if body.raw_scores else relevance(ranker)
            results.append(result)
        return self._in_shape(results, tokens)

    def cascade(self) -> Any:
        """The answer that the request's time allows: scored documents first, each result marked."""
        context, body, searcher = self._context, self._body, self._searcher
        texts = self._texts()
        context.compare(comparison.Rerank(body.query, texts, limits=body.limits, fused=False))
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
        best = results[: self._limit]
        return {
            "id": uuid.uuid4().hex,
            "model": "ranker",
            "results": best,
            **({"object": "list", "data": self._as_sent(best)} if "top_k" in self._body.model_fields_set else {}),
            "meta": {"api_version": {"version": "2" if self._path.startswith("/v2") else "1"}},
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _as_sent(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results whose documents are as the request has them: Voyage gives texts, Cohere and Jina objects."""
        documents = self._body.documents or []
        return [
            {**result, "document": documents[result["index"]]} if "document" in result else result for result in results
        ]
