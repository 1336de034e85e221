"""The rules of the gate: each gives its value, its bound and its verdict; see `pipeline.evaluation.gate`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.config import GateConfig
from pipeline.errors import SchemaError
from pipeline.evaluation import significance, systems
from pipeline.evaluation.metrics import RANGE
from pipeline.surface_warnings import advice
from pipeline.text import counted, signed

if TYPE_CHECKING:
    import pandas as pd

SEED = 13
"""Seed of the bootstrap, so that one report always gets one decision."""
RESAMPLES = significance.RESAMPLES
"""Resamples of the bootstrap."""

RERANK_REFUSED = (
    "callers who send texts alone would lose by it, though the valid queries did not show it. Judge more queries; or, "
    "where all callers use /search or send first_stage_scores, set gate.rerank_floor = false"
)
"""Advice that ends the message when a release is refused for the order of /rerank."""

Verdict = Literal["pass", "fail", "warning", "not applied"]
"""The outcome of a rule; a warning refuses nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The outcome of one rule."""

    name: str
    value: float | None
    bound: float | None
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rivals:
    """The systems that a candidate is held against beside the live release, as values for the same queries.

    All frames have the columns query_id and the measure.
    """

    floors: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)
    """Name → first stage that the final order must not lose against; read only when there is no live release."""
    earlier: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)
    """Name → release that was live before the present one."""
    rerank: "pd.DataFrame | None" = None
    """The candidate's order of /rerank; None where it has no ranker."""
    rerank_system: str = systems.RANKER
    """Name of the system that gives this order."""
    live_rerank: "pd.DataFrame | None" = None
    """The order of the live release's /rerank; None where nothing is live, or that has no ranker."""
    first_stage: "pd.DataFrame | None" = None
    """BM25, the order that a caller of /rerank has."""


