"""The one table of the service's paths: who may call each, how it is counted, and how its errors look.

Middleware, error answers, metrics and rollouts read this table; a test holds it equal to the routes of the app.
"""

import difflib
import re
from dataclasses import dataclass
from enum import Enum


class Access(Enum):
    """The callers that an endpoint admits."""

    OPEN = "open"
    """Anybody: probes cannot send a key, and the pages hold no data."""
    API_KEY = "API key"
    """Whoever has one of the API keys; anybody when the settings name no key."""
    ADMIN = "admin"
    """Whoever has an administrator's key and asks from where the settings allow it."""


class ErrorShape(Enum):
    """The JSON of an error; see `serving.errors.body`."""

    PLAIN = "plain"
    """`error` is a text."""
    OPENAI = "OpenAI"
    """`error` is an object."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table."""

    path: str
    """Template of the path, as the router writes it."""
    methods: tuple[str, ...]
    access: Access = Access.API_KEY
    scoring: bool = False
    """Whether requests count as requests for scores or vectors, as text-embeddings-inference counts its own."""
    rollouts: bool = False
    """Whether a canary answers its share and a shadow gets copies. Vectors always come from the live encoder, because
    they must fit those that clients hold."""
    errors: ErrorShape = ErrorShape.PLAIN


_PROBE = ("GET", "HEAD")

ENDPOINTS = (
    Endpoint("/", _PROBE, Access.OPEN),
    Endpoint("/docs", _PROBE, Access.OPEN),
    Endpoint("/openapi.json", ("GET",), Access.OPEN),
    Endpoint("/favicon.ico", ("GET",), Access.OPEN),
    Endpoint("/livez", _PROBE, Access.OPEN),
    Endpoint("/readyz", _PROBE, Access.OPEN),
    Endpoint("/health", _PROBE, Access.OPEN),
    Endpoint("/ping", _PROBE, Access.OPEN),
    Endpoint("/metrics", ("GET",), Access.OPEN),
    Endpoint("/rerank", ("POST",), scoring=True, rollouts=True),
    Endpoint("/v1/rerank", ("POST",), scoring=True, rollouts=True),
    Endpoint("/v2/rerank", ("POST",), scoring=True, rollouts=True),
    Endpoint("/search", ("POST", "GET"), scoring=True, rollouts=True),
    Endpoint("/candidates", ("POST",), scoring=True),
    Endpoint("/document", ("GET",)),
    Endpoint("/thumbs", ("POST",)),
    Endpoint("/", ("POST",), scoring=True),
    Endpoint("/embed", ("POST",), scoring=True),
    Endpoint("/v1/embed", ("POST",), scoring=True),
    Endpoint("/v2/embed", ("POST",), scoring=True),
    Endpoint("/v1/embeddings", ("POST",), scoring=True, errors=ErrorShape.OPENAI),
    Endpoint("/v1/models", ("GET",), errors=ErrorShape.OPENAI),
    Endpoint("/v1/models/{model_id:path}", ("GET",), errors=ErrorShape.OPENAI),
    Endpoint("/info", ("GET",)),
    Endpoint("/admin/releases", ("GET",), Access.ADMIN),
    Endpoint("/admin/canary", ("PUT",), Access.ADMIN),
    Endpoint("/admin/canary", ("DELETE",), Access.ADMIN),
    Endpoint("/admin/shadow", ("PUT",), Access.ADMIN),
    Endpoint("/admin/shadow", ("DELETE",), Access.ADMIN),
    Endpoint("/admin/canary/promote", ("POST",), Access.ADMIN),
    Endpoint("/admin/rollback", ("POST",), Access.ADMIN),
)

UNKNOWN = Endpoint("other", (), errors=ErrorShape.OPENAI)
"""Stands for every path that is not in the table; its label keeps strangers from adding series to the metrics.

Its errors are OpenAI's, whose client shows no other, and asks here where `/v1` is missing from its address."""

UNKNOWN_ADMIN = Endpoint("other", (), Access.ADMIN)
"""Stands for paths below `/admin/` that are not in the table: a stranger must not learn which ones exist."""

_EXACT: dict[str, list[Endpoint]] = {}
for _row in ENDPOINTS:
    _EXACT.setdefault(_row.path, []).append(_row)
_TEMPLATES = [
    (re.compile(re.sub(r"\\\{\w+:path\\\}", ".*", re.escape(row.path))), row) for row in ENDPOINTS if "{" in row.path
]


def _rows(path: str) -> list[Endpoint]:
    rows = _EXACT.get(path)
    return [row for pattern, row in _TEMPLATES if pattern.fullmatch(path)] if rows is None else rows


def methods(path: str) -> list[str]:
    """All methods that a path has."""
    return sorted({method for row in _rows(path) for method in row.methods})


def find(path: str, method: str) -> Endpoint:
    """The row of a request; with a method that the path does not have, the path's first row."""
    rows = _rows(path)
    if not rows:
        return UNKNOWN_ADMIN if path.startswith("/admin/") else UNKNOWN
    return next((row for row in rows if method in row.methods), rows[0])


def no_such_path(path: str) -> str:
    """The message to a client whose path is not there, with the one that it most likely means.

    Administrators' paths are not named, so that the answer to one is that to any other path.
    """
    shown = path[:200]
    open_paths = {row.path for row in ENDPOINTS if row.access is not Access.ADMIN and "{" not in row.path} - {shown}
    near = difflib.get_close_matches(shown, sorted(open_paths), n=1, cutoff=0.7)
    return f"no such path: {shown}; {f'did you mean {near[0]}? ' if near else ''}GET /docs lists them"
