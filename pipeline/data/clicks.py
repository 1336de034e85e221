"""Click logs as weak judgments: a position-based model tells how attractive a document is from where it was shown.

    log ─► impressions ─► cells (pair, position) ─► EM ─► examination of positions, attractiveness of pairs ─► grades

The model: a result is clicked when its position is examined and the document attracts, two independent events, so
P(click) = examination(position) · attractiveness(query, document). Only their product shows in a log. So the two can
be told apart only where one pair was shown at several positions, and only up to a common factor: the most examined
position has examination 1.

Source: Craswell et al., An Experimental Comparison of Click Position-Bias Models, WSDM 2008 (the examination
hypothesis); Chuklin, Markov and de Rijke, Click Models for Web Search, 2015, section 4.1.2 (EM of this model).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import CLICK, MAX_GRADE, NameRows, row_names
from pipeline.text import counted

ROLES = ("position", "clicked", "session", "time")
"""Keys of the map of columns that only a click log has."""

SAME_IMPRESSION = pd.Timedelta(minutes=30)
"""Rows of one session, query, document and position are one impression unless this time lies between them."""

STEPS = 3
"""Highest grade where the recipe gives no `grade_scale`; the lowest is 0."""

TOP_SHARE = 0.95
"""Without a `grade_scale`, the highest grade stands for the attractiveness that this share of pairs does not exceed."""

MAX_SECONDS = 1e11
"""Seconds since 1970 until the year 5138: a larger number counts milliseconds or less."""

PRIOR_IMPRESSIONS = 1.0
"""Number of impressions of average attractiveness added to each pair, so that one click does not make it certain."""

MAX_POSITION = 1_000_000
"""A larger number is no rank in a list that a person saw."""

MOST_ITERATIONS = 2000
TOLERANCE = 1e-6
"""Change of each examination at which EM has converged."""

_YES, _NO = ("true", "t", "yes", "y"), ("false", "f", "no", "n")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

log = logging.getLogger(__name__)


class TooFewImpressionsError(SchemaError):
    """No query and document of a click log have enough examined impressions to be judged."""

    def __init__(self, message: str, most: float) -> None:
        """Keeps `most`, the largest number of examined impressions of a pair."""
        super().__init__(message)
        self.most = most


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


@dataclass(frozen=True, slots=True)
class ClickJudgments:
    """The judgments of a click log's pairs, and the figures that they rest on."""

    judgments: pa.Table
    """Columns query_id, doc_id, grade, source (always "click")."""
    stats: dict[str, Any]
    """Examination of each position, counts of impressions, clicks and pairs, and the scale of the grades."""


