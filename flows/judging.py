"""Judges models and releases on held-out queries."""

from dataclasses import dataclass
from pathlib import Path

from flows.indexing import SearchableCorpus, make_searchable
from flows.runner import Runner, directly
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, IndexConfig
from pipeline.releases import Releases

PARTS = ("ranker", "encoder", "lexical", "documents", "index", "fusion", "report")
"""Of a release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringModels:
    """What scores: two exported bundles and the weights that join them."""

    ranker: Artifact
    encoder: Artifact
    fusion: Artifact | None = None
    """None while it is still to be fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolScores:
    """One system's scores of the pool of one data set."""

    pool: Artifact
    features: Artifact
    fusion: Artifact


def judge(
    workspace: Path,
    candidates: CandidatesConfig,
    models: ScoringModels,
    corpus: SearchableCorpus,
    data: Artifact,
    *,
    run: Runner = directly,
) -> PoolScores:
    """Scores the candidates of the valid and test queries with one system, and fits its fusion if it has none."""
    from index import lexical, semantic
    from pipeline.data import candidates as pools
    from pipeline.training import fusion as fusions
    from serving.runtime import offline

    depth = candidates.retrieve
    splits = ("valid", "test")
    runs = []
    if candidates.pool == "retrieved":
        runs = [
            run("BM25 run", lambda: lexical.run(workspace, corpus.lexical, data, depth=depth, splits=splits)),
            run(
                "semantic run",
                lambda: semantic.run(
                    workspace, corpus.index, data, offline.embedder(models.encoder, "query"), depth=depth, splits=splits
                ),
            ),
        ]
    pool = run("pool", lambda: pools.pool(workspace, candidates, data, runs))
    features = run(
        "features",
        lambda: offline.features(
            workspace, models.ranker, models.encoder, corpus.lexical, corpus.index, corpus.documents, data, pool
        ),
    )
    fusion = models.fusion or run("fusion", lambda: fusions.make(workspace, features, pool))
    return PoolScores(pool=pool, features=features, fusion=fusion)


def judge_release(
    registry: Releases,
    release: Artifact,
    index: IndexConfig,
    candidates: CandidatesConfig,
    data: Artifact,
    *,
    run: Runner = directly,
) -> tuple[PoolScores, SearchableCorpus]:
    """`judge` with the models of a release, over an index of the data's own documents, which is made too."""
    models = ScoringModels(**{name: releases.part(release, name) for name in ("ranker", "encoder", "fusion")})
    corpus = make_searchable(registry.workspace, index, models.encoder, data, run=run)
    return judge(registry.workspace, candidates, models, corpus, data, run=run), corpus
