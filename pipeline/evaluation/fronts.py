"""The front of a study: the rows of which no other one is better at no more cost, told by paired tests."""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipeline.config import EvaluationConfig
from pipeline.evaluation import ablation, page, plots, significance
from pipeline.evaluation.ablation import SURE
from pipeline.evaluation.significance import TIE

SLACK = 0.02
"""Relative difference up to which two rows count as equally fast or small."""

COSTS = {"speed": "pairs per CPU-second", "bytes": "bytes"}
"""Costs that a front is drawn over, with the labels of their axes."""
CHEAPER: Mapping[str, Callable[[float, float], bool]] = {
    "speed": lambda rate, rival: rate >= rival * (1 - SLACK),
    "bytes": lambda size, rival: size <= rival * (1 + SLACK),
}
"""Whether a row is at least as good in a cost as another, within the noise of measuring it."""


def verdicts(
    rows: Mapping[str, Mapping[str, Any]], valid: Mapping[str, ablation.Floats], config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """The verdict on each row: on the front, tied with a row that costs no more, or surely below one.

    A row is held against the best of those that beat it: that cost no more and are better, or as good for less. As the
    queries that choose it are those of the test, the p value is corrected for all pairs of which one row costs no more
    than the other.

    Args:
        rows: name → `speed`, `bytes` and `valid`, the mean on the valid queries.
        valid: name → (queries, 1) values.
    """
    rivals: dict[str, str] = {}
    for name, row in rows.items():
        better = [other for other, item in rows.items() if _beats(item, row, CHEAPER)]
        if better:
            rivals[name] = max(better, key=lambda other: rows[other]["valid"])
    p_values = significance.chosen_differences(
        [(valid[rival][:, 0], valid[name][:, 0]) for name, rival in rivals.items()],
        family=sum(_comparable(row, rival) for row, rival in itertools.combinations(rows.values(), 2)),
        flips=config.bootstrap,
        seed=config.seed,
    )
    corrected = dict(zip(rivals, p_values, strict=True))
    judged: dict[str, dict[str, Any]] = {}
    for name in rows:
        if name not in rivals:
            judged[name] = {"front": True, "verdict": "front"}
            continue
        below = corrected[name] < SURE
        text = f"below {rivals[name]}" if below else f"tied with {rivals[name]}"
        judged[name] = {"front": False, "verdict": text, "rival": rivals[name], "p": corrected[name]}
    return judged


def _beats(row: Mapping[str, Any], rival: Mapping[str, Any], costs: Collection[str]) -> bool:
    """Whether a row is at least as good as another in each of these costs and on the valid queries, and better in one.

    No rows beat each other in a circle: of equal quality the sum of the logarithms of both costs falls from each row to
    the next, as one falls by more than the other may rise.
    """
    gain = row["valid"] - rival["valid"]
    if gain < -TIE or not _costs_no_more(row, rival, costs):
        return False
    return bool(gain > TIE or not _costs_no_more(rival, row, costs))


def _costs_no_more(row: Mapping[str, Any], rival: Mapping[str, Any], costs: Collection[str] = tuple(CHEAPER)) -> bool:
    """Whether a row is at least as good as another in each cost."""
    return all(CHEAPER[cost](row[cost], rival[cost]) for cost in costs)


def _comparable(row: Mapping[str, Any], rival: Mapping[str, Any]) -> bool:
    return _costs_no_more(row, rival) or _costs_no_more(rival, row)


def front_plot(study: Mapping[str, Any], cost: str, label: str) -> str:
    """nDCG on the test queries over a cost, as SVG: a numbered dot for each complete row, this cost's front joined.

    A row is on the front if no row that costs no more has a better mean on the valid queries, or the same one for less.
    The dots show test queries, so one may lie above the line of the front.

    Args:
        study: the content of study.json.
        cost: key of a row, such as `speed`.
        label: label of the axis of the cost.
    """
    rows = {name: row for name, row in study["rows"].items() if name not in study["incomplete"]}
    points = [
        plots.Point(
            name=name,
            x=float(row[cost]),
            y=float(study["systems"][name]["measures"][study["headline"]]["mean"]),
            marked=not any(_beats(other, row, (cost,)) for other in rows.values()),
        )
        for name, row in rows.items()
    ]
    ceiling = float(study["systems"][study["ceiling"]]["measures"][study["headline"]]["mean"])
    axes = plots.Axes(
        x=label,
        y=f"{page.label(study['headline'])}, test queries; full: front on the valid queries",
        rule=ceiling,
        rule_name=study["ceiling"],
    )
    return str(plots.scatter(points, axes))
