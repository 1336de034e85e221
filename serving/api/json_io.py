"""Bytes from a client to checked values, and values to JSON."""

import codecs
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from serving import errors
from serving.api import lone_surrogates
from serving.api.json_limits import check_structure, is_deep, too_deep
from serving.api.paths import Endpoint, ErrorShape
from serving.api.schemas import RequestBody
from serving.errors import BusyError, InvalidRequestError, RequestError, ServingError
from serving.settings import Settings

M = TypeVar("M", bound=RequestBody)

SHOWN_ERRORS, SHOWN_CHARS = 5, 200
"""Maximum number of wrong fields that a message names, and of characters that it shows of each."""


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


def encode(content: Any) -> bytes:
    """The JSON of a value; numpy arrays become lists."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def load(body: bytes | bytearray) -> Any:
    """The JSON value in a body. Lone surrogates, which JSON can write but no text can hold, become U+FFFD.

    Raises:
        RequestError: the body is not JSON, or is nested too deep.
        BodyTooLargeError: it holds more values than the limits of `json_limits`.
    """
    if body.startswith(codecs.BOM_UTF8):  # As editors and shells of Windows put it before a text.
        body = body[len(codecs.BOM_UTF8) :]
    if not body or body.isspace():
        raise RequestError("the body is empty; send a JSON object")
    check_structure(body)
    value = _loads(body)
    if is_deep(body, value):
        raise too_deep()
    return value


def validate(value: Any, model: type[M], settings: Settings | None = None) -> M:
    """The request in a JSON value. Lists are measured before their items are looked at, and the first wrong item ends
    the validation of its list, so the cost is bounded.

    Args:
        settings: limit the lengths of lists; None for no limit.

    Raises:
        BodyTooLargeError: the value holds more documents or texts than the settings allow.
        InvalidRequestError: it is not what `model` describes; names the fields.
    """
    if isinstance(value, dict):
        model.refuse(value)
    try:
        return model.model_validate(value, context=settings)
    except ValidationError as error:
        raise InvalidRequestError(_message(error)) from None


def _loads(body: bytes | bytearray) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"\\u" not in body:
            raise _not_json(body, error) from None
    try:
        # orjson refuses a lone surrogate in an escape.
        return orjson.loads(lone_surrogates.replaced(body))
    except orjson.JSONDecodeError as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes | bytearray, error: orjson.JSONDecodeError) -> RequestError:
    """The error for a body that orjson refuses; whose words for one that is not UTF-8 speak of surrogates."""
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        return RequestError(f"the body is not UTF-8 at byte {fault.start}; send the JSON as UTF-8")
    return RequestError(f"the body is not valid JSON: {error}")


def _message(error: ValidationError) -> str:
    """The first wrong fields, each with its path and what is wrong with it."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    shown = []
    for detail in details[:SHOWN_ERRORS]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        message = detail["msg"].removeprefix("Value error, ")
        shown.append(f"{path[:SHOWN_CHARS] or 'the body'}: {message[:SHOWN_CHARS]}")
    more = len(details) - SHOWN_ERRORS
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a request body. FastAPI writes none, as it does not read the body: `load` does."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def refusal(error: ServingError, endpoint: Endpoint) -> Json:
    """The answer for an error, in the shape that the clients of this endpoint read."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    if isinstance(error, BusyError):
        headers = {"retry-after": str(error.retry_after)}
    nested = endpoint.errors is ErrorShape.OPENAI
    return Json(errors.body(error, nested=nested), status_code=error.status, headers=headers)
