"""Whether a new release may go live by itself: a paired test against the live one, not a comparison of two means.

    same queries      both were judged on the same queries, none twice
    not worse         the lower end of the 95 % interval of (new − live) is above −margin
    slice NAME        no slice of enough queries is surely worse than −slice_margin

Each rule gives its value, its bound and its verdict. The decision says too which difference so many queries can
show at all, so that silence is not taken for equality.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.config import GateConfig
from pipeline.errors import SchemaError
from pipeline.evaluation import significance

if TYPE_CHECKING:
    import pandas as pd

SEED = 13

Verdict = Literal["pass", "fail", "not applied"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that the gate looked at."""

    name: str
    value: float | None
    bound: float | None
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether to promote, and why."""

    promote: bool
    reasons: tuple[str, ...]
    """What decided: the rules that failed, or why none did."""
    rules: tuple[Rule, ...]
    measure: str
    queries: int
    difference: float | None
    """Mean of (new − live); None when they cannot be compared."""
    detectable: float | None
    """The smallest true difference that these queries show with 80 % power."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def decide(
    new: "pd.DataFrame", live: "pd.DataFrame | None", config: GateConfig, *, measure: str = "ndcg@10"
) -> Decision:
    """The gate's decision from both systems' values for each query.

    Args:
        new: columns query_id, `measure`, and optionally slice.
        live: the same of the live release, judged with the same judgments; None when there is none.
        measure: the headline's column.

    Raises:
        SchemaError: a column is missing, or a value is not a finite number.
    """
    ours = _values(new, measure, "new")
    if live is None:
        return Decision(
            promote=True,
            reasons=("there is no live release to compare with",),
            rules=(),
            measure=measure,
            queries=len(ours),
            difference=None,
            detectable=None,
        )
    theirs = _values(live, measure, "live")
    same = _same_queries(ours, theirs)
    if same.verdict == "fail":
        return Decision(
            promote=False,
            reasons=(same.detail,),
            rules=(same,),
            measure=measure,
            queries=len(ours),
            difference=None,
            detectable=None,
        )
    theirs = theirs.loc[ours.index]
    gap = significance.difference(ours[measure], theirs[measure], seed=SEED)
    rules = [same, _not_worse(gap, config, measure), *_slices(ours, theirs, config, measure)]
    failed = tuple(rule.detail for rule in rules if rule.verdict == "fail")
    return Decision(
        promote=not failed,
        reasons=failed or (rules[1].detail,),
        rules=tuple(rules),
        measure=measure,
        queries=gap.queries,
        difference=gap.mean,
        detectable=gap.detectable,
    )


def decide_reports(report: Artifact, live: str | None, config: GateConfig, *, new: str = "fused") -> Decision:
    """The gate's decision between two systems of one report.

    Args:
        report: a report artifact.
        live: name of the live release's system in it; None when there is no live release.
        new: name of the new one.

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
    return decide(
        frame[frame["system"] == new],
        None if live is None else frame[frame["system"] == live],
        config,
        measure=measure,
    )


def _values(frame: "pd.DataFrame", measure: str, who: str) -> "pd.DataFrame":
    """Indexed by query id, with the columns `measure` and slice."""
    for column in ("query_id", measure):
        if column not in frame.columns:
            raise SchemaError(f"gate: the {who} values have no column '{column}'; make the report again")
    values = frame[measure].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        query = frame["query_id"].iloc[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise SchemaError(f"gate: {measure} of the {who} release for query '{query}' is not a finite number")
    slices = frame["slice"].fillna("") if "slice" in frame.columns else ""
    return frame.assign(slice=slices).set_index("query_id")[[measure, "slice"]]


def _same_queries(ours: "pd.DataFrame", theirs: "pd.DataFrame") -> Rule:
    doubles = int(ours.index.duplicated().sum() + theirs.index.duplicated().sum())
    apart = len(ours.index.symmetric_difference(theirs.index))
    wrong, name = doubles + apart, "same queries"
    if not len(ours) and not len(theirs):
        return Rule(name, 0.0, 1.0, "fail", "there are no judged queries; nothing can be said")
    if not wrong:
        return Rule(name, 0.0, 0.0, "pass", f"both were judged on the same {len(ours):,} queries")
    detail = (
        f"the two were judged on different query sets: {len(ours):,} and {len(theirs):,} queries, {apart:,} of them "
        f"not in both, {doubles:,} twice; judge both on one set"
    )
    return Rule(name, float(wrong), 0.0, "fail", detail)


def _not_worse(gap: significance.Difference, config: GateConfig, measure: str) -> Rule:
    shown = f"{measure} {gap.mean:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f} on {gap.queries:,} queries"
    if gap.low > -config.margin:
        better = "better" if gap.low > 0 else f"not worse than −{config.margin}"
        return Rule("not worse", gap.low, -config.margin, "pass", f"new is {better}: {shown}")
    if gap.high < 0:
        said = "new is worse"
    else:
        said = f"new may be worse by more than {config.margin} (so many queries show {gap.detectable:.4f} at best)"
    return Rule("not worse", gap.low, -config.margin, "fail", f"{said}: {shown}")


def _slices(ours: "pd.DataFrame", theirs: "pd.DataFrame", config: GateConfig, measure: str) -> list[Rule]:
    found = []
    names = [name for name in sorted(ours["slice"].unique()) if name]
    for name in names if len(names) > 1 else []:
        here = ours["slice"] == name
        gap = significance.difference(ours.loc[here, measure], theirs.loc[here, measure], seed=SEED)
        shown = (
            f"slice {name}: {gap.mean:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f} on {gap.queries:,} queries"
        )
        verdict: Verdict = "fail" if gap.high < -config.slice_margin else "pass"
        if gap.queries < config.min_slice_queries:
            verdict, shown = "not applied", f"{shown}; fewer than {config.min_slice_queries}"
        found.append(Rule(f"slice {name}", gap.high, -config.slice_margin, verdict, shown))
    return found
