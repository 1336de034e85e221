"""The gate's decision on a published release: judged against the live one, and promoted where the gate agrees."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows import publishing
from flows.judging import PoolScores, judge_release
from flows.runner import Runner
from pipeline.artifacts import Artifact
from pipeline.config import EvaluationConfig, Recipe
from pipeline.errors import RelevanceError
from pipeline.pointer import Pointer
from pipeline.releases import Releases

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateOutcome:
    """The gate's decision on a release, and whether that is live now."""

    live: bool
    """Whether the release is the live one now."""
    agreed: bool
    """Whether gate and publishing rules let it go live; even then it is not `live` if promotion was not asked for."""
    reasons: tuple[str, ...]
    """The reasons for promoting or refusing it."""
    warnings: tuple[str, ...] = ()
    """Remarks that refuse nothing, such as on a ranker alone that is worse than BM25."""
    before: str | None = None
    """The release that was live before; None where there was none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRelease:
    """A release that the gate has still to decide on."""

    release: Artifact
    report: Artifact
    documents: Artifact
    """The document store that is published."""
    scores: PoolScores
    """The new models' scores of the candidates."""


def promote_if_better(
    recipe: Recipe, new: NewRelease, live: Pointer | None, data: Artifact, run: Runner, *, allowed: bool
) -> GateOutcome:
    """Promotes the release if the gate agrees.

    Args:
        allowed: False judges the release and leaves the live one.

    Raises:
        ConflictError: another publisher made a release live meanwhile.
    """
    from pipeline.evaluation import gate, systems
    from pipeline.evaluation import report as reports

    registry = Releases(run.workspace)
    base = publishing.comparable(registry, live)
    compared = new.report
    judged_by = evaluation_of_gate(recipe.evaluation, data)
    if base is None and judged_by != recipe.evaluation:
        gated = run.labelled("gate")
        ranked = gated(systems.make, features=new.scores.features, fusion=new.scores.fusion, scores={})
        plan = reports.ReportPlan(title=f"Retraining {recipe.name}", baseline=systems.BOTH, subject=systems.FUSED)
        compared = gated(reports.make, judged_by, data=data, systems=ranked, plan=plan)
    if live and base:
        rivals = publishing.earlier_rivals(registry, live, base, recipe.gate.earlier_releases)
        compared = compare_with_live(base, recipe, data, new.scores, run, earlier=rivals)
    decision = gate.decide_reports(compared, systems.LIVE if base else None, recipe.gate, new=systems.FUSED)
    refusals = publishing.refusals(registry, base, new.release, new.documents)
    reasons = (*refusals, *decision.reasons)
    agreed = decision.promote and not refusals
    for warning in decision.warnings:
        log.warning("release %s: %s", new.release.fingerprint[:12], warning)
    if agreed and allowed:
        generation = live.generation if live else 0
        registry.promote(new.release.fingerprint, reason="; ".join(reasons), expected=generation)
    return GateOutcome(
        live=agreed and allowed,
        agreed=agreed,
        reasons=reasons,
        warnings=decision.warnings,
        before=live.release if live else None,
    )


def compare_with_live(
    live: Artifact,
    recipe: Recipe,
    data: Artifact,
    judged: PoolScores,
    run: Runner,
    *,
    earlier: Sequence[Artifact] = (),
) -> Artifact:
    """A report on the new models' order against those of the live release and of earlier ones, for the gate.

    The old models rank today's documents; only those that their encoders have not seen are embedded. The report
    is no part of the release, whose fingerprint must not depend on what was live when it was made.
    """
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import systems

    def scores_of(release: Artifact, label: str) -> systems.ReleaseScores:
        old, _ = judge_release(release, recipe.index, recipe.candidates, run.labelled(label), data=data)
        return systems.ReleaseScores(features=old.features, fusion=old.fusion)

    former = {}
    for release in earlier:
        try:
            former[release.fingerprint] = scores_of(release, f"release {release.fingerprint[:12]}")
        except RelevanceError as error:
            log.warning("not compared with the earlier release %s: %s", release.fingerprint[:12], error)
    gate = run.labelled("gate")
    ranked = gate(
        systems.make,
        features=judged.features,
        fusion=judged.fusion,
        scores={},
        live=scores_of(live, "live release"),
        earlier=former,
    )
    title = f"Retraining {recipe.name} against live {live.fingerprint[:12]}"
    plan = reports.ReportPlan(title=title, baseline=systems.LIVE, subject=systems.FUSED)
    return gate(reports.make, evaluation_of_gate(recipe.evaluation, data), data=data, systems=ranked, plan=plan)


def evaluation_of_gate(config: EvaluationConfig, data: Artifact) -> EvaluationConfig:
    """The settings by which the gate judges: grades made from clicks count only where there are no others."""
    from pipeline.evaluation import per_query

    if not config.clicks or not per_query.people_judged(data, "test"):
        return config
    log.info("the gate judges by people's grades alone; those made from clicks are in the report")
    return replace(config, clicks=False)
