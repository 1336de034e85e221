"""Lexical and semantic indexes over documents."""

import logging

import pipeline  # noqa: F401  It switches telemetry off, before any library is imported.

# Faiss tells at every start, for each processor, which of its libraries it did not find.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)