def fit(pair: Ints, position: Ints, impressions: Ints, clicks: Ints) -> PositionModel:
    """Fits the position-based model by expectation maximisation of its likelihood.

    PRIOR_IMPRESSIONS of average attractiveness are added to each pair.

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


def judge(rows: pa.Table, config: SourceConfig, shown: str, locations: NameRows = row_names) -> ClickJudgments:
    """Weak judgments from a click log.

    A pair's attractiveness becomes a grade by the scale [lowest, highest, steps]: `grade_scale` of the source, or
    [0, the 95th percentile of the attractiveness, 3]. Halves are rounded up, and what is outside counts as the nearer
    end. The log and the manifest state the scale, so that it can be put into the recipe. Pairs with fewer examined
    impressions than `config.min_examined` have no judgment.

    Args:
        rows: query_id, doc_id, position and clicked as texts, one row an impression or a click; session and time where
            the log has them, which join the rows of one impression.
        shown: the source's address, for messages.
        locations: the locations of the rows in their files, for messages.

    Raises:
        ConfigError: a time without a session, or an impossible `grade_scale`.
        SchemaError: a position, click, session or time that cannot be read, fewer than two positions whose examination
            can be told from the attractiveness of documents, no clicks or too few, or nothing but clicks.
        TooFewImpressionsError: no pair has enough evidence.
    """
    impressions = _impressions(rows, shown, locations)
    cells = impressions.groupby(["query_id", "doc_id", "position"], sort=False)["clicked"].agg(["size", "sum"])
    cells = cells.reset_index()
    kept, alone = _comparable(cells, shown)
    pair = kept.groupby(["query_id", "doc_id"], sort=False).ngroup().to_numpy(np.int64)
    positions, position = np.unique(kept["position"].to_numpy(np.int64), return_inverse=True)
    sizes = kept["size"].to_numpy(np.int64)
    clicks = kept["sum"].to_numpy(np.int64)
    if not clicks.any():
        raise SchemaError(f"{shown}: no row is clicked; look at the column mapped as clicked")
    if (clicks == sizes).all():
        raise SchemaError(
            f"{shown}: every result that was shown is clicked, so none is better than another; log the results without "
            "a click too, or look at the column mapped as clicked"
        )
    model = fit(pair.astype(np.int64), position.astype(np.int64), sizes, clicks)
    pairs = kept.drop_duplicates(["query_id", "doc_id"])[["query_id", "doc_id"]]
    enough = model.examined >= config.min_examined
    if not enough.any():
        most = float(model.examined.max())
        raise TooFewImpressionsError(
            f"{shown}: no pair has {config.min_examined:g} examined impressions, the most is {most:.1f}; take a longer "
            "log, or lower the source's min_examined",
            most,
        )
    if not config.grade_scale:
        _refuse_rare_clicks(np.bincount(pair, clicks)[enough] > 0, shown)
    scale = _scale(config, model.attractiveness[enough], shown)
    grades = _grades(model.attractiveness[enough], scale)
    table = pa.table(
        {
            "query_id": pa.array(pairs["query_id"][enough], STRING),
            "doc_id": pa.array(pairs["doc_id"][enough], STRING),
            "grade": pa.array(grades),
            "source": pa.array([CLICK] * len(grades), STRING),
        }
    )
    curve = {str(number): round(float(value), 4) for number, value in zip(positions, model.examination, strict=True)}
    stats: dict[str, Any] = {
        "examination": curve,
        "rows": rows.num_rows,
        "impressions": len(impressions),
        "clicks": int(impressions["clicked"].sum()),
        "impressions_at_positions_alone": alone,
        "pairs": len(pairs),
        "judged_pairs": len(grades),
        "pairs_of_too_few_impressions": int((~enough).sum()),
        "min_examined": config.min_examined,
        "grade_scale": [round(value, 6) for value in scale],
        "iterations": model.iterations,
    }
    _log(stats, shown)
    return ClickJudgments(table, stats)


def _log(stats: Mapping[str, Any], shown: str) -> None:
    """Logs the examination of each position and the scale of the grades."""
    curve = ", ".join(f"{position} {value:.2f}" for position, value in stats["examination"].items())
    log.info(
        "%s: %s, %s; examination by position: %s",
        shown,
        counted(stats["impressions"], "impression"),
        counted(stats["clicks"], "click"),
        curve,
    )
    log.info(
        "%s: judged are %d of %s, with %g examined impressions or more; grade_scale = [%g, %g, %g]",
        shown,
        stats["judged_pairs"],
        counted(stats["pairs"], "pair"),
        stats["min_examined"],
        *stats["grade_scale"],
    )


def usual_spelling(queries: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each query in the most frequent spelling of its normalised text, (rows,); of equally frequent ones the first."""
    spelled = pd.Series(queries.to_pandas(), dtype=object)
    counts = spelled.value_counts(sort=False)  # In order of the first row.
    normal = pd.Series([text.normalise(query) for query in counts.index], index=counts.index, dtype=object)
    usual = counts.groupby(normal, sort=False).idxmax()
    return pa.chunked_array([pa.array(spelled.map(normal).map(usual), STRING)])


def _impressions(rows: pa.Table, shown: str, locations: NameRows) -> pd.DataFrame:
    """A row for each impression: query_id, doc_id, position, clicked (bool)."""
    frame: pd.DataFrame = rows.select(["query_id", "doc_id"]).to_pandas()
    frame["position"] = _positions(rows["position"].to_pandas(), shown, locations)
    frame["clicked"] = _clicked(rows["clicked"].to_pandas(), shown, locations)
    names = set(rows.column_names)
    if "session" not in names:
        if "time" in names:
            raise ConfigError(f"{shown}: columns maps time and no session; time tells impressions of a session apart")
        return frame
    keys = ["query_id", "doc_id", "position", "session"]
    frame["session"] = rows["session"].to_pandas()
    _check_sessions(frame["session"], shown, locations)
    if "time" in names:
        frame["time"] = _times(rows["time"].to_pandas(), shown, locations)
        frame = frame.sort_values("time", kind="stable")
        gap = frame.groupby(keys, sort=False)["time"].diff() > SAME_IMPRESSION
        frame["number"] = gap.groupby([frame[key] for key in keys], sort=False).cumsum()
        frame, keys = frame.sort_index(), [*keys, "number"]
    joined: pd.DataFrame = frame.groupby(keys, sort=False, as_index=False).agg({"clicked": "any"})
    return joined


def _positions(values: pd.Series, shown: str, locations: NameRows) -> Ints:
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = ~(numbers.ge(0) & (numbers % 1).eq(0) & numbers.le(MAX_POSITION))
    wanted = f"a whole number from 0 to {MAX_POSITION:,}"
    _refuse(values, wrong, "position", wanted, shown=shown, locations=locations)
    return numbers.to_numpy(np.int64)


def _clicked(values: pd.Series, shown: str, locations: NameRows) -> npt.NDArray[np.bool_]:
    """Whether a row is clicked: true or yes, or a number of clicks above 0."""
    folded = values.str.strip().str.casefold()
    numbers = pd.to_numeric(folded, errors="coerce")
    wrong = ~(folded.isin([*_YES, *_NO]) | (numbers.ge(0) & numbers.lt(np.inf)))
    _refuse(values, wrong, "clicked", "true, false or a number of clicks", shown=shown, locations=locations)
    return (folded.isin(_YES) | numbers.gt(0)).to_numpy(bool)


