"""Fusion: the weights of BM25, encoder and ranker in the final order, learned from the valid queries.

The candidate orders are single scores, sums of reciprocal ranks, and pairwise logistic regressions on some or
all features (`pipeline.features`). Cross-validation over queries takes the simplest that is as good as the best.

With too few queries to learn from, the order starts from the reciprocal-rank fusion of BM25 and encoder, which needs
no training, or from BM25 where that fusion is surely worse. It moves towards the best simple order as far as the
queries support it. No order that is surely worse than BM25 on the valid queries is ever taken.

Judged lists may show too little: their documents are those that another search found, so an encoder that confuses all
others can order them well. Where the pool is the judged lists, the order is therefore tried on the documents that BM25
and encoder find among all. If it is surely worse there than BM25, the order is chosen from these.

`/rerank` answers by the ranker alone where that is no worse than BM25 on the valid queries, else in the fused order.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Artifact, Staging
from pipeline.evaluation import metrics, significance
from pipeline.features import FEATURES, Fusion, RerankOrder, field_features
from pipeline.stage import Stage
from pipeline.text import counted
from pipeline.training.fusion_candidates import (
    MEASURE,
    RANKS,
    SEED,
    SIMPLE,
    Candidate,
    CandidateLists,
    Floats,
    candidate_lists,
    candidate_weights,
    choose,
    equal_weights,
    held_out_ndcg,
    judged_features,
    simple_orders,
)

if TYPE_CHECKING:
    import pandas as pd

# Version 4: it also decides the order of /rerank. Version 5: a simple order is measured on held-out queries.
STAGE = Stage(
    "fusion",
    version=5,
    inputs={
        "features": "features",
        "pool": "pool",
        "retrieved_features": "features",
        "retrieved_pool": "pool",
    },
)

MIN_QUERIES = 20
"""With fewer queries whose documents differ in grade no weights are learned; see `_few`."""
_ABOVE = 1.0
"""Standard errors that a simple order's gain over the one to start from must exceed: Breiman et al., Classification
and Regression Trees, 1984, the one-standard-error rule."""
_BM25, _RRF = SIMPLE[1], SIMPLE[3]

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path,
    *,
    features: Artifact,
    pool: Artifact,
    retrieved_features: Artifact | None = None,
    retrieved_pool: Artifact | None = None,
) -> Artifact:
    """A fusion artifact: fusion.json with a weight for each feature, and the order of `/rerank`.

    Its metrics have the valid nDCG of each simple order and of `fused`, which is measured on queries that
    neither chose nor fitted the weights; all over the queries whose pooled documents differ in grade.

    Args:
        workspace: the folder that holds `artifacts/`.
        features: row_id, query_id, doc_id, split, bm25, encoder, ranker, and the scores of fields that are indexed
            apart.
        pool: pairs with the grades of these rows.
        retrieved_features, retrieved_pool: the same of the documents that BM25 and encoder find, where the pool has
            judged documents alone; else None.

    Raises:
        SchemaError: a valid row is not in the pool, or a feature is not a finite number.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        retrieved = None
        if retrieved_features and retrieved_pool:
            retrieved = judged_features(retrieved_features, retrieved_pool)
        fusion, measured = fit(judged_features(features, pool), retrieved)
        (staging.folder / "fusion.json").write_text(fusion.to_json(), encoding="utf-8")
        orders = ", ".join(f"{name} {value:.4f}" for name, value in measured["ndcg"].items())
        log.info("fusion: %s; nDCG@10 of the valid queries: %s", measured["chosen"], orders)
        if fusion.rerank == "fused":
            log.info("fusion: /rerank answers in the fused order, as the ranker alone is below BM25 on these queries")
        made_with = features.manifest.inputs
        models = {role: made_with[role] for role in ("ranker", "encoder") if role in made_with}
        return {**measured, "models": models}  # A release checks that it holds these.

    inputs = {"features": features, "pool": pool}
    if retrieved_features and retrieved_pool:
        inputs |= {"retrieved_features": retrieved_features, "retrieved_pool": retrieved_pool}
    return STAGE.make(workspace, config={}, inputs=inputs, build=build)


def fit(judged: "pd.DataFrame", retrieved: "pd.DataFrame | None" = None) -> tuple[Fusion, dict[str, Any]]:
    """The weights that cross-validation prefers, and what it measured.

    Args:
        judged: columns row_id, query_id, doc_id, bm25, encoder, ranker, scores of single fields (see
            `features.field_feature`) and grade.
        retrieved: the same of the documents that BM25 and encoder find, where `judged` has judged documents alone. An
            order that is surely worse than BM25 on these gives way to one that is chosen on them.
    """
    lists = candidate_lists(judged)
    values = _simple_ndcg(lists)
    weights, measured, _ = _chosen(lists, values, judged["query_id"].nunique())
    if retrieved is not None:
        weights, measured = _held_to_bm25(weights, measured, retrieved)
    return _as_fusion(weights, lists, values), measured


