"""Decides whether a new release may go live without a person: by paired tests, not by comparing two means.

With a live release:

    same queries      both were judged on the same queries, none twice
    not worse         the lower end of the 95 % interval of (new − live) is above −margin
    enough queries    there are at least `min_queries`
    slice NAME        in no slice of enough queries is the upper end of that interval below −slice_margin
    best earlier      not worse, by the same margin, than the best of the last releases that were live; many small
                      losses, each within the margin, cannot add up
    /rerank           its order is not surely worse than that of the live release's /rerank

Without one:

    floor NAME        the final order is not surely worse than BM25, or than BM25 and encoder joined

Always:

    floor /rerank     its order is not surely worse than BM25, its first stage; only a warning where a live release
                      has a ranker, which answers `/rerank` already, or where `rerank_floor` is false

The order of /rerank is that of the ranker alone, or the fused one, see `pipeline.features.Fusion.rerank`. "Surely
worse" means that the interval lies below 0 and a sign-flip test agrees. Each rule gives its value, its bound and its
verdict. With a live release the decision also gives the smallest difference that its queries can show, so that "not
worse" is not read as "equal".
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.config import GateConfig
from pipeline.errors import SchemaError
from pipeline.evaluation import significance, systems
from pipeline.evaluation.metrics import RANGE
from pipeline.surface_warnings import advice
from pipeline.text import counted, signed

if TYPE_CHECKING:
    import pandas as pd

SEED = 13
RESAMPLES = significance.RESAMPLES

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether to promote, and why."""

    promote: bool
    reasons: tuple[str, ...]
    """Details of the rules that failed; without any, the reason why the release may go live."""
    rules: tuple[Rule, ...]
    measure: str
    queries: int
    difference: float | None
    """Mean of (new − live); None when they cannot be compared."""
    detectable: float | None
    """The smallest true difference that these queries show with 80 % power."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Details of rules that warn without refusing the release."""
        return tuple(rule.detail for rule in self.rules if rule.verdict == "warning")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def decide(
    new: "pd.DataFrame",
    live: "pd.DataFrame | None",
    config: GateConfig,
    *,
    measure: str = "ndcg@10",
    rivals: Rivals | None = None,
) -> Decision:
    """The gate's decision from the values of each query.

    Args:
        new: columns query_id, `measure`, and optionally slice.
        live: the same of the live release, judged with the same judgments; None when there is none.
        measure: the headline's column.

    Raises:
        SchemaError: a column is missing, or a value is not a finite number.
    """
    rivals = rivals or Rivals()
    ours = _values(new, measure, "new")
    if live is None:
        rules = (*_floors(ours, rivals, measure), *_rerank(rivals, config, measure))
        passed = tuple(rule.detail for rule in rules if rule.verdict in ("pass", "not applied"))
        return _decision(rules, ("there was no live release to compare with", *passed), measure, len(ours))
    theirs = _values(live, measure, "live")
    same = _same_queries(ours, theirs)
    if same.verdict == "fail":
        return _decision((same,), (), measure, len(ours))
    gap = _gap(ours, theirs, measure)
    not_worse = _not_worse(gap, config, measure)
    rules = (
        same,
        not_worse,
        _enough(gap, config),
        *_slices(ours, theirs, config, measure),
        *_best_earlier(ours, theirs, rivals, config, measure),
        *_rerank(rivals, config, measure),
    )
    return _decision(rules, (not_worse.detail,), measure, gap.queries, gap)


def _decision(
    rules: tuple[Rule, ...],
    reasons_for: tuple[str, ...],
    measure: str,
    queries: int,
    gap: significance.Difference | None = None,
) -> Decision:
    """The decision by these rules: promotion unless one of them failed.

    Args:
        reasons_for: the reasons to promote the release where no rule failed.
        gap: the difference to the live release; None where they cannot be compared.
    """
    failed = tuple(rule.detail for rule in rules if rule.verdict == "fail")
    return Decision(
        promote=not failed,
        reasons=failed or reasons_for,
        rules=rules,
        measure=measure,
        queries=queries,
        difference=gap.mean if gap else None,
        detectable=gap.detectable if gap else None,
    )


