"""GET /document: one document of a release whole, with the documents nearest to it."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS, check_parameters
from serving.errors import NotFoundError

MAX_NEIGHBOURS = 50
"""Most nearest documents of one answer."""
MAX_ID_CHARS = 10_000
"""Most characters of a document's id in a request."""

router = APIRouter(responses=ERROR_ANSWERS)


class NearDocument(BaseModel):
    """A document near to the one that was opened."""

    doc_id: str
    title: str
    snippet: str
    score: float = Field(description="Cosine of both vectors.")


class DocumentAnswer(BaseModel):
    """One document whole."""

    doc_id: str
    title: str
    text: str
    cut: bool = Field(description="Whether the text is longer than the million characters that are given.")
    fields: dict[str, Any]
    neighbours: list[NearDocument]
    release: str


@router.get("/document", tags=["search"], responses={200: {"model": DocumentAnswer}})
async def document(
    request: Request,
    id: Annotated[str, Query(max_length=MAX_ID_CHARS, description="The doc_id of a result.")],
    neighbours: Annotated[int, Query(ge=0, le=MAX_NEIGHBOURS, description="Nearest documents to list.")] = 5,
    release: Annotated[
        str | None, Query(max_length=64, description="A loaded release by its first digits; else the live one.")
    ] = None,
) -> Response:
    """One document of a release: its text, its fields, and the documents nearest to it by their vectors."""
    check_parameters(request.query_params.multi_items(), ("id", "neighbours", "release"))
    context = RequestContext(request)
    context.choose(release)
    searcher = context.searcher

    def work() -> Any:
        opened = searcher.document(id, neighbours=neighbours, options=context.options)
        if opened is None:
            raise NotFoundError(f"no document has the id {id[:100]!r} in release {searcher.release[:12]}")
        return asdict(opened)

    return await context.answer(work)
