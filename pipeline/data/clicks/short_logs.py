"""Reads a click log by the least evidence that it allows, where nobody has said how much a judgment needs.

A query and document of a click log are judged from `min_examined` examined impressions on. In a short log few pairs
reach the default, so lower minima are tried in turn. A recipe states the one that its log was judged by.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path

from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.clicks.weak_judgments import TooFewImpressionsError
from pipeline.data.sources import Source
from pipeline.errors import SchemaError
from pipeline.secrets import hide_passwords

LOWER_EVIDENCE = (5.0, 3.0)
"""Minima of examined impressions that are tried in turn where the default leaves too few queries of a click log."""
LEAST_QUERIES = 20
"""Number of judged queries from which the train, the valid and the test split each surely get some."""

log = logging.getLogger(__name__)


def read(config: SourceConfig, root: Path) -> Source:
    """The source; a click log by the minimum of evidence that `fitted` chooses. Errors as of `fitted`."""
    return fitted(config, root)[1]


def fitted(config: SourceConfig, root: Path) -> tuple[SourceConfig, Source]:
    """The source and what was read: of a click log by the largest minimum that leaves enough judged queries.

    Raises:
        SchemaError: no pair is judged by the smallest minimum either; the message says what is missing.
        ConfigError, MissingError: see `sources.read`.
    """
    if "clicked" not in config.columns:
        return config, sources.read(config, root)
    most, judged, best = 0.0, 0, None
    minima = (config.min_examined, *(lower for lower in LOWER_EVIDENCE if lower < config.min_examined))
    for minimum in minima:
        tried = replace(config, min_examined=minimum)
        try:
            source = sources.read(tried, root)
        except TooFewImpressionsError as error:
            most = error.most
            continue
        queries = len(source.judgments["query_id"].unique())
        if queries > judged:
            best, judged = (tried, source), queries
        if queries >= LEAST_QUERIES or queries == source.queries.num_rows:
            break
    shown = hide_passwords(config.path)
    if best is None:
        raise SchemaError(
            f"{shown}: a query and document are judged by their clicks from {minima[0]:g} examined impressions on, or "
            f"from {minima[-1]:g} in a short log, and no pair has more than {most:.1f}; take a log about "
            f"{math.ceil(minima[-1] / max(most, 0.1))} times as long, or have pairs judged by people and map their "
            "column as grade"
        )
    if best[0].min_examined < config.min_examined:
        log.warning(
            "%s: a short log, judged from %g examined impressions on in place of %g (min_examined)",
            shown,
            best[0].min_examined,
            config.min_examined,
        )
    return best
