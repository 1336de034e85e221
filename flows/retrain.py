"""The retraining flow: from sources to a judged release, which the gate may promote.

Each stage goes through a `Runner`: a plain call from the command line, a task from the Prefect flows. So the order
of the stages is written once.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flows import publishing, runner
from flows.encoder_rounds import train_encoder
from flows.indexing import SearchableCorpus, make_searchable
from flows.judging import PARTS, PoolScores, ScoringModels, judge, quality_cost
from flows.promotion import GateOutcome, NewRelease, promote_if_better
from flows.runner import Runner
from flows.training import check, fitted, prepare, student_base
from flows.training_inputs import TrainingInputs
from pipeline import recipe as recipes
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.compute import engine_of
from pipeline.config import ComputeConfig, Recipe
from pipeline.pointer import Pointer
from pipeline.releases import Releases
from pipeline.stage import Stage

RELEASE = Stage("release", version=releases.VERSION, inputs={"parts": ("bundle", *PARTS[2:])})

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainResult:
    """The outcome of a retraining."""

    release: Artifact
    report: Artifact
    gate: GateOutcome
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
        before = f"release {self.gate.before[:12]}" if self.gate.before else ""
        if self.gate.before == self.release.fingerprint:
            state = "is live"
        elif self.gate.live:
            state = f"went live in place of {before}" if before else "went live"
        elif self.gate.agreed:
            state = "may go live, and is only published as it was asked for"
        else:
            state = f"is not live, and {before} stays" if before else "is not live, and no other is"
        return f"Release {self.release.fingerprint[:12]} {state}: {'; '.join(self.reasons)}"


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
    # A release does not tell where it was computed.
    published_config = recipes.to_dict(replace(recipe, compute=ComputeConfig()))
    recipe = fitted(recipe)
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
        config=published_config,
    )
    live_chain = publishing.refit_chain(Releases(workspace), live.release) if live else []
    if release.fingerprint in live_chain:
        since = "its order was learned anew since" if len(live_chain) > 1 else "nothing has changed"
        reasons = (f"it was before, and {since}",)
        outcome = GateOutcome(live=True, agreed=True, reasons=reasons, before=release.fingerprint)
    else:
        new = NewRelease(release=release, report=report, documents=published.documents, scores=judged)
        outcome = promote_if_better(recipe, new, live, inputs.data, run, allowed=promote)
        if outcome.live and len(live_chain) > 1:
            log.warning(
                "the release that was live had learned its order anew from other judgments, and this one has the order "
                "of its own valid queries; learn it from those again: `%s`",
                typed("refit --judgments JUDGMENTS", workspace),
            )
    return RetrainResult(release=release, report=report, gate=outcome, seconds=time.monotonic() - began)


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
    trained_ranker = run(
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
    return TrainedModels(ranker=trained_ranker, encoder=encoder, compared=compared)


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
