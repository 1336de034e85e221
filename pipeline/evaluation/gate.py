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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import GateConfig
from pipeline.errors import SchemaError
from pipeline.evaluation import gate_rules, significance, systems
from pipeline.evaluation.gate_rules import Rivals, Rule

if TYPE_CHECKING:
    import pandas as pd


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
    ours = gate_rules.checked_values(new, measure, "new")
    if live is None:
        rules = (*gate_rules.floors(ours, rivals, measure), *gate_rules.rerank(rivals, config, measure))
        passed = tuple(rule.detail for rule in rules if rule.verdict in ("pass", "not applied"))
        return _decision(rules, ("there was no live release to compare with", *passed), measure, len(ours))
    theirs = gate_rules.checked_values(live, measure, "live")
    same = gate_rules.same_queries(ours, theirs)
    if same.verdict == "fail":
        return _decision((same,), (), measure, len(ours))
    gap = gate_rules.difference(ours, theirs, measure)
    not_worse = gate_rules.not_worse(gap, config, measure)
    rules = (
        same,
        not_worse,
        gate_rules.enough_queries(gap, config),
        *gate_rules.slices(ours, theirs, config, measure),
        *gate_rules.best_earlier(ours, theirs, rivals, config, measure),
        *gate_rules.rerank(rivals, config, measure),
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


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
