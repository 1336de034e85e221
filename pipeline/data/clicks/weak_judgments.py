"""Click logs as weak judgments: the attractiveness of a document for a query, whatever its position, is its grade.

log ─► impressions ─► cells (pair, position) ─► EM ─► examination of positions, attractiveness of pairs ─► grades
       (`impressions`)                          (`position_model`)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.data.clicks import position_model
from pipeline.data.clicks.impressions import ClickLog
from pipeline.data.clicks.position_model import Cells, Floats, Ints, PositionModel
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import CLICK, MAX_GRADE, NameRows, row_names
from pipeline.text import counted

FLAT, FLAT_POSITIONS = 0.9, 3
"""A log of at least FLAT_POSITIONS positions, none examined less than FLAT, is warned of."""
STEPS = 3
"""Highest grade where the recipe gives no `grade_scale`; the lowest is 0."""

TOP_SHARE = 0.95
"""Without a `grade_scale`, the highest grade stands for the attractiveness that this share of pairs does not exceed."""

log = logging.getLogger(__name__)


class TooFewImpressionsError(SchemaError):
    """No query and document of a click log have enough examined impressions to be judged."""

    def __init__(self, message: str, most: float) -> None:
        """Keeps `most`, the largest number of examined impressions of a pair."""
        super().__init__(message)
        self.most = most


@dataclass(frozen=True, slots=True)
class ClickJudgments:
    """The judgments of a click log's pairs, and the figures that they rest on."""

    judgments: pa.Table
    """Columns query_id, doc_id, grade, source (always "click")."""
    stats: dict[str, Any]
    """Examination of each position, counts of impressions, clicks and pairs, and the scale of the grades."""


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
    impressions = ClickLog(rows, shown, locations).impressions()
    cells = Cells.of(impressions, shown)
    _refuse_equal_clicks(cells, shown)
    model = position_model.fit(cells.pair, cells.position, cells.impressions, cells.clicks)
    enough = _enough_evidence(model, config, shown)
    attractiveness = model.attractiveness[enough]
    if not config.grade_scale:
        _refuse_rare_clicks(np.bincount(cells.pair, cells.clicks)[enough] > 0, shown)
    scale = _scale(config, attractiveness, shown)
    curve = zip(cells.positions, model.examination, strict=True)
    stats: dict[str, Any] = {
        "examination": {str(position): round(float(value), 4) for position, value in curve},
        "rows": rows.num_rows,
        "impressions": len(impressions),
        "clicks": int(impressions["clicked"].sum()),
        "impressions_at_positions_alone": cells.left_out,
        "pairs": len(cells.pairs),
        "judged_pairs": len(attractiveness),
        "pairs_of_too_few_impressions": int((~enough).sum()),
        "min_examined": config.min_examined,
        "grade_scale": [round(value, 6) for value in scale],
        "iterations": model.iterations,
    }
    _log(stats, shown)
    return ClickJudgments(_table(cells.pairs[enough], _grades(attractiveness, scale)), stats)


def _refuse_equal_clicks(cells: Cells, shown: str) -> None:
    """Refuses a log without any click, or with a click on every result, so that none is better than another."""
    if not cells.clicks.any():
        raise SchemaError(f"{shown}: no row is clicked; look at the column mapped as clicked")
    if (cells.clicks == cells.impressions).all():
        raise SchemaError(
            f"{shown}: every result that was shown is clicked, so none is better than another; log the results without "
            "a click too, or look at the column mapped as clicked"
        )


def _enough_evidence(model: PositionModel, config: SourceConfig, shown: str) -> npt.NDArray[np.bool_]:
    """Whether a pair has enough examined impressions to be judged, (pairs,).

    Raises:
        TooFewImpressionsError: no pair has.
    """
    enough: npt.NDArray[np.bool_] = model.examined >= config.min_examined
    if not enough.any():
        most = float(model.examined.max())
        raise TooFewImpressionsError(
            f"{shown}: no pair has {config.min_examined:g} examined impressions, the most is {most:.1f}; take a longer "
            "log, or lower the source's min_examined",
            most,
        )
    return enough


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


def _scale(config: SourceConfig, attractiveness: Floats, shown: str) -> tuple[float, float, float]:
    """Lowest and highest attractiveness that grades tell apart, and the highest grade; see `judge`."""
    scale = config.grade_scale or (0.0, float(np.quantile(attractiveness, TOP_SHARE)), float(STEPS))
    if len(scale) != 3 or not scale[0] < scale[1] or scale[2] % 1 or not 1 <= scale[2] <= MAX_GRADE:
        raise ConfigError(
            f"{shown}: grade_scale is {list(scale)}; give lowest value, highest value and steps from 1 to {MAX_GRADE}"
        )
    return scale[0], scale[1], scale[2]


def _grades(attractiveness: Floats, scale: tuple[float, float, float]) -> Ints:
    """The grade of each attractiveness by a scale, (pairs,)."""
    low, high, steps = scale
    share = np.clip((attractiveness - low) / (high - low), 0, 1)
    grades: Ints = np.floor(share * steps + 0.5).astype(np.int64)
    return grades


def _table(pairs: pd.DataFrame, grades: Ints) -> pa.Table:
    """The judgments of these pairs, a row each."""
    return pa.table(
        {
            "query_id": pa.array(pairs["query_id"], STRING),
            "doc_id": pa.array(pairs["doc_id"], STRING),
            "grade": pa.array(grades),
            "source": pa.array([CLICK] * len(grades), STRING),
        }
    )


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
    examination = stats["examination"].values()
    if len(examination) >= FLAT_POSITIONS and min(examination) > FLAT:
        log.warning(
            "%s: the last of %d positions is examined nearly as often as the first, which is not how people read "
            "results; look for clicks of programs, and whether the column mapped as position is the place of a result",
            shown,
            len(examination),
        )
    if alone := stats["impressions_at_positions_alone"]:
        log.warning(
            "%s: %s not used, at positions whose results were shown at none of the others, so nothing compares them",
            shown,
            counted(alone, "impression", "are"),
        )
    log.info(
        "%s: judged are %d of %s, with %g examined impressions or more; grade_scale = [%g, %g, %g]",
        shown,
        stats["judged_pairs"],
        counted(stats["pairs"], "pair"),
        stats["min_examined"],
        *stats["grade_scale"],
    )
