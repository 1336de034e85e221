"""The command line and the flows, which put the stages in order."""

import pipeline  # noqa: F401  It switches telemetry off, before any library is imported.
