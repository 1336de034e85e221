"""Serves a release over HTTP: reranking, embedding and search."""

import pipeline  # noqa: F401  It switches telemetry off, before any library is imported.