def held_out(features: Artifact, pool: Artifact, before: Fusion) -> "pd.DataFrame":
    """The valid nDCG, by query, of the order that `make` fits to these features, and of others.

    Args:
        features, pool: see `make`.
        before: another order.

    Returns:
        A row for each query whose pooled documents differ in grade; columns `fused`, fitted without the query, `before`
        and the simple orders.
    """
    import pandas as pd

    judged = judged_features(features, pool)
    lists = candidate_lists(judged)
    values = _simple_ndcg(lists)
    _, _, fused = _chosen(lists, values, judged["query_id"].nunique())
    weights = np.array([before.weights.get(name, 0.0) for name in lists.names])
    everyone = np.ones(lists.queries, dtype=bool)
    return pd.DataFrame({"fused": fused, "before": lists.ndcg(lists.rows @ weights, everyone), **values})


def _simple_ndcg(lists: CandidateLists) -> dict[str, Floats]:
    """Simple candidate → (queries,) nDCG."""
    everyone = np.ones(lists.queries, dtype=bool)
    return {
        order.name: lists.ndcg(lists.rows @ equal_weights(order, lists.names), everyone)
        for order in simple_orders(lists.names)
    }


def _chosen(lists: CandidateLists, values: Mapping[str, Floats], queries: int) -> tuple[Floats, dict[str, Any], Floats]:
    """Weights (features,) of the order that is best on these lists, and what was measured.

    Args:
        values: simple candidate → (queries,) nDCG.
        queries: the number of queries, with those whose documents have one grade.

    Returns:
        Besides, the nDCG (queries,) of an order that was chosen without the query.
    """
    measured: dict[str, Any] = {
        "measure": MEASURE,
        "queries": lists.queries,
        "documents": len(lists.query),
        "ndcg": {name: float(each.mean()) for name, each in values.items()} if lists.queries else {},
        "chosen": "",
        "reason": "",
    }
    if lists.queries >= MIN_QUERIES:
        chosen, held_out = _learned(lists, values, measured)
        return candidate_weights(lists, chosen, np.ones(lists.queries, dtype=bool)), measured, held_out
    weights, measured["chosen"], held_out = _few(lists, values)
    measured["reason"] = (
        f"{lists.queries} of {counted(queries, 'valid query', 'have')} documents of different "
        f"grade; {MIN_QUERIES} are needed to learn weights, so a simple order is taken: {measured['chosen']}"
    )
    log.warning("fusion: %s", measured["reason"])
    if lists.queries:
        measured["ndcg"]["fused"] = float(held_out.mean())
    return weights, measured, held_out


def _held_to_bm25(
    weights: Floats, measured: dict[str, Any], retrieved: "pd.DataFrame"
) -> tuple[Floats, dict[str, Any]]:
    """These weights and figures, or those of the retrieved documents where the weights are surely worse than BM25."""
    lists = candidate_lists(retrieved)
    everyone = np.ones(lists.queries, dtype=bool)
    values = _simple_ndcg(lists)
    ours, bm25 = lists.ndcg(lists.rows @ weights, everyone), values["bm25"]
    if not _surely_worse(ours, bm25):
        return weights, measured
    again, figures, _ = _chosen(lists, values, retrieved["query_id"].nunique())
    figures["reason"] = (
        f"{measured['chosen']} orders the judged lists best, but of the documents that BM25 and encoder find among all "
        f"it came to {ours.mean():.4f} and bm25 to {bm25.mean():.4f}; so /search takes the order that is best on these"
    )
    log.warning("fusion: %s", figures["reason"])
    return again, figures


def _learned(lists: CandidateLists, values: Mapping[str, Floats], measured: dict[str, Any]) -> tuple[Candidate, Floats]:
    """The candidate that is best on held-out queries, or a simple order where that is no worse, and its nDCG there.

    Args:
        values: simple candidate → (queries,) nDCG.
        measured: takes up the choice, its reason and the nDCG of the fused order.
    """
    everyone = np.ones(lists.queries, dtype=bool)

    def best_simple(among: NDArray[np.bool_]) -> Candidate:
        return max(simple_orders(lists.names), key=lambda candidate: float(values[candidate.name][among].mean()))

    chosen, best = choose(lists, everyone), best_simple(everyone)
    held_out = held_out_ndcg(lists, everyone, lambda training: choose(lists, training))
    if chosen.strength is not None and (came := held_out.mean()) <= values[best.name].mean():
        measured["reason"] = f"learned weights came to {came:.4f} on held-out queries, no more than {best.name} alone"
        chosen, held_out = best, held_out_ndcg(lists, everyone, best_simple)
    if _surely_worse(held_out, values["bm25"]):
        measured["reason"] = (
            f"{chosen.name} came to {held_out.mean():.4f} on held-out queries, surely worse than bm25 alone"
        )
        chosen, held_out = _BM25, values["bm25"]
    measured["ndcg"]["fused"] = float(held_out.mean())
    measured |= {"chosen": chosen.name, "strength": chosen.strength}
    return chosen, held_out