def decide_reports(report: Artifact, live: str | None, config: GateConfig, *, new: str = systems.FUSED) -> Decision:
    """The gate's decision between two systems of one report; the report's other systems serve as `Rivals`.

    BM25 and BM25+encoder are the floors; systems named by `systems.earlier_system` are the earlier releases.

    Args:
        report: a report artifact.
        live: name of the live release's system in it; None when there is no live release.
        new: name of the candidate's system in it.

    Raises:
        SchemaError: the report has no such system.
    """
    import pandas as pd

    path = report.file("per_query.parquet")
    frame, measure = pd.read_parquet(path), str(report.metrics["measure"])
    known = list(frame["system"].unique())
    for name in (new, live):
        if name is not None and name not in known:
            raise SchemaError(f"{path}: has no system '{name}' to decide about; it has {', '.join(known)}")
    values = {name: frame[frame["system"] == name] for name in known}
    worth = report.metrics.get("surfaces", {}).get("/rerank", {})
    rerank = str(worth.get("system", systems.RANKER))
    rivals = Rivals(
        floors={name: values[name] for name in (systems.BM25, systems.BOTH) if name in values},
        earlier={name: values[name] for name in known if systems.is_earlier(name)},
        rerank=values.get(rerank) if systems.RANKER in values else None,
        rerank_system=rerank,
        live_rerank=values.get(systems.LIVE_RERANK) if live else None,
        first_stage=values.get(systems.BM25),
    )
    return decide(values[new], None if live is None else values[live], config, measure=measure, rivals=rivals)


