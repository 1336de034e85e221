"""The order of the stages: what is made from what, from sources to a judged release.

Plain functions. Each stage goes through a `Runner`, which the command line leaves as a plain call and the
Prefect flows turn into a task, so the order is written once.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows import publishing
from flows.indexing import make_searchable
from flows.judging import PARTS, PoolScores, ScoringModels, judge, judge_release
from flows.runner import Runner, directly
from flows.training import teach
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import Recipe
from pipeline.releases import Releases

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainResult:
    """What a retraining came to."""

    release: Artifact
    report: Artifact
    live: bool
    """Whether the release is the live one now."""
    reasons: tuple[str, ...]
    """Why, as the gate says."""
    seconds: float


def retrain(recipe: Recipe, workspace: Path, *, promote: bool = True, run: Runner = directly) -> RetrainResult:
    """Trains all models of a recipe, indexes and judges them, publishes a release and, if the gate agrees, promotes it.

    Every stage that is finished already is taken as it is, so a killed retraining goes on where it was.

    Raises:
        RelevanceError: see `pipeline.errors`; the message says what, where and what to do.
    """
    from flows import encoder_rounds
    from pipeline.evaluation import facts, gate, systems
    from pipeline.evaluation import report as reports
    from pipeline.export import bundle
    from pipeline.training import preflight, ranker, teacher_scores

    began = time.monotonic()
    registry = Releases(workspace)
    preflight.check_encoder(recipe)
    taught = teach(recipe, workspace, run=run)
    data, pairs, large = taught.data, taught.pairs, taught.teacher
    learn = partial(ranker.make, workspace)
    small = run(
        "ranker",
        lambda: learn(
            recipe.ranker, recipe.candidates, data, taught.lessons, taught.tutor, taught.tutor_scores, taught.base
        ),
    )
    others = {"teacher": large}
    if recipe.ranker.plain:
        alone = ranker.plain(recipe.ranker)
        others["plain student"] = run(
            "plain student", lambda: learn(alone, recipe.candidates, data, pairs, large, None, taught.base)
        )
    bi_encoder = encoder_rounds.train_encoder(recipe, workspace, taught, run=run)
    models = ScoringModels(
        ranker=run("ranker bundle", lambda: bundle.make(workspace, recipe.export, small, data, pairs)),
        encoder=run("encoder bundle", lambda: bundle.make(workspace, recipe.export, bi_encoder, data, pairs)),
    )
    corpus = make_searchable(workspace, recipe.index, models.encoder, data, run=run)
    judged = judge(workspace, recipe.candidates, models, corpus, data, run=run)

    scores = {
        name: run(f"scores of {name}", partial(teacher_scores.score, workspace, model, data, judged.pool, split="test"))
        for name, model in others.items()
    }
    ranked = run("systems", lambda: systems.make(workspace, judged.features, judged.fusion, scores))
    costs = facts.of(models.ranker, models.encoder, corpus.vectors, corpus.index, {**others, "ranker": small})
    report = run(
        "report",
        lambda: reports.make(
            workspace,
            recipe.evaluation,
            data,
            ranked,
            baseline=systems.BOTH,
            subject=systems.FUSED,
            title=f"Retraining {recipe.name}",
            measured=costs,
        ),
    )
    # Only now: a re-index may have moved the pointer while the models were trained.
    live = registry.pointer_file.recover()
    documents = publishing.live_documents(registry, live)
    published = (
        corpus if documents is None else make_searchable(workspace, recipe.index, models.encoder, documents, run=run)
    )
    searchable = (published.lexical, published.documents, published.index)
    parts = (models.ranker, models.encoder, *searchable, judged.fusion, report)
    metrics = publishing.metrics(report, published.documents, "data" if documents is None else "corpus")
    release = run(
        "release",
        lambda: registry.publish(dict(zip(PARTS, parts, strict=True)), metrics=metrics, config=recipes.to_dict(recipe)),
    )
    promoted = False
    reasons: tuple[str, ...] = ("it is live already",)
    if live is None or live.release != release.fingerprint:
        base = publishing.comparable(registry, live)
        compared = compare_with_live(registry, base, recipe, data, judged, run) if base else report
        decision = gate.decide_reports(compared, systems.LIVE if base else None, recipe.gate, new=systems.FUSED)
        refusals = publishing.refusals(registry, base, release, published.documents)
        promoted = promote and decision.promote and not refusals
        reasons = (*refusals, *decision.reasons)
        if promoted:
            generation = live.generation if live else 0
            registry.promote(release.fingerprint, reason="; ".join(reasons), expected=generation)
    return RetrainResult(
        release=release,
        report=report,
        live=promoted or (live is not None and live.release == release.fingerprint),
        reasons=reasons,
        seconds=time.monotonic() - began,
    )


def compare_with_live(
    registry: Releases, live: Artifact, recipe: Recipe, data: Artifact, judged: PoolScores, run: Runner
) -> Artifact:
    """A report on the new models' order against that of the live release's models, for the gate.

    The live models rank today's documents: of these only what their encoder has not seen is embedded. The report
    is no part of the release, whose fingerprint must not depend on what was live when it was made.
    """
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import systems

    workspace = registry.workspace

    def named(name: str, stage: Callable[[], Artifact]) -> Artifact:
        return run(f"live release: {name}", stage)

    lived, _ = judge_release(registry, live, recipe.index, recipe.candidates, data, run=named)
    ranked = run(
        "new and live",
        lambda: systems.make(workspace, judged.features, judged.fusion, {}, (lived.features, lived.fusion)),
    )
    return run(
        "gate report",
        lambda: reports.make(
            workspace,
            recipe.evaluation,
            data,
            ranked,
            baseline=systems.LIVE,
            subject=systems.FUSED,
            title=f"Retraining {recipe.name} against live {live.fingerprint[:12]}",
        ),
    )
