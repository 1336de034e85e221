"""Paths of the service, by who may call them and how they are counted."""

OPEN_PATHS = {"/", "/livez", "/readyz", "/health", "/ping", "/metrics", "/docs", "/openapi.json", "/favicon.ico"}
"""Need no API key: probes cannot send one, and the pages hold no data."""


SCORING_PATHS = {"/rerank", "/v1/rerank", "/v2/rerank", "/search", "/v1/embeddings", "/embed"}
"""Counted as text-embeddings-inference counts its own, also when they fail before their items are known."""


TRIAL_PATHS = {"/rerank", "/v1/rerank", "/v2/rerank", "/search"}
"""A canary gets its share of these. Vectors stay the live encoder's, because they must fit those that clients hold."""


ADMIN_PREFIX = "/admin/"


OPENAI_PATHS = ("/v1/embeddings", "/v1/models")
