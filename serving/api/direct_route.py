"""Routes whose endpoint reads the request itself, so that FastAPI has nothing to prepare for it."""

import inspect
from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import request_response


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the request alone, without FastAPI's preparation.

    An endpoint that asks FastAPI for anything else, such as query parameters, is called by FastAPI as usual.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        parameters = list(inspect.signature(endpoint).parameters)
        self.is_direct = parameters == [self.dependant.request_param_name] and not self.dependant.dependencies
        if self.is_direct:
            self.app = request_response(endpoint)
