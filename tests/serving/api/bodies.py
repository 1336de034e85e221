"""A body for each path that computes scores or vectors; `test_paths.py` holds it equal to the table of paths."""

from typing import Any

BODIES: dict[str, dict[str, Any]] = {
    "/": {"inputs": "a sorted list"},
    "/rerank": {"query": "sort", "texts": ["a sorted list", "open a file"]},
    "/v1/rerank": {"query": "sort", "documents": ["a sorted list", "open a file"]},
    "/v2/rerank": {"query": "sort", "documents": ["a sorted list"], "cascade": True},
    "/embed": {"inputs": "a sorted list"},
    "/v1/embed": {"texts": ["a sorted list"], "input_type": "search_document"},
    "/v2/embed": {"texts": ["a sorted list"], "input_type": "search_query", "embedding_types": ["float", "base64"]},
    "/v1/embeddings": {"input": "a sorted list", "model": "encoder"},
    "/search": {"query": "a sorted list"},
    "/candidates": {"query": "a sorted list", "depth": 5},
}