def checked_values(frame: "pd.DataFrame", measure: str, who: str) -> "pd.DataFrame":
    """The columns `measure` and slice of a report's rows, checked and indexed by query id.

    Args:
        who: the system that these are the values of, for messages.

    Raises:
        SchemaError: a column is missing, or a value is not a finite number.
    """
    for column in ("query_id", measure):
        if column not in frame.columns:
            raise SchemaError(f"gate: the {who} values have no column '{column}'; make the report again")
    values = frame[measure].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        query = frame["query_id"].iloc[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise SchemaError(f"gate: {measure} of the {who} release for query '{query}' is not a finite number")
    names = frame["slice"].fillna("") if "slice" in frame.columns else ""
    return frame.assign(slice=names).set_index("query_id")[[measure, "slice"]]


def difference(ours: "pd.DataFrame", theirs: "pd.DataFrame", measure: str) -> significance.Difference:
    """The paired difference of two frames over the same queries."""
    return significance.difference(
        ours[measure], theirs.loc[ours.index, measure], seed=SEED, resamples=RESAMPLES, bounds=RANGE
    )


def same_queries(ours: "pd.DataFrame", theirs: "pd.DataFrame") -> Rule:
    """The rule that both were judged on the same queries, none twice."""
    doubles = int(ours.index.duplicated().sum() + theirs.index.duplicated().sum())
    apart = len(ours.index.symmetric_difference(theirs.index))
    wrong, name = doubles + apart, "same queries"
    if not len(ours) and not len(theirs):
        return Rule(name, 0.0, 1.0, "fail", "there are no judged queries; nothing can be said")
    if not wrong:
        return Rule(name, 0.0, 0.0, "pass", f"both were judged on the same {counted(len(ours), 'query')}")
    detail = (
        f"the two were judged on different query sets: {len(ours):,} and {counted(len(theirs), 'query')}, {apart:,} of "
        f"them not in both, {doubles:,} twice; judge both on one set"
    )
    return Rule(name, float(wrong), 0.0, "fail", detail)


def not_worse(gap: significance.Difference, config: GateConfig, measure: str) -> Rule:
    """The rule that /search is not worse than the live release's by `margin` or more."""
    shown = f"than the live release's: {measure} {_shown(gap)}"
    if gap.low > -config.margin:
        verdict = "surely better" if gap.better else f"not worse by {config.margin} or more"
        return Rule("not worse", gap.low, -config.margin, "pass", f"/search is {verdict} {shown}")
    if gap.worse:
        verdict = "is surely worse"
    else:
        verdict = f"may be worse by more than {config.margin} (these queries show {gap.detectable:.4f} at best)"
    return Rule("not worse", gap.low, -config.margin, "fail", f"/search {verdict} {shown}")


def enough_queries(gap: significance.Difference, config: GateConfig) -> Rule:
    """The rule that there are at least `min_queries` judged queries."""
    values = ("enough queries", float(gap.queries), float(config.min_queries))
    if gap.queries >= config.min_queries:
        return Rule(*values, "pass", f"{counted(gap.queries, 'query', 'are')} enough to decide")
    return Rule(
        *values,
        "fail",
        f"{counted(gap.queries, 'judged query', 'are')} too few to replace a live release; judge at least "
        f"{config.min_queries} (gate.min_queries), or promote it by hand",
    )


def slices(ours: "pd.DataFrame", theirs: "pd.DataFrame", config: GateConfig, measure: str) -> list[Rule]:
    """The rules that in no slice of enough queries /search is surely worse by `slice_margin`; none for one slice."""
    rules = []
    names = [name for name in sorted(ours["slice"].unique()) if name]
    for name in names if len(names) > 1 else []:
        gap = difference(ours[ours["slice"] == name], theirs, measure)
        shown = f"slice {name}: {_shown(gap)}"
        verdict: Verdict = "fail" if gap.high < -config.slice_margin else "pass"
        if gap.queries < config.min_slice_queries:
            verdict, shown = "not applied", f"{shown}; fewer than {config.min_slice_queries}"
        rules.append(Rule(f"slice {name}", gap.high, -config.slice_margin, verdict, shown))
    return rules


def floors(ours: "pd.DataFrame", rivals: Rivals, measure: str) -> Iterator[Rule]:
    """The rules that /search is not surely worse than each floor, where no release is live."""
    for name, frame in rivals.floors.items():
        rule = f"floor {name}"
        theirs = checked_values(frame, measure, name)
        if (same := same_queries(ours, theirs)).verdict == "fail":
            yield Rule(rule, None, 0.0, "not applied", same.detail)
            continue
        gap = difference(ours, theirs, measure)
        verdict: Verdict = "fail" if gap.worse else "pass"
        yield Rule(rule, gap.high, 0.0, verdict, f"/search is {_compared(gap)} than {name}: {measure} {_shown(gap)}")


def best_earlier(
    ours: "pd.DataFrame", live: "pd.DataFrame", rivals: Rivals, config: GateConfig, measure: str
) -> Iterator[Rule]:
    """The rule against the earlier release with the best mean, where it is above the live release's."""
    earlier = {name: checked_values(frame, measure, name) for name, frame in rivals.earlier.items()}
    comparable = {name: frame for name, frame in earlier.items() if same_queries(ours, frame).verdict == "pass"}
    if not comparable:
        return
    best = max(comparable, key=lambda name: float(comparable[name][measure].mean()))
    if comparable[best][measure].mean() <= live[measure].mean():
        detail = f"the live release is the best of the last {len(comparable) + 1}"
        yield Rule("best earlier", None, -config.margin, "not applied", detail)
        return
    gap = difference(ours, comparable[best], measure)
    shown = f"{measure} less that of {best}, the best of the last {len(comparable) + 1}: {_shown(gap)}"
    if gap.low > -config.margin:
        yield Rule("best earlier", gap.low, -config.margin, "pass", shown)
    else:
        verdict = "is surely worse" if gap.worse else f"may be worse by more than {config.margin}"
        yield Rule(
            "best earlier", gap.low, -config.margin, "fail", f"/search {verdict} than an earlier release; {shown}"
        )


def rerank(rivals: Rivals, config: GateConfig, measure: str) -> Iterator[Rule]:
    """The rules about the order of /rerank: against that of the live release, and against BM25."""
    if (gap := _rerank_difference(rivals, rivals.live_rerank, measure)) is not None:
        shown = f"than the live release's: {measure} {_shown(gap)}"
        verdict: Verdict = "fail" if gap.worse else "pass"
        yield Rule("/rerank", gap.high, 0.0, verdict, f"/rerank is {_compared(gap)} {shown}")
    if (gap := _rerank_difference(rivals, rivals.first_stage, measure)) is None:
        return
    order = "the ranker alone" if rivals.rerank_system == systems.RANKER else "in the fused order"
    shown = f"/rerank, {order}, is {_compared(gap)} than BM25: {measure} {_shown(gap)}"
    if not gap.worse:
        yield Rule("floor /rerank", gap.high, 0.0, "pass", shown)
    elif rivals.live_rerank is None and config.rerank_floor:
        yield Rule("floor /rerank", gap.high, 0.0, "fail", f"{shown}; {RERANK_REFUSED}")
    else:
        yield Rule("floor /rerank", gap.high, 0.0, "warning", f"{shown}; {advice(rivals.rerank_system)}")


def _rerank_difference(rivals: Rivals, rival: "pd.DataFrame | None", measure: str) -> significance.Difference | None:
    """The paired difference of the order of /rerank and a rival; None where one is missing or has other queries."""
    if rivals.rerank is None or rival is None:
        return None
    ours, theirs = (checked_values(frame, measure, "/rerank") for frame in (rivals.rerank, rival))
    return None if same_queries(ours, theirs).verdict == "fail" else difference(ours, theirs, measure)


def _compared(gap: significance.Difference) -> str:
    """The verdict on a difference: surely better, surely worse or not surely worse."""
    return "surely better" if gap.better else "surely worse" if gap.worse else "not surely worse"


def _shown(gap: significance.Difference) -> str:
    """A difference with its interval and number of queries, for a message."""
    mean, low, high = (signed(number, 4) for number in (gap.mean, gap.low, gap.high))
    return f"{mean}, 95 % interval {low} to {high} on {counted(gap.queries, 'query')}"
