"""Judges models and releases on held-out queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.indexing import SearchableCorpus, SearchableParts, make_searchable
from flows.runner import Runner
from pipeline import recipe as recipes
from pipeline import release_parts
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, IndexConfig, Recipe

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

    @classmethod
    def of_release(cls, release: Artifact) -> "ScoringModels":
        """The models and weights of a release that has documents."""
        ranker = release_parts.part(release, "ranker") if release_parts.has_part(release, "ranker") else None
        encoder, fusion = (release_parts.part(release, name) for name in ("encoder", "fusion"))
        return cls(ranker=ranker, encoder=encoder, fusion=fusion)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolScores:
    """One system's scores of the pool of one data set."""

    pool: Artifact
    features: Artifact
    fusion: Artifact


def judge(
    config: CandidatesConfig, run: Runner, *, models: ScoringModels, corpus: SearchableParts, data: Artifact
) -> PoolScores:
    """Scores the candidates of the valid and test queries with one system, and fits its fusion if it has none."""
    from pipeline.data.candidates import JUDGING_SPLITS
    from pipeline.training import fusion as fusions

    scored: dict[str, Any] = {"models": models, "corpus": corpus, "data": data}
    pool, features = score(config, run, **scored, splits=JUDGING_SPLITS)
    fusion = models.fusion
    if fusion is None:
        retrieved: dict[str, Artifact] = {}
        if config.pool == "judged":  # /search ranks what it finds among all documents, so the fusion must see that too.
            config, run_again = replace(config, pool="retrieved"), run.labelled("retrieved")
            searched = score(config, run_again, **scored, splits=("valid",))
            retrieved = {"retrieved_pool": searched[0], "retrieved_features": searched[1]}
        fusion = run(fusions.make, features=features, pool=pool, **retrieved)
    return PoolScores(pool=pool, features=features, fusion=fusion)


def score(
    config: CandidatesConfig,
    run: Runner,
    *,
    models: ScoringModels,
    corpus: SearchableParts,
    data: Artifact,
    splits: Sequence[str],
) -> tuple[Artifact, Artifact]:
    """The pool of the queries of these splits, and its features by one system."""
    from index import lexical, semantic
    from pipeline.data import candidates
    from serving.runtime import offline

    runs = []
    if config.pool == "retrieved":
        queries, depth = offline.embedder(models.encoder, "query"), config.retrieve
        runs = [
            run(lexical.run, lexical=corpus.lexical, data=data, depth=depth, splits=splits),
            run(semantic.run, index=corpus.index, data=data, embed_queries=queries, depth=depth, splits=splits),
        ]
    pool = run(candidates.pool, config, data=data, runs=runs, splits=splits)
    features = run(
        offline.features,
        ranker=models.ranker,
        encoder=models.encoder,
        lexical=corpus.lexical,
        index=corpus.index,
        documents=corpus.documents,
        data=data,
        pool=pool,
        fields=corpus.fields,
    )
    return pool, features


def judge_release(
    release: Artifact, index: IndexConfig, candidates: CandidatesConfig, run: Runner, *, data: Artifact
) -> tuple[PoolScores, SearchableCorpus]:
    """Judges the models of a release over an index of the data's own documents, and returns that index too."""
    models = ScoringModels.of_release(release)
    corpus = make_searchable(index_config(release, index), run, encoder=models.encoder, data=data)
    return judge(candidates, run, models=models, corpus=corpus, data=data), corpus


def index_config(release: Artifact, index: IndexConfig) -> IndexConfig:
    """The section `index` by which documents are searched as a release does: with its fields and passages."""
    # The fusion of the release weighs its own fields, whatever the recipe says now.
    embedded = any(name.startswith("index.") for name in release_parts.field_parts(release))
    passages = recipes.parse(Recipe, release.manifest.config).index.passages  # Its documents are read as it reads them.
    return replace(index, fields=release_parts.fields(release), field_vectors=embedded, passages=passages)


def quality_cost(
    config: IndexConfig,
    run: Runner,
    *,
    encoder: Artifact,
    corpus: SearchableCorpus,
    data: Artifact,
    clicks: bool = False,
) -> dict[str, Any]:
    """The report's group on the quality filter: how many documents it keeps, and recall and nDCG with and without it.

    Both measures are of the 100 documents with the nearest vectors to each test query, searched once among all
    documents and once among those that are kept. Empty where the recipe has no filter.
    """
    if not config.votes:
        return {}
    from index import semantic
    from pipeline import schema
    from pipeline.evaluation import metrics, per_query
    from serving.runtime import offline

    everything = make_searchable(
        replace(config, votes=(), least_quality=0.0, fields=(), field_vectors=False),
        run.labelled("all documents"),
        encoder=encoder,
        data=data,
    )
    judgments, other_queries = per_query.judged(data, "test", clicks=clicks)
    group: dict[str, Any] = {
        "documents": corpus.vectors.metrics["documents"],
        "documents with a vector": corpus.vectors.metrics["with_vectors"],
        "share with a vector": round(corpus.vectors.metrics["with_vectors"] / corpus.vectors.metrics["documents"], 4),
    }
    embed = offline.embedder(encoder, "query")
    for name, index in (("all documents", everything.index), ("kept documents", corpus.index)):
        searched = run.labelled(name)(
            semantic.run, index=index, data=data, embed_queries=embed, depth=100, splits=("test",)
        )
        rows = per_query.ranking(schema.read(searched.file("run.parquet"), "run"), data, other_queries)
        result = metrics.evaluate(rows, judgments, ["recall@100", "ndcg@10"])
        for measure in result.values:
            group[f"encoder's {measure}, {name}"] = round(result.mean(measure), 4)
    return {"quality filter": group}
