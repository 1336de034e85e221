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
from typing import Protocol

from pipeline import artifacts, releases
from pipeline import config as configs
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, IndexConfig, OutsideConfig, RankerConfig, Recipe
from pipeline.errors import ArtifactError
from pipeline.releases import Pointer, Releases

PARTS = ("ranker", "encoder", "lexical", "documents", "index", "fusion", "report")
"""Of a release."""

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs one named stage; may record and retry it."""

    def __call__(self, name: str, stage: Callable[[], Artifact]) -> Artifact: ...


def directly(name: str, stage: Callable[[], Artifact]) -> Artifact:
    """Runs a stage as a plain call, with one line before it."""
    log.info("── %s", name)
    return stage()


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents made searchable with one encoder."""

    lexical: Artifact
    documents: Artifact
    vectors: Artifact
    index: Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """What scores: two exported bundles and the weights that join them."""

    ranker: Artifact
    encoder: Artifact
    fusion: Artifact | None = None
    """None while it is still to be fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lessons:
    """What students learn from."""

    data: Artifact
    words: Artifact
    """Lexical index of the data's documents."""
    found: Artifact
    """BM25 run of all queries."""
    pairs: Artifact
    """With grades."""
    base: Artifact | str
    """What the teacher started from."""
    teacher: Artifact
    lessons: Artifact
    """The pairs and, where the recipe wants them, others without a grade: what rankers learn from."""
    scores: Artifact
    """What the teacher, or one from outside, says about all of these."""
    tutor: Artifact
    """From whom the ranker learns: the last assistant, or the teacher where there is none."""
    tutor_scores: Artifact
    """What the tutor says about the lessons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One system's scores of the pool of one data set."""

    pool: Artifact
    features: Artifact
    fusion: Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a retraining came to."""

    release: Artifact
    report: Artifact
    live: bool
    """Whether the release is the live one now."""
    reasons: tuple[str, ...]
    """Why, as the gate says."""
    seconds: float


def make_searchable(
    workspace: Path,
    config: IndexConfig,
    encoder: Artifact,
    documents: Artifact,
    *,
    run: Runner = directly,
) -> Corpus:
    """Lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are taken as they are.
    """
    from index import build, lexical, vectors
    from index import documents as store
    from serving import batch

    known = _known_vectors(workspace, batch.digest(encoder))
    return Corpus(
        lexical=run("lexical index", lambda: lexical.make(workspace, config, documents)),
        documents=run("document store", lambda: store.make(workspace, documents)),
        vectors=(
            made := run(
                "document vectors",
                lambda: vectors.make(
                    workspace, batch.digest(encoder), documents, batch.embedder(encoder), previous=known
                ),
            )
        ),
        index=run("semantic index", lambda: build.make(workspace, config, made)),
    )


def _known_vectors(workspace: Path, encoder_digest: str) -> Artifact | None:
    """The largest vectors artifact of this encoder, the newest of equals, whatever its documents; None without one."""
    found = []
    for manifest in (workspace / "artifacts" / "vectors").glob(f"*/{artifacts.MANIFEST}"):
        try:
            known = artifacts.load(manifest.parent, "vectors", verify=False)
            if known.manifest.config.get("encoder_digest") == encoder_digest:
                found.append((known.metrics["documents"], manifest.stat().st_mtime_ns, known.path))
        except ArtifactError as error:
            log.warning("not used to save embedding: %s", error)
    return artifacts.load(max(found)[2], "vectors") if found else None


def judge(
    workspace: Path,
    candidates: CandidatesConfig,
    models: Models,
    corpus: Corpus,
    data: Artifact,
    *,
    run: Runner = directly,
) -> Judged:
    """Scores the candidates of the valid and test queries with one system, and fits its fusion if it has none."""
    from index import lexical, search
    from pipeline.data import candidates as pools
    from pipeline.training import fusion as fusions
    from serving import batch

    depth = candidates.retrieve
    splits = ("valid", "test")
    runs = []
    if candidates.pool == "retrieved":
        runs = [
            run("BM25 run", lambda: lexical.run(workspace, corpus.lexical, data, depth=depth, splits=splits)),
            run(
                "semantic run",
                lambda: search.run(
                    workspace, corpus.index, data, batch.embedder(models.encoder, "query"), depth=depth, splits=splits
                ),
            ),
        ]
    pool = run("pool", lambda: pools.pool(workspace, candidates, data, runs))
    features = run(
        "features",
        lambda: batch.features(
            workspace, models.ranker, models.encoder, corpus.lexical, corpus.index, corpus.documents, data, pool
        ),
    )
    fusion = models.fusion or run("fusion", lambda: fusions.make(workspace, features, pool))
    return Judged(pool=pool, features=features, fusion=fusion)


def judge_release(
    registry: Releases,
    release: Artifact,
    index: IndexConfig,
    candidates: CandidatesConfig,
    data: Artifact,
    *,
    run: Runner = directly,
) -> tuple[Judged, Corpus]:
    """`judge` with the models of a release, over an index of the data's own documents, which is made too."""
    models = Models(**{name: releases.part(release, name) for name in ("ranker", "encoder", "fusion")})
    corpus = make_searchable(registry.workspace, index, models.encoder, data, run=run)
    return judge(registry.workspace, candidates, models, corpus, data, run=run), corpus


