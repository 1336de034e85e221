"""POST /thumbs: a user's vote, up or down, on a result of the search page, kept as a judgment of source `page`.

The path is there only where `Settings.thumbs` names a folder. A web page of another host cannot post here: it may not
send JSON without asking first, which this service never allows (`serving.api.body`).
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipeline import text
from pipeline.thumbs import Thumb, ThumbValue
from serving.api.direct_route import DirectRoute
from serving.api.document import MAX_ID_CHARS
from serving.api.json_io import request_schema
from serving.api.request import RequestContext
from serving.api.schemas import ERROR_ANSWERS, ClientShape, RequestBody
from serving.api.search_request import Release
from serving.errors import InvalidRequestError, NotFoundError

MAX_QUERY_CHARS = 2000
"""Characters of a query, as many as the page's own field takes."""

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)

OWN_THUMBS = ClientShape(
    client="search-relevance", honoured=frozenset({"query", "doc_id", "thumb", "voter", "release"})
)


class ThumbRequest(RequestBody):
    """A thumb on one result."""

    known_only: ClassVar[bool] = True
    shapes: ClassVar[tuple[ClientShape, ...]] = (OWN_THUMBS,)

    query: str = Field(max_length=MAX_QUERY_CHARS, description="The query.", examples=["sort a list"])
    doc_id: str = Field(max_length=MAX_ID_CHARS, description="The doc_id of a result.")
    thumb: ThumbValue = Field(description="up: it fits; down: it does not; none: takes back what was said before.")
    voter: str = Field(
        pattern="^[A-Za-z0-9_-]{8,64}$",
        description="A random mark of the browser, so that its last thumb on a result counts alone.",
    )
    release: Release | None = None


class ThumbAnswer(BaseModel):
    """The word that a thumb is on the disk."""

    kept: bool


@router.post(
    "/thumbs", tags=["search"], responses={200: {"model": ThumbAnswer}}, openapi_extra=request_schema(ThumbRequest)
)
async def thumbs(request: Request) -> Response:
    """Keeps a thumb on a result of a release, for the next report and retraining."""
    context = RequestContext(request)
    body = await context.read(ThumbRequest)
    context.choose(body.release)
    searcher, thumb_file = context.searcher, context.service.thumbs
    assert thumb_file is not None

    def work() -> Any:
        query = " ".join(text.clean(body.query).split())
        if not query:
            raise InvalidRequestError("query is empty; send what was searched for")
        if searcher.documents.row_of(body.doc_id) is None:
            raise NotFoundError(f"no document has the id {body.doc_id[:100]!r} in release {searcher.release[:12]}")
        thumb_file.append(
            Thumb(
                query=query,
                doc_id=body.doc_id,
                thumb=body.thumb,
                voter=body.voter,
                release=searcher.release,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )
        return {"kept": True}

    return await context.answer(work)