def _values(frame: "pd.DataFrame", measure: str, who: str) -> "pd.DataFrame":
    """The columns `measure` and slice of a report's rows, checked and indexed by query id."""
    for column in ("query_id", measure):
        if column not in frame.columns:
            raise SchemaError(f"gate: the {who} values have no column '{column}'; make the report again")
    values = frame[measure].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        query = frame["query_id"].iloc[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise SchemaError(f"gate: {measure} of the {who} release for query '{query}' is not a finite number")
    slices = frame["slice"].fillna("") if "slice" in frame.columns else ""
    return frame.assign(slice=slices).set_index("query_id")[[measure, "slice"]]


def _gap(ours: "pd.DataFrame", theirs: "pd.DataFrame", measure: str) -> significance.Difference:
    """The paired difference of two frames over the same queries."""
    return significance.difference(
        ours[measure], theirs.loc[ours.index, measure], seed=SEED, resamples=RESAMPLES, bounds=RANGE
    )


def _shown(gap: significance.Difference) -> str:
    mean, low, high = (signed(number, 4) for number in (gap.mean, gap.low, gap.high))
    return f"{mean}, 95 % interval {low} to {high} on {counted(gap.queries, 'query')}"


def _same_queries(ours: "pd.DataFrame", theirs: "pd.DataFrame") -> Rule:
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


def _not_worse(gap: significance.Difference, config: GateConfig, measure: str) -> Rule:
    shown = f"than the live release's: {measure} {_shown(gap)}"
    if gap.low > -config.margin:
        verdict = "surely better" if gap.better else f"not worse by {config.margin} or more"
        return Rule("not worse", gap.low, -config.margin, "pass", f"/search is {verdict} {shown}")
    if gap.worse:
        verdict = "is surely worse"
    else:
        verdict = f"may be worse by more than {config.margin} (these queries show {gap.detectable:.4f} at best)"
    return Rule("not worse", gap.low, -config.margin, "fail", f"/search {verdict} {shown}")


def _enough(gap: significance.Difference, config: GateConfig) -> Rule:
    values = ("enough queries", float(gap.queries), float(config.min_queries))
    if gap.queries >= config.min_queries:
        return Rule(*values, "pass", f"{counted(gap.queries, 'query', 'are')} enough to decide")
    return Rule(
        *values,
        "fail",
        f"{counted(gap.queries, 'judged query', 'are')} too few to replace a live release; judge at least "
        f"{config.min_queries} (gate.min_queries), or promote it by hand",
    )


def _slices(ours: "pd.DataFrame", theirs: "pd.DataFrame", config: GateConfig, measure: str) -> list[Rule]:
    rules = []
    names = [name for name in sorted(ours["slice"].unique()) if name]
    for name in names if len(names) > 1 else []:
        gap = _gap(ours[ours["slice"] == name], theirs, measure)
        shown = f"slice {name}: {_shown(gap)}"
        verdict: Verdict = "fail" if gap.high < -config.slice_margin else "pass"
        if gap.queries < config.min_slice_queries:
            verdict, shown = "not applied", f"{shown}; fewer than {config.min_slice_queries}"
        rules.append(Rule(f"slice {name}", gap.high, -config.slice_margin, verdict, shown))
    return rules


def _floors(ours: "pd.DataFrame", rivals: Rivals, measure: str) -> Iterator[Rule]:
    for name, frame in rivals.floors.items():
        rule = f"floor {name}"
        theirs = _values(frame, measure, name)
        if (same := _same_queries(ours, theirs)).verdict == "fail":
            yield Rule(rule, None, 0.0, "not applied", same.detail)
            continue
        gap = _gap(ours, theirs, measure)
        verdict: Verdict = "fail" if gap.worse else "pass"
        yield Rule(rule, gap.high, 0.0, verdict, f"/search is {_compared(gap)} than {name}: {measure} {_shown(gap)}")


def _best_earlier(
    ours: "pd.DataFrame", live: "pd.DataFrame", rivals: Rivals, config: GateConfig, measure: str
) -> Iterator[Rule]:
    """The rule against the earlier release with the best mean, where it is above the live release's."""
    earlier = {name: _values(frame, measure, name) for name, frame in rivals.earlier.items()}
    comparable = {name: frame for name, frame in earlier.items() if _same_queries(ours, frame).verdict == "pass"}
    if not comparable:
        return
    best = max(comparable, key=lambda name: float(comparable[name][measure].mean()))
    if comparable[best][measure].mean() <= live[measure].mean():
        detail = f"the live release is the best of the last {len(comparable) + 1}"
        yield Rule("best earlier", None, -config.margin, "not applied", detail)
        return
    gap = _gap(ours, comparable[best], measure)
    shown = f"{measure} less that of {best}, the best of the last {len(comparable) + 1}: {_shown(gap)}"
    if gap.low > -config.margin:
        yield Rule("best earlier", gap.low, -config.margin, "pass", shown)
    else:
        verdict = "is surely worse" if gap.worse else f"may be worse by more than {config.margin}"
        yield Rule(
            "best earlier", gap.low, -config.margin, "fail", f"/search {verdict} than an earlier release; {shown}"
        )


def _rerank(rivals: Rivals, config: GateConfig, measure: str) -> Iterator[Rule]:
    """The rules about the order of /rerank: against that of the live release, and against BM25."""
    if (gap := _rerank_gap(rivals, rivals.live_rerank, measure)) is not None:
        shown = f"than the live release's: {measure} {_shown(gap)}"
        verdict: Verdict = "fail" if gap.worse else "pass"
        yield Rule("/rerank", gap.high, 0.0, verdict, f"/rerank is {_compared(gap)} {shown}")
    if (gap := _rerank_gap(rivals, rivals.first_stage, measure)) is None:
        return
    order = "the ranker alone" if rivals.rerank_system == systems.RANKER else "in the fused order"
    shown = f"/rerank, {order}, is {_compared(gap)} than BM25: {measure} {_shown(gap)}"
    if not gap.worse:
        yield Rule("floor /rerank", gap.high, 0.0, "pass", shown)
    elif rivals.live_rerank is None and config.rerank_floor:
        yield Rule("floor /rerank", gap.high, 0.0, "fail", f"{shown}; {RERANK_REFUSED}")
    else:
        yield Rule("floor /rerank", gap.high, 0.0, "warning", f"{shown}; {advice(rivals.rerank_system)}")


def _rerank_gap(rivals: Rivals, rival: "pd.DataFrame | None", measure: str) -> significance.Difference | None:
    """The paired difference of the order of /rerank and a rival; None where one is missing or has other queries."""
    if rivals.rerank is None or rival is None:
        return None
    ours, theirs = (_values(frame, measure, "/rerank") for frame in (rivals.rerank, rival))
    return None if _same_queries(ours, theirs).verdict == "fail" else _gap(ours, theirs, measure)


def _compared(gap: significance.Difference) -> str:
    """The verdict on a difference: surely better, surely worse or not surely worse."""
    return "surely better" if gap.better else "surely worse" if gap.worse else "not surely worse"
