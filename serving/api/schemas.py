"""What clients send and get, as text-embeddings-inference, Cohere, Jina and OpenAI shaped it.

Unknown fields and nulls are accepted, because real clients send both. Lengths of lists are checked in `app`, where
the limits are known.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class RequestBody(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ErrorAnswer(BaseModel):
    """What every failed request gets; on OpenAI's routes `error` is an object."""

    error: str | dict[str, Any]
    message: str
    detail: str
    type: str