def _check_sessions(values: pd.Series, shown: str, locations: NameRows) -> None:
    """Refuses rows without a session: joined, those of all users would be one impression of each result."""
    blank = values.str.strip().eq("")
    if blank.any():
        row = int(np.flatnonzero(blank.to_numpy(bool))[0])
        raise SchemaError(
            f"{shown}: {counted(int(blank.sum()), 'row', 'have')} no session, the first is {locations([row])[0]}; "
            "leave out these rows, or map no session, where each row is an impression of its own"
        )


def _times(values: pd.Series, shown: str, locations: NameRows) -> pd.Series:
    """Instants from dates and times as ISO 8601 writes them, or from seconds since 1970, milliseconds and so on."""
    seconds = pd.to_numeric(values, errors="coerce").astype(float)
    for _ in range(3):  # Milli-, micro- and nanoseconds.
        seconds = seconds.where(seconds.abs() < MAX_SECONDS, seconds / 1000)
    written = pd.to_datetime(values.where(seconds.isna()), errors="coerce", utc=True, format="ISO8601")
    times = written.fillna(pd.to_datetime(seconds, unit="s", errors="coerce", utc=True))
    _refuse(
        values,
        times.isna(),
        "time",
        "a time such as 2026-01-31T12:00:00, or seconds or milliseconds since 1970",
        shown=shown,
        locations=locations,
    )
    return times


def _refuse(values: pd.Series, wrong: pd.Series, role: str, wanted: str, *, shown: str, locations: NameRows) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy(bool))[0])
        raise SchemaError(
            f"{shown}: {counted(int(wrong.sum()), 'row', 'have')} no {role} that can be read, the first is "
            f"{locations([row])[0]}: {str(values.iloc[row])[:60]!r} is not {wanted}; mend or leave out these rows"
        )


def _comparable(cells: pd.DataFrame, shown: str) -> tuple[pd.DataFrame, int]:
    """The cells of the positions that are linked by pairs shown at several of them, and the impressions of the others.

    Of several groups of linked positions the one with most impressions is kept: no pair compares it with the others.
    """
    # Imported here, as every reading of a source imports this file, and few sources are click logs.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names, position = np.unique(cells["position"].to_numpy(np.int64), return_inverse=True)
    if len(names) < 2:
        raise SchemaError(
            f"{shown}: all impressions are at position {names[0]}; examination and attractiveness cannot be told apart "
            "from one position. Log the other positions too, or turn clicks into grades yourself and map a grade"
        )
    pair = cells.groupby(["query_id", "doc_id"], sort=False).ngroup().to_numpy(np.int64)
    size = len(names) + int(pair.max()) + 1
    links = coo_matrix((np.ones(len(cells)), (position, len(names) + pair)), shape=(size, size))
    group = connected_components(links, directed=False)[1][position]  # (cells,)
    impressions = cells["size"].to_numpy(np.int64)
    kept = group == np.bincount(group, impressions).argmax()
    if len(np.unique(position[kept])) < 2:
        raise SchemaError(
            f"{shown}: no query shows one document at two positions, so examination and attractiveness cannot be told "
            "apart; take a log over a longer time, in which the order of results changed"
        )
    return cells[kept].reset_index(drop=True), int(impressions[~kept].sum())


def _refuse_rare_clicks(is_clicked: npt.NDArray[np.bool_], shown: str) -> None:
    """Refuses a log so few of whose pairs have a click that the highest grade would stand for pairs without any.

    Args:
        is_clicked: (judged pairs,).
    """
    if is_clicked.mean() < 1 - TOP_SHARE:
        raise SchemaError(
            f"{shown}: {int(is_clicked.sum()):,} of {counted(len(is_clicked), 'pair')} of enough impressions have a "
            "click, too few to tell which grades the others deserve; take a longer log, or give the source a "
            "grade_scale, whose highest value is the share of clicks of a good result where it is seen"
        )


def _grades(attractiveness: Floats, scale: tuple[float, float, float]) -> Ints:
    low, high, steps = scale
    share = np.clip((attractiveness - low) / (high - low), 0, 1)
    grades: Ints = np.floor(share * steps + 0.5).astype(np.int64)
    return grades


def _scale(config: SourceConfig, attractiveness: Floats, shown: str) -> tuple[float, float, float]:
    scale = config.grade_scale or (0.0, float(np.quantile(attractiveness, TOP_SHARE)), float(STEPS))
    if len(scale) != 3 or not scale[0] < scale[1] or scale[2] % 1 or not 1 <= scale[2] <= MAX_GRADE:
        raise ConfigError(
            f"{shown}: grade_scale is {list(scale)}; give lowest value, highest value and steps from 1 to {MAX_GRADE}"
        )
    return scale[0], scale[1], scale[2]
