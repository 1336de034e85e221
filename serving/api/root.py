"""POST /: the address to which `huggingface_hub.InferenceClient(model=URL)` posts.

text-embeddings-inference answers there with whatever its one model does. This service has two models, so the body
decides: `inputs` asks for vectors as POST /embed does, `query` for scores as POST /rerank does.
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.api import embeddings, rerank
from serving.api.direct_route import DirectRoute
from serving.api.embeddings import EmbedRequest
from serving.api.request import RequestContext
from serving.api.rerank_request import RerankRequest
from serving.api.schemas import ERROR_ANSWERS
from serving.errors import InvalidRequestError

router = APIRouter(responses=ERROR_ANSWERS, route_class=DirectRoute)


@router.post("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Vectors or scores, as text-embeddings-inference gives them."""
    context = RequestContext(request)
    body = await context.read_one_of(_model)
    if isinstance(body, EmbedRequest):
        return await embeddings.answer(context, body)
    return await rerank.answer(context, body, request.scope["path"])


def _model(value: Any) -> type[EmbedRequest] | type[RerankRequest]:
    if isinstance(value, dict) and "inputs" in value:
        return EmbedRequest
    if isinstance(value, dict) and "query" in value:
        return RerankRequest
    raise InvalidRequestError("inputs or query is missing; send inputs for vectors, or query and texts for scores")