def _few(lists: CandidateLists, values: Mapping[str, Floats]) -> tuple[Floats, str, Floats]:
    """Chooses the order where fewer than MIN_QUERIES queries have documents of different grade.

    Args:
        values: simple candidate → (queries,) nDCG.

    Returns:
        Weights (features,), the name of the order, and its (queries,) nDCG, each query's by an order that was chosen
        without it.
    """
    if not lists.queries:
        return equal_weights(_RRF, lists.names), _RRF.name, np.zeros(0)
    everyone = np.ones(lists.queries, dtype=bool)
    held_out = np.zeros(lists.queries)
    for query in range(lists.queries):
        held = np.zeros(lists.queries, dtype=bool)
        held[query] = True
        start = _start(values, ~held)
        weights = _shrunk(_supported(values, start, ~held), start, lists.queries - 1, lists.names)
        held_out[query] = lists.ndcg(lists.rows @ weights, held)[0]
    start = _start(values, everyone)
    chosen = _supported(values, start, everyone)
    weights, name = _shrunk(chosen, start, lists.queries, lists.names), chosen.name
    if chosen is not start:
        name = f"{start.name} and {chosen.name}"
        if held_out.mean() <= values[start.name].mean():
            weights, name, held_out = equal_weights(start, lists.names), start.name, values[start.name]
    if _surely_worse(held_out, values["bm25"]) or _surely_worse(values[chosen.name], values["bm25"]):
        weights, name, held_out = equal_weights(_BM25, lists.names), _BM25.name, values["bm25"]
    return weights, name, held_out


def _start(values: Mapping[str, Floats], among: NDArray[np.bool_]) -> Candidate:
    """The order to start from: reciprocal-rank fusion, or BM25 where that is surely better.

    Args:
        values: simple candidate → (queries,) nDCG.
        among: (queries,) the queries that decide.
    """
    return _BM25 if _surely_worse(values[_RRF.name][among], values["bm25"][among]) else _RRF


def _supported(values: Mapping[str, Floats], start: Candidate, among: NDArray[np.bool_]) -> Candidate:
    """The simple order whose gain over `start`, less its standard error, is largest and above 0; else `start`."""
    if among.sum() < 2:
        return start
    bounds = {}
    for candidate in (each for each in SIMPLE if each.name in values):
        gains = (values[candidate.name] - values[start.name])[among]
        bounds[candidate] = float(gains.mean() - _ABOVE * gains.std(ddof=1) / np.sqrt(len(gains)))
    best = max(bounds, key=lambda candidate: bounds[candidate])
    return best if bounds[best] > significance.TIE else start


def _shrunk(candidate: Candidate, start: Candidate, queries: int, names: Sequence[str]) -> Floats:
    """Weights (features,) between `start` and a simple order, whose share grows with the queries: half at MIN_QUERIES.

    Every simple order is written with reciprocal ranks, which order documents as the scores themselves do.
    """
    share = queries / (queries + MIN_QUERIES)
    start_weights, own = (_by_ranks(order, names) for order in (start, candidate))
    return (1 - share) * start_weights + share * own


def _by_ranks(candidate: Candidate, names: Sequence[str]) -> Floats:
    """Weights (features,) of a simple order by reciprocal ranks; they sum to 1."""
    ranks = tuple(name if name in RANKS else f"{name}_reciprocal_rank" for name in candidate.features)
    return equal_weights(Candidate(candidate.name, ranks), names) / len(ranks)


def _surely_worse(ours: Floats, theirs: Floats) -> bool:
    return len(ours) > 0 and significance.difference(ours, theirs, seed=SEED, bounds=metrics.RANGE).worse


def _as_fusion(weights: Floats, lists: CandidateLists, values: Mapping[str, Floats]) -> Fusion:
    """The weights by name; a single field's feature without a weight is left out, so that nothing computes it.

    Args:
        values: simple candidate → (queries,) nDCG.
    """
    by_name = dict.fromkeys(FEATURES, 0.0)
    by_name |= {name: float(weight) for name, weight in zip(lists.names, weights, strict=True)}
    weighed = {name: weight for name, weight in by_name.items() if weight or name in FEATURES}
    return Fusion(weights=weighed, rerank=_rerank_order(values, field_features(weighed)))


def _rerank_order(values: Mapping[str, Floats], fields: Sequence[str]) -> RerankOrder:
    """The order of `/rerank`: by the ranker alone, or fused where BM25 is above it or no query can tell.

    Args:
        values: simple candidate → (queries,) nDCG.
        fields: the features of single fields that the fused order weighs, which texts that are sent do not have apart.
    """
    if "ranker" not in values:
        return "ranker"  # There is none, so nothing is reranked.
    ranker, bm25 = values["ranker"], values["bm25"]
    trusted = len(ranker) > 0 and ranker.mean() >= bm25.mean() - significance.TIE
    return "ranker" if trusted or fields else "fused"
