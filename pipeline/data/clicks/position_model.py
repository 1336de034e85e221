"""The position-based click model: how often a position is examined, and how attractive a document is for a query.

A result is clicked when its position is examined and the document attracts, two independent events, so
P(click) = examination(position) · attractiveness(query, document). Only their product shows in a log. So the two can
be told apart only where one pair was shown at several positions, and only up to a common factor: the most examined
position has examination 1.

Source: Craswell et al., An Experimental Comparison of Click Position-Bias Models, WSDM 2008 (the examination
hypothesis); Chuklin, Markov and de Rijke, Click Models for Web Search, 2015, section 4.1.2 (EM of this model).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import SchemaError

PRIOR_IMPRESSIONS = 1.0
"""Number of impressions of average attractiveness added to each pair, so that one click does not make it certain."""

MOST_ITERATIONS = 2000
"""Iterations of EM after which a fit ends, converged or not."""
TOLERANCE = 1e-6
"""Change of each examination at which EM has converged."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cells:
    """Impressions and clicks of each pair at each position where it was shown."""

    pairs: pd.DataFrame
    """(pairs,) rows of query_id and doc_id."""
    positions: Ints
    """(positions,) the positions as the log has them, ascending."""
    pair: Ints
    """(cells,) number of the pair, from 0."""
    position: Ints
    """(cells,) number of the position, from 0."""
    impressions: Ints
    """(cells,) times that the pair was shown there, at least 1."""
    clicks: Ints
    """(cells,) clicks on it, at most `impressions`."""
    left_out: int
    """Number of impressions at positions that no pair links to these."""

    @classmethod
    def of(cls, impressions: pd.DataFrame, shown: str) -> "Cells":
        """The cells of the positions that are linked by pairs shown at several of them.

        Of several groups of linked positions the one with most impressions is kept: no pair compares it with the
        others.

        Args:
            impressions: a row for each, with query_id, doc_id, position and clicked.
            shown: the source's address, for messages.

        Raises:
            SchemaError: fewer than two positions are linked.
        """
        by_cell = impressions.groupby(["query_id", "doc_id", "position"], sort=False)["clicked"]
        cells = by_cell.agg(["size", "sum"]).reset_index()
        is_linked = _linked(cells, shown)
        kept = cells[is_linked].reset_index(drop=True)
        positions, position = np.unique(kept["position"].to_numpy(np.int64), return_inverse=True)
        return cls(
            pairs=kept.drop_duplicates(["query_id", "doc_id"])[["query_id", "doc_id"]].reset_index(drop=True),
            positions=positions,
            pair=_pair_numbers(kept),
            position=position.astype(np.int64),
            impressions=kept["size"].to_numpy(np.int64),
            clicks=kept["sum"].to_numpy(np.int64),
            left_out=int(cells["size"].to_numpy(np.int64)[~is_linked].sum()),
        )


@dataclass(frozen=True, slots=True)
class PositionModel:
    """A fitted position-based model."""

    examination: Floats
    """(positions,) probability that a position is looked at, relative to the most examined one."""
    attractiveness: Floats
    """(pairs,) probability that the document of a pair is clicked where it is shown at the most examined position."""
    examined: Floats
    """(pairs,) impressions of a pair, each weighted by the examination of its position: the evidence about it."""
    iterations: int


def fit(pair: Ints, position: Ints, impressions: Ints, clicks: Ints) -> PositionModel:
    """Fits the position-based model by expectation maximisation of its likelihood.

    PRIOR_IMPRESSIONS of average attractiveness are added to each pair. The arguments are columns of `Cells`.

    Args:
        pair: (cells,) number of the query and document of each cell, from 0.
        position: (cells,) number of the position, from 0.
        impressions: (cells,) times that the pair was shown there, at least 1.
        clicks: (cells,) clicks on it, at most `impressions`.
    """
    shown_at, shown = np.bincount(position, impressions), np.bincount(pair, impressions)
    missed = impressions - clicks
    rate = np.bincount(position, clicks) / shown_at
    # A start below 1 everywhere: a position whose examination is 1 could never become less examined than another.
    examination = 0.5 + 0.4 * rate / max(rate.max(), 1e-12)
    attractiveness = (np.bincount(pair, clicks) + PRIOR_IMPRESSIONS * clicks.sum() / impressions.sum()) / (
        shown + PRIOR_IMPRESSIONS
    )
    iterations, change = 0, np.inf
    while change > TOLERANCE and iterations < MOST_ITERATIONS:
        seen, liked = examination[position], attractiveness[pair]  # (cells,)
        no_click = np.maximum(1 - seen * liked, 1e-12)
        was_seen = clicks + missed * seen * (1 - liked) / no_click  # expected examined impressions
        was_liked = clicks + missed * liked * (1 - seen) / no_click  # expected attracted impressions
        updated = np.bincount(position, was_seen) / shown_at
        attracted = np.bincount(pair, was_liked)
        average = attracted.sum() / shown.sum()
        attractiveness = (attracted + PRIOR_IMPRESSIONS * average) / (shown + PRIOR_IMPRESSIONS)
        change = np.abs(updated / updated.max() - examination / examination.max()).max()
        examination, iterations = updated, iterations + 1
    top = examination.max()
    examination, attractiveness = examination / top, attractiveness * top
    examined: Floats = np.bincount(pair, impressions * examination[position]).astype(np.float64)
    return PositionModel(examination, attractiveness, examined, iterations)


def _pair_numbers(cells: pd.DataFrame) -> Ints:
    """The number of the pair of each cell, (cells,), in order of first appearance."""
    numbers: pd.Series = cells.groupby(["query_id", "doc_id"], sort=False).ngroup()
    return numbers.to_numpy(np.int64)


def _linked(cells: pd.DataFrame, shown: str) -> npt.NDArray[np.bool_]:
    """Whether the position of a cell is in the largest group of linked positions, (cells,); see `Cells.of`."""
    # Imported here, as every reading of a source imports this file, and few sources are click logs.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names, position = np.unique(cells["position"].to_numpy(np.int64), return_inverse=True)
    if len(names) < 2:
        raise SchemaError(
            f"{shown}: all impressions are at position {names[0]}; examination and attractiveness cannot be told apart "
            "from one position. Log the other positions too, or turn clicks into grades yourself and map a grade"
        )
    pair = _pair_numbers(cells)
    size = len(names) + int(pair.max()) + 1
    links = coo_matrix((np.ones(len(cells)), (position, len(names) + pair)), shape=(size, size))
    group = connected_components(links, directed=False)[1][position]  # (cells,)
    impressions = cells["size"].to_numpy(np.int64)
    kept: npt.NDArray[np.bool_] = group == np.bincount(group, impressions).argmax()
    if len(np.unique(position[kept])) < 2:
        raise SchemaError(
            f"{shown}: no query shows one document at two positions, so examination and attractiveness cannot be told "
            "apart; take a log over a longer time, in which the order of results changed"
        )
    return kept
