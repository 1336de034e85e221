"""Bytes from a client to checked values, and values to JSON."""

import json
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from pipeline import text
from serving import errors
from serving.api.paths import OPENAI_PATHS
from serving.errors import BusyError, InvalidRequestError, RequestError, ServingError

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 200
"""Lists and objects within each other in a request: orjson reads 1024 but writes 254, and documents are given back."""

SHOWN_FAULTS = 5
"""A list of ten thousand wrong items has one message, not ten thousand."""


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def parse(body: bytes, model: type[M]) -> M:
    """The request in a body. Lone surrogates, which JSON can write but no text can hold, become U+FFFD.

    Raises:
        RequestError: not JSON, or nested too deep.
        InvalidRequestError: JSON, but not what `model` describes; names the fields.
    """
    given = _loads(body)
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deep(given):
        raise RequestError(f"the body is nested too deep; at most {MAX_DEPTH} lists and objects within each other")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError(_faults(error)) from error


def _loads(body: bytes) -> Any:
    if not body.strip():
        raise RequestError("the body is empty; send a JSON object")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"\\u" not in body:
            raise RequestError(f"the body is not valid JSON: {error}") from error
    try:
        # orjson refuses a lone surrogate in an escape; the standard library reads it.
        return orjson.loads(text.clean(json.dumps(json.loads(body), ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not valid JSON: {reason}") from error


def _is_deep(given: Any) -> bool:
    level = [given]
    for _ in range(MAX_DEPTH):
        below = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [inner for items in below for inner in items if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    words = []
    for fault in faults[:SHOWN_FAULTS]:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        words.append(f"{where or 'the body'}: {fault['msg'].removeprefix('Value error, ')}")
    more = len(faults) - SHOWN_FAULTS
    return "; ".join(words) + (f"; and {more} more" if more > 0 else "")


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI part of a body that `wire.parse` reads in FastAPI's place, as it must bear lone surrogates."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def refusal(error: ServingError, path: str) -> Json:
    """The answer for an error, as the clients of this path read it."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    if isinstance(error, BusyError):
        headers = {"retry-after": str(error.retry_after)}
    return Json(errors.body(error, nested=path.startswith(OPENAI_PATHS)), status_code=error.status, headers=headers)
