"""The retraining flow: from sources to a judged release, which the gate may promote.

Each stage goes through a `Runner`: a plain call from the command line, a task from the Prefect flows. So the order
of the stages is written once.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flows import publishing, runner
from flows.encoder_rounds import train_encoder
from flows.indexing import SearchableCorpus, make_searchable
from flows.judging import PARTS, PoolScores, ScoringModels, judge, judge_release, quality_cost
from flows.runner import Runner
from flows.training import check, prepare, student_base
from flows.training_inputs import TrainingInputs
from pipeline import recipe as recipes
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.compute import engine_of
from pipeline.config import ComputeConfig, EvaluationConfig, ExportConfig, Recipe
from pipeline.errors import RelevanceError
from pipeline.pointer import Pointer
from pipeline.releases import Releases
from pipeline.stage import Stage
from pipeline.surface_warnings import surface_warnings

RELEASE = Stage("release", version=releases.VERSION, inputs={"parts": ("bundle", *PARTS[2:])})

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainResult:
    """The outcome of a retraining."""

    release: Artifact
    report: Artifact
    gate: "GateOutcome"
    seconds: float

    @property
    def live(self) -> bool:
        """Whether the release is the live one now."""
        return self.gate.live

    @property
    def reasons(self) -> tuple[str, ...]:
        """The gate's reasons for promoting or refusing it."""
        return self.gate.reasons

    @property
    def verdict(self) -> str:
        """A sentence that says whether the release went live, in whose place, and why."""
        before = f"release {self.gate.rival[:12]}" if self.gate.rival else ""
        if self.gate.live:
            state = f"went live in place of {before}" if before else "is live"
        elif self.gate.agreed:
            state = "may go live, and is only published as it was asked for"
        else:
            state = f"is not live, and {before} stays" if before else "is not live, and no other is"
        return f"Release {self.release.fingerprint[:12]} {state}: {'; '.join(self.reasons)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateOutcome:
    """The gate's decision on a release, and whether that is live now."""

    live: bool
    """Whether the release is the live one now."""
    agreed: bool
    """Whether it may go live without a person; a release that may is not live where nobody asked for promotion."""
    reasons: tuple[str, ...]
    """The reasons for promoting or refusing it."""
    warnings: tuple[str, ...] = ()
    """Remarks that refuse nothing, such as on a ranker alone that is worse than BM25."""
    rival: str | None = None
    """The release that was live before, which it was compared with; None where there was none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModels:
    """The trained models of a retraining, before export."""

    ranker: Artifact
    encoder: Artifact
    compared: Mapping[str, Artifact]
    """Name in the report → another cross-encoder that is judged beside the ranker."""


def retrain(
    recipe: Recipe, workspace: Path, *, promote: bool = True, execute: runner.Execute = runner.directly
) -> RetrainResult:
    """Trains all models of a recipe, indexes and judges them, publishes a release and, if the gate agrees, promotes it.

    Every stage that is finished already is not run again, so a killed retraining goes on where it was.

    Raises:
        RelevanceError: see `pipeline.errors`; the message says what, where and what to do.
    """
    began = time.monotonic()
    recipe = replace(recipe, export=fitting_precisions(recipe.export))
    run = Runner(workspace, execute, engine=engine_of(recipe.compute))
    check(recipe, run)
    inputs = prepare(recipe, run)
    trained = train_students(recipe, inputs, run)
    models = export_models(recipe, trained, inputs, run)
    corpus = make_searchable(recipe.index, run, encoder=models.encoder, data=inputs.data)
    judged = judge(recipe.candidates, run, models=models, corpus=corpus, data=inputs.data)
    report = report_on(recipe, trained, models, corpus, judged, inputs.data, run)
    # Only now: a re-index may have moved the pointer while the models were trained.
    live = Releases(workspace).pointer_file.recover()
    published, source = documents_to_publish(recipe, models, corpus, live, run, queries=inputs.data)
    assert models.ranker is not None  # It was trained above.
    release = run(
        publish,
        parts={
            "ranker": models.ranker,
            "encoder": models.encoder,
            **published.parts,
            "fusion": judged.fusion,
            "report": report,
        },
        metrics=publishing.metrics(report, published.documents, source),
        # A release does not tell where it was computed.
        config=recipes.to_dict(replace(recipe, compute=ComputeConfig())),
    )
    if live is not None and live.release == release.fingerprint:
        warnings = tuple(surface_warnings(release.metrics.get("surfaces", {})))
        outcome = GateOutcome(
            live=True, agreed=True, reasons=("it was before, and nothing has changed",), warnings=warnings
        )
    else:
        new = NewRelease(release=release, report=report, documents=published.documents, scores=judged)
        outcome = promote_if_better(recipe, new, live, inputs.data, run, allowed=promote)
    return RetrainResult(release=release, report=report, gate=outcome, seconds=time.monotonic() - began)


def fitting_precisions(config: ExportConfig) -> ExportConfig:
    """The precisions to export on this machine: without a GPU not fp16, unless the recipe chooses precisions itself."""
    import torch

    from serving.runtime.processor import has_cuda

    if config.precisions != ExportConfig().precisions or torch.cuda.is_available() or has_cuda():
        return config
    log.info("export: without fp16, which only a GPU runs faster; a recipe that names it in export.precisions gets it")
    return replace(config, precisions=tuple(name for name in config.precisions if name != "fp16"))


def documents_to_publish(
    recipe: Recipe,
    models: ScoringModels,
    corpus: SearchableCorpus,
    live: Pointer | None,
    run: Runner,
    *,
    queries: Artifact,
) -> tuple[SearchableCorpus, Literal["data", "corpus"]]:
    """The index to publish: over the documents that a re-index made live, else over the data's own.

    Args:
        queries: the data whose held-out queries the recall of the index is measured on.
    """
    documents = publishing.live_documents(Releases(run.workspace), live)
    if documents is None:
        return corpus, "data"
    searchable = make_searchable(recipe.index, run, encoder=models.encoder, data=documents, queries=queries)
    return searchable, "corpus"


def train_students(recipe: Recipe, inputs: TrainingInputs, run: Runner) -> TrainedModels:
    """Trains the ranker, the encoder and, where the recipe asks for it, a student of grades alone to compare with."""
    from pipeline.training import ranker

    base = student_base(recipe, recipe.ranker, inputs, run)
    small = run(
        ranker.make,
        recipe.ranker,
        recipe.candidates,
        data=inputs.data,
        pairs=inputs.ranker_pairs,
        teacher=inputs.ranker_teacher,
        teacher_scores=inputs.ranker_teacher_scores,
        base=base,
    )
    compared = {"teacher": inputs.teacher}
    if recipe.ranker.plain:
        compared["plain student"] = run.labelled("plain student")(
            ranker.make,
            ranker.plain(recipe.ranker),
            recipe.candidates,
            data=inputs.data,
            pairs=inputs.pairs,
            teacher=inputs.teacher,
            teacher_scores=None,
            base=base,
        )
    encoder = inputs.first_stage.trained if inputs.first_stage else train_encoder(recipe, inputs, run)
    return TrainedModels(ranker=small, encoder=encoder, compared=compared)


def export_models(recipe: Recipe, trained: TrainedModels, inputs: TrainingInputs, run: Runner) -> ScoringModels:
    """Exports ranker and encoder as ONNX bundles."""
    from pipeline.export import bundle

    data, pairs, first = inputs.data, inputs.pairs, inputs.first_stage
    ranker = run.labelled("ranker")(bundle.make, recipe.export, model=trained.ranker, data=data, pairs=pairs)
    if first is not None:
        return ScoringModels(ranker=ranker, encoder=first.encoder)
    encoder = run.labelled("encoder")(bundle.make, recipe.export, model=trained.encoder, data=data, pairs=pairs)
    return ScoringModels(ranker=ranker, encoder=encoder)


def report_on(
    recipe: Recipe,
    trained: TrainedModels,
    models: ScoringModels,
    corpus: SearchableCorpus,
    judged: PoolScores,
    data: Artifact,
    run: Runner,
) -> Artifact:
    """Judges all systems of a retraining on the test queries."""
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import report_stats, systems
    from pipeline.training import teacher_scores

    scores = {
        name: run.labelled(name)(
            teacher_scores.score, model=model, data=data, pairs=judged.pool, split="test", engine=run.engine
        )
        for name, model in trained.compared.items()
    }
    ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores=scores)
    assert models.ranker is not None
    bundles = {"ranker": models.ranker, "encoder": models.encoder}
    costs = report_stats.of(bundles, corpus.vectors, corpus.index, {**trained.compared, "ranker": trained.ranker})
    costs |= report_stats.fields(corpus.fields)
    costs |= quality_cost(
        recipe.index, run, encoder=models.encoder, corpus=corpus, data=data, clicks=recipe.evaluation.clicks
    )
    return run(
        reports.make,
        recipe.evaluation,
        data=data,
        systems=ranked,
        plan=reports.ReportPlan(title=f"Retraining {recipe.name}", baseline=systems.BOTH, subject=systems.FUSED),
        stats=reports.ReportStats(measured=costs),
    )


@RELEASE
def publish(
    workspace: Path, *, parts: Mapping[str, Artifact], metrics: Mapping[str, Any], config: Mapping[str, Any]
) -> Artifact:
    """The `release` artifact of these parts; not yet live."""
    return Releases(workspace).publish(parts, metrics=metrics, config=config)


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
        rival=base.fingerprint if base else None,
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
