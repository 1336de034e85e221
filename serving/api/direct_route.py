"""Routes whose endpoint reads the request itself, so that FastAPI has nothing to prepare for it."""

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import request_response


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the request alone; FastAPI's preparation took 5 % of a small one.

    An endpoint that asks FastAPI for anything else, such as query parameters, is called by FastAPI as usual.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        wanted = self.dependant
        parameters = (wanted.path_params, wanted.query_params, wanted.header_params, wanted.cookie_params)
        self.is_direct = bool(wanted.request_param_name) and not (
            any(parameters) or wanted.dependencies or self.body_field
        )
        if self.is_direct:
            self.app = request_response(endpoint)
