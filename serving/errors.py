"""The errors of the service, one tree; each carries the HTTP status that a client gets.

    ServingError                    500   the service failed; the log says how
    ├── RequestError                400   a request that cannot be read, such as malformed JSON
    │   ├── AuthenticationError     401   no API key, or a wrong one
    │   ├── NotFoundError           404   no such path or model
    │   ├── MethodError             405   a known path asked in another way
    │   ├── StateError              409   not possible as things stand, such as a rollback without an earlier release
    │   ├── SlowRequestError        408   the body did not arrive in time
    │   ├── BodyTooLargeError       413   more bytes, values, documents or texts than the limits
    │   ├── ContentTypeError        415   a body that is not announced as JSON
    │   ├── HostError               421   called by a host name that is not the service's
    │   ├── InvalidRequestError     422   well-formed, but a value is missing, of a wrong type or beyond a limit
    │   ├── BusyError               429   more is waiting than can be done in the time that the request has
    │   └── ClientGoneError         499   the caller hung up; nobody reads this answer, the log does
    ├── InferenceError              500   the model failed on one text; its neighbours are unharmed
    ├── NotReadyError               503   no release is loaded, or its model does not answer
    └── DeadlineError               504   the time that the request had is over

One body serves every kind of client: text-embeddings-inference reads `error`, Cohere `message`, Jina `detail`,
OpenAI `error.message` and `error.type`.
"""

from typing import Any

from pipeline.errors import RelevanceError


class ServingError(RelevanceError):
    """Root of what a request can end with; `str(error)` is shown to the client, so it never holds a traceback."""

    status = 500
    type = "internal_error"


class RequestError(ServingError):
    """The request cannot be read."""

    status = 400
    type = "invalid_request_error"


class AuthenticationError(RequestError):
    """No API key, or a wrong one."""

    status = 401
    type = "authentication_error"


class NotFoundError(RequestError):
    """No such path or model."""

    status = 404
    type = "not_found_error"


class MethodError(RequestError):
    """A known path asked with another method."""

    status = 405


class SlowRequestError(RequestError):
    """The body did not arrive in time."""

    status = 408


class StateError(RequestError):
    """Not possible as things stand."""

    status = 409


class BodyTooLargeError(RequestError):
    """The body has more bytes, values, documents or texts than the limits."""

    status = 413


class ContentTypeError(RequestError):
    """The body is not announced as JSON."""

    status = 415


class HostError(RequestError):
    """The Host header holds a name that is not the service's."""

    status = 421


class InvalidRequestError(RequestError):
    """A value is missing, of a wrong type, or beyond a limit."""

    status = 422


class BusyError(RequestError):
    """More work is waiting than can be done in the time that the request has; nothing was computed for it."""

    status = 429
    type = "overloaded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Whole seconds, at least 1, after which it is worth to ask again."""


class ClientGoneError(RequestError):
    """The caller closed the connection before the answer was made."""

    status = 499


class InferenceError(ServingError):
    """The model raised, or gave no finite number, for one text."""

    type = "inference_error"


class NotReadyError(ServingError):
    """No release is loaded, or its model does not answer."""

    status = 503
    type = "not_ready_error"


class DeadlineError(ServingError):
    """The request's time is over; what was scored until then is kept in the cache."""

    status = 504
    type = "timeout_error"


def body(error: ServingError, *, nested: bool = False) -> dict[str, Any]:
    """The answer's JSON.

    Args:
        nested: make `error` an object, as OpenAI's clients expect on their own routes.
    """
    message = str(error)
    inner = {"message": message, "type": error.type, "param": None, "code": error.status}
    return {"error": inner if nested else message, "message": message, "detail": message, "type": error.type}
