"""The errors of the service as one tree, each with the HTTP status that the client gets.

    ServingError                    500   the service failed; the log says how
    ├── RequestError                400   a request that cannot be read, such as malformed JSON
    │   ├── AuthenticationError     401   no API key, or a wrong one
    │   ├── NotFoundError           404   no such path or model
    │   │   └── NotServedError      404   the loaded release lacks the model or the documents that the path needs
    │   ├── MethodError             405   a known path called with another method
    │   ├── StateError              409   impossible in the present state, such as a rollback without an earlier release
    │   ├── SlowRequestError        408   the body did not arrive in time
    │   ├── BodyTooLargeError       413   more bytes, values, documents or texts than the limits
    │   ├── ContentTypeError        415   a body that is not announced as JSON
    │   ├── HostError               421   called by a host name that is not the service's
    │   ├── InvalidRequestError     422   well-formed, but a value is missing, of a wrong type or beyond a limit
    │   ├── BusyError               429   too much is waiting for the request's deadline
    │   └── ClientGoneError         499   the client closed the connection; only the log shows this answer
    ├── InferenceError              500   the model failed on one text; others of the batch are unharmed
    ├── NotReadyError               503   no release is loaded, or its model does not answer
    └── DeadlineError               504   the deadline of the request passed

One JSON body serves all clients: text-embeddings-inference reads `error`, Cohere `message`, Jina `detail`,
OpenAI `error.message` and `error.type`.
"""

from typing import Any

from pipeline.errors import RelevanceError


class ServingError(RelevanceError):
    """Base of all errors of the service. The client sees `str(error)`, so it never holds a traceback."""

    status = 500
    type = "internal_error"


class RequestError(ServingError):
    """The request cannot be read."""

    status = 400
    type = "invalid_request_error"


class AuthenticationError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"


class NotFoundError(RequestError):
    """The path or model does not exist."""

    status = 404
    type = "not_found_error"


class NotServedError(NotFoundError):
    """The loaded release lacks the model or the documents that the path needs; another try gets the same answer."""

    type = "not_served_error"


class MethodError(RequestError):
    """A known path was called with another method."""

    status = 405


class SlowRequestError(RequestError):
    """The body did not arrive in time."""

    status = 408


class StateError(RequestError):
    """The request is impossible in the present state of the service."""

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
    """Too much work is waiting to meet the request's deadline; nothing was computed for it."""

    status = 429
    type = "overloaded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Whole seconds, at least 1, after which another try is worthwhile."""


class ClientGoneError(RequestError):
    """The client closed the connection before the answer was ready."""

    status = 499


class InferenceError(ServingError):
    """The model raised, or gave no finite number, for one text."""

    type = "inference_error"


class NotReadyError(ServingError):
    """No release is loaded, or its model does not answer."""

    status = 503
    type = "not_ready_error"


class DeadlineError(ServingError):
    """The request's deadline passed; scores computed until then stay in the cache."""

    status = 504
    type = "timeout_error"


def body(error: ServingError, *, nested: bool = False) -> dict[str, Any]:
    """The JSON body of an error's answer.

    Args:
        nested: make `error` an object, as OpenAI's clients expect on their own routes.
    """
    message = str(error)
    inner = {"message": message, "type": error.type, "param": None, "code": error.status}
    return {"error": inner if nested else message, "message": message, "detail": message, "type": error.type}