def teach(recipe: Recipe, workspace: Path, *, run: Runner = directly) -> Lessons:
    """Data, pairs, teacher and its scores: what every student of a recipe learns from.

    Raises:
        ConfigError: a student that cannot be cut or taught so, before anything is made.
    """
    from index import lexical
    from pipeline.data import candidates, judgments
    from pipeline.training import pretrain, ranker, shapes, teacher

    shapes.check_rankers(recipe)
    data = run("data", lambda: judgments.make(workspace, recipe.data))
    words = run("lexical index", lambda: lexical.make(workspace, recipe.index, data))
    depth = max(recipe.candidates.retrieve, recipe.candidates.negatives_depth + recipe.candidates.skip_top)
    found = run("BM25 run", lambda: lexical.run(workspace, words, data, depth=depth, splits=("train", "valid", "test")))
    pairs = run("pairs", lambda: candidates.pairs(workspace, recipe.candidates, data, found))

    base: Artifact | str = recipe.teacher.base
    if recipe.pretrain.enabled or recipe.teacher.base == "scratch":
        base = run("pre-training", lambda: pretrain.make(workspace, recipe.pretrain, recipe.teacher.base, data))
    large = run("teacher", lambda: teacher.make(workspace, recipe.teacher, recipe.candidates, data, pairs, base))
    lessons = with_unlabelled(workspace, recipe.candidates, data, words, pairs, run=run)
    students = (*recipe.assistants, recipe.ranker)
    scores = scores_for(students[0], workspace, recipe.outside, large, data, lessons, base, run=run)
    tutor, tutor_scores = large, scores
    for number, assistant in enumerate(recipe.assistants, start=1):
        name, learn = f"assistant {number}", partial(ranker.make, workspace, assistant, recipe.candidates, data)
        tutor = run(name, partial(learn, lessons, tutor, tutor_scores, base))
        tutor_scores = scores_for(students[number], workspace, None, tutor, data, lessons, base, run=run, name=name)
    return Lessons(
        data=data,
        words=words,
        found=found,
        pairs=pairs,
        base=base,
        teacher=large,
        lessons=lessons,
        scores=scores,
        tutor=tutor,
        tutor_scores=tutor_scores,
    )


def with_unlabelled(
    workspace: Path,
    config: CandidatesConfig,
    data: Artifact,
    words: Artifact,
    pairs: Artifact,
    *,
    run: Runner = directly,
) -> Artifact:
    """The pairs with as many unlabelled ones as `config.unlabelled` says; themselves where it is 0."""
    from index import lexical
    from pipeline.data import unlabelled

    if not config.unlabelled:
        return pairs
    asked = run("queries for unlabelled pairs", lambda: unlabelled.queries(workspace, config, data))
    depth = config.unlabelled_depth
    found = run("their BM25 run", lambda: lexical.run(workspace, words, asked, depth=depth, splits=()))
    return run("unlabelled pairs", lambda: unlabelled.pairs(workspace, config, data, pairs, asked, found))


def scores_for(
    student: RankerConfig,
    workspace: Path,
    outside: OutsideConfig | None,
    teacher: Artifact,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
    *,
    run: Runner = directly,
    name: str = "teacher",
) -> Artifact:
    """What the teacher, or one from outside if there is one, says about the pairs, as this student needs it."""
    from pipeline.training import outside as others
    from pipeline.training import ranker, teacher_scores

    layers, width = ranker.taught_by(student, teacher, base)
    if outside is not None and outside.given:
        return run("outside scores", lambda: others.make(workspace, outside, data, pairs, layers=layers))
    return run(
        f"{name} scores",
        lambda: teacher_scores.make(workspace, teacher, data, pairs, layers=layers, width=width),
    )


def retrain(recipe: Recipe, workspace: Path, *, promote: bool = True, run: Runner = directly) -> Outcome:
    """Trains all models of a recipe, indexes and judges them, publishes a release and, if the gate agrees, promotes it.

    Every stage that is finished already is taken as it is, so a killed retraining goes on where it was.

    Raises:
        RelevanceError: see `pipeline.errors`; the message says what, where and what to do.
    """
    from flows import mining
    from pipeline.evaluation import facts, gate, systems
    from pipeline.evaluation import report as reports
    from pipeline.export import onnx
    from pipeline.training import ranker, shapes, teacher_scores

    began = time.monotonic()
    registry = Releases(workspace)
    shapes.check_encoder(recipe)
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
    bi_encoder = mining.train_encoder(recipe, workspace, taught, run=run)
    models = Models(
        ranker=run("ranker bundle", lambda: onnx.make(workspace, recipe.export, small, data, pairs)),
        encoder=run("encoder bundle", lambda: onnx.make(workspace, recipe.export, bi_encoder, data, pairs)),
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
    parts = (models.ranker, models.encoder, corpus.lexical, corpus.documents, corpus.index, judged.fusion, report)
    release = run(
        "release",
        lambda: registry.publish(
            dict(zip(PARTS, parts, strict=True)), metrics=report.metrics, config=configs.to_dict(recipe)
        ),
    )
    live = registry.live()  # Only now: a re-index may have moved it while the models were trained.
    promoted = False
    reasons: tuple[str, ...] = ("it is live already",)
    if live is None or live.release != release.fingerprint:
        compared = compare_with_live(registry, live, recipe, data, judged, run) if live else report
        decision = gate.decide_reports(compared, systems.LIVE if live else None, recipe.gate, new=systems.FUSED)
        promoted = promote and decision.promote
        reasons = decision.reasons
        if promoted:
            generation = live.generation if live else 0
            registry.promote(release.fingerprint, reason="; ".join(reasons), expected=generation)
    return Outcome(
        release=release,
        report=report,
        live=promoted or (live is not None and live.release == release.fingerprint),
        reasons=reasons,
        seconds=time.monotonic() - began,
    )


def compare_with_live(
    registry: Releases, live: Pointer, recipe: Recipe, data: Artifact, judged: Judged, run: Runner
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

    lived, _ = judge_release(registry, registry.open(live.release), recipe.index, recipe.candidates, data, run=named)
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
            title=f"Retraining {recipe.name} against live {live.release[:12]}",
        ),
    )
