"""The parts of a release's report that the page shows: queries to try, and what a threshold on the ranker meant.

They decorate the page, so a report without them, or none, is no reason not to serve.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = 6
"""Most queries to try on the page."""
MAX_EXAMPLE = 45
"""Most characters of a query to try."""


@dataclass(frozen=True, slots=True)
class ReportExcerpt:
    """The parts of a report that a page shows."""

    examples: list[str]
    """Queries to try."""
    thresholds: list[dict[str, Any]]
    """See `pipeline.evaluation.thresholds.measure`; empty in old reports, or where no ranker was judged."""

    @classmethod
    def read(cls, file: Path, metrics: Mapping[str, Any]) -> "ReportExcerpt":
        """The excerpt of a report.json.

        Args:
            metrics: the release's; its `examples` take the place of the report's.
        """
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            report = {}
        return cls(_examples(report, metrics.get("examples")), _thresholds(report))


def _examples(report: Any, own: Any) -> list[str]:
    """A few queries to try: the release's own, those that the report chose, or those that it shows."""
    try:
        shown = report["examples"]
        shown_queries = [str(example["query"]) for example in [*shown["wins"], *shown["losses"]]]
        queries = own or shown.get("to_try") or shown_queries
    except (TypeError, KeyError, AttributeError):
        queries = own or []
    if not isinstance(queries, list):
        return []
    return list(dict.fromkeys(str(query) for query in queries if len(str(query)) <= MAX_EXAMPLE))[:EXAMPLES]


def _thresholds(report: Any) -> list[dict[str, Any]]:
    """The rows of thresholds that have all their fields."""
    rows = report.get("thresholds") if isinstance(report, dict) else None
    names = {"least", "ranked", "judged", "relevant", "of_relevant"}
    return [row for row in rows if isinstance(row, dict) and names <= row.keys()] if isinstance(rows, list) else []
