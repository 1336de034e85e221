"""Judges models and releases on held-out queries."""

from dataclasses import dataclass

from flows.indexing import SearchableCorpus, make_searchable
from flows.runner import Runner
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, IndexConfig

PARTS = ("ranker", "encoder", "lexical", "documents", "index", "fusion", "report")
"""The artifacts that a release contains, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringModels:
    """Two exported bundles, and the weights that join their scores."""

    ranker: Artifact | None
    """None in a ready-made release that has an encoder alone."""
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
    config: CandidatesConfig, run: Runner, *, models: ScoringModels, corpus: SearchableCorpus, data: Artifact
) -> PoolScores:
    """Scores the candidates of the valid and test queries with one system, and fits its fusion if it has none."""
    from index import lexical, semantic
    from pipeline.data import candidates
    from pipeline.training import fusion as fusions
    from serving.runtime import offline

    depth, splits = config.retrieve, ("valid", "test")
    runs = []
    if config.pool == "retrieved":
        queries = offline.embedder(models.encoder, "query")
        runs = [
            run(lexical.run, lexical=corpus.lexical, data=data, depth=depth, splits=splits),
            run(semantic.run, index=corpus.index, data=data, embed_queries=queries, depth=depth, splits=splits),
        ]
    pool = run(candidates.pool, config, data=data, runs=runs)
    features = run(
        offline.features,
        ranker=models.ranker,
        encoder=models.encoder,
        lexical=corpus.lexical,
        index=corpus.index,
        documents=corpus.documents,
        data=data,
        pool=pool,
    )
    fusion = models.fusion or run(fusions.make, features=features, pool=pool)
    return PoolScores(pool=pool, features=features, fusion=fusion)


def judge_release(
    release: Artifact, index: IndexConfig, candidates: CandidatesConfig, run: Runner, *, data: Artifact
) -> tuple[PoolScores, SearchableCorpus]:
    """Judges the models of a release over an index of the data's own documents, and returns that index too."""
    ranker = releases.part(release, "ranker") if releases.has_part(release, "ranker") else None
    encoder, fusion = (releases.part(release, name) for name in ("encoder", "fusion"))
    models = ScoringModels(ranker=ranker, encoder=encoder, fusion=fusion)
    corpus = make_searchable(index, run, encoder=models.encoder, data=data)
    return judge(candidates, run, models=models, corpus=corpus, data=data), corpus
