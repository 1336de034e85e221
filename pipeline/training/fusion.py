"""Fusion: the weights of BM25, encoder and ranker in the final order, learned from the valid queries.

The candidates run from a single score, over their reciprocal-rank sum, to pairwise logistic regressions on
some or all features (`pipeline.features`). What is kept is the simplest that cross-validation over queries
finds as good as the best.

With too few queries to learn from, the order starts from the reciprocal-rank fusion of BM25 and encoder, which needs
no training, and moves towards the best simple order as far as the queries support it. No order that is surely worse
than BM25 on the valid queries is ever taken.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.evaluation import metrics, significance
from pipeline.features import FEATURES, Fusion, table
from pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

STAGE = Stage("fusion", version=2, inputs={"features": "features", "pool": "pool"})

MEASURE = "ndcg@10"
FOLDS = 5
MIN_QUERIES = 20
"""With fewer queries whose documents differ in grade no weights are learned; see `_few`."""
TOLERANCE = 0.001
"""A simpler candidate is taken when it is no further below the best."""
MAX_PAIRS = 20_000
"""Sampled evenly from the queries, at most PAIRS_PER_QUERY of each; a query counts the same whatever its number."""
PAIRS_PER_QUERY = 60
SEED = 13

_SCORES = ("bm25", "encoder", "ranker")
_RANKS = tuple(f"{name}_reciprocal_rank" for name in _SCORES)
_LEARNED = (("bm25", "ranker"), ("encoder", "ranker"), _SCORES, (*_SCORES, "ranker_reciprocal_rank"), FEATURES)
_STRENGTHS = (0.01, 0.3)
"""Values of scikit-learn's C, the strongest regularisation first."""
_ABOVE = 1.0
"""Standard errors that a simple order's gain over reciprocal-rank fusion must exceed: Breiman et al., Classification
and Regression Trees, 1984, the one-standard-error rule."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to join the features: with equal weights, or with weights learned at this strength."""

    name: str
    features: tuple[str, ...]
    strength: float | None = None
    """C of the logistic regression; None for equal weights."""


SIMPLE = (
    Candidate("ranker", ("ranker",)),
    Candidate("bm25", ("bm25",)),
    Candidate("encoder", ("encoder",)),
    Candidate("rrf", _RANKS[:2]),
    Candidate("rrf_all", _RANKS),
)
"""`rrf` joins BM25 and encoder, `rrf_all` the ranker too."""
_BM25, _RRF = SIMPLE[1], SIMPLE[3]

CANDIDATES = (
    *SIMPLE,
    *(Candidate(" + ".join(names), names, strength) for names in _LEARNED for strength in _STRENGTHS),
)
"""The simplest first."""


@dataclass(frozen=True, slots=True)
class _CandidateLists:
    """The documents of all usable queries, and pairs of them that differ in grade."""

    query: Ints
    """(documents,) 0, 1, … in order of the query ids."""
    doc: Ints
    """(documents,) ascending as the ids do, for ties."""
    grade: Floats
    rows: Floats
    """(documents, features)"""
    pair_query: Ints
    pairs: Floats
    """(pairs, features) better minus worse."""

    @property
    def queries(self) -> int:
        return int(self.query.max(initial=-1)) + 1

    def ndcg(self, scores: Floats, chosen: NDArray[np.bool_]) -> Floats:
        """(chosen queries,) of a score for each document; the ideal order is that of the pool's documents."""
        here = chosen[self.query]
        return metrics.by_query(self.query[here], self.grade[here], scores[here], [MEASURE], ids=self.doc[here])[
            MEASURE
        ]


@STAGE
def make(workspace: Path, *, features: Artifact, pool: Artifact) -> Artifact:
    """A fusion artifact: fusion.json with a weight for each feature.

    Its metrics have the valid nDCG of each simple order and of `fused`, which is measured on queries that
    neither chose nor fitted the weights; all over the queries whose pooled documents differ in grade.

    Args:
        workspace: the folder that holds `artifacts/`.
        features: row_id, query_id, doc_id, split, bm25, encoder, ranker.
        pool: pairs with the grades of these rows.

    Raises:
        SchemaError: a valid row is not in the pool, or a feature is not a finite number.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        fusion, found = fit(_judged(features, pool))
        (staging.folder / "fusion.json").write_text(fusion.to_json(), encoding="utf-8")
        log.info("fusion: %s, %s", found["chosen"], {name: round(value, 4) for name, value in found["ndcg"].items()})
        models = {role: features.manifest.inputs[role] for role in ("ranker", "encoder")}
        return {**found, "models": models}  # A release checks that it holds these.

    inputs = {"features": features, "pool": pool}
    return STAGE.make(workspace, config={}, inputs=inputs, build=build)


def fit(judged: "pd.DataFrame") -> tuple[Fusion, dict[str, Any]]:
    """The weights that cross-validation prefers, and what it measured.

    Args:
        judged: row_id, query_id, doc_id, bm25, encoder, ranker, grade; in this order of row ids.
    """
    lists = _lists(judged)
    found: dict[str, Any] = {
        "measure": MEASURE,
        "queries": lists.queries,
        "documents": len(lists.query),
        "ndcg": {},
        "chosen": "",
        "reason": "",
    }
    everyone = np.ones(lists.queries, dtype=bool)
    values = {simple.name: lists.ndcg(lists.rows @ _equal_weights(simple), everyone) for simple in SIMPLE}
    if lists.queries:
        found["ndcg"] = {name: float(each.mean()) for name, each in values.items()}
    if lists.queries < MIN_QUERIES:
        weights, chosen_name, held_out = _few(lists, values)
        found["chosen"] = chosen_name
        found["reason"] = (
            f"{lists.queries} of {judged['query_id'].nunique()} valid queries have documents of different grade; "
            f"{MIN_QUERIES} are needed to learn weights, so a simple order is taken: {chosen_name}"
        )
        log.warning("fusion: %s", found["reason"])
        if lists.queries:
            found["ndcg"]["fused"] = float(held_out.mean())
        return _as_fusion(weights), found

    chosen = _choose(lists, everyone)
    held_out = _held_out(lists, everyone, lambda training: _choose(lists, training))
    fused = held_out.mean()
    best = max(SIMPLE, key=lambda candidate: found["ndcg"][candidate.name])
    if chosen.strength is not None and fused <= found["ndcg"][best.name]:
        found["reason"] = f"learned weights came to {fused:.4f} on held-out queries, no more than {best.name} alone"
        chosen = best
    if chosen.strength is None:
        fused, held_out = found["ndcg"][chosen.name], values[chosen.name]
    if _surely_worse(held_out, values["bm25"]):
        found["reason"] = f"{chosen.name} came to {fused:.4f} on held-out queries, surely worse than bm25 alone"
        chosen, fused = _BM25, found["ndcg"]["bm25"]
    found["ndcg"]["fused"] = float(fused)
    found |= {"chosen": chosen.name, "strength": chosen.strength}
    return _as_fusion(_weights(lists, chosen, everyone)), found


def _few(lists: _CandidateLists, values: Mapping[str, Floats]) -> tuple[Floats, str, Floats]:
    """The order for fewer than MIN_QUERIES usable queries.

    Args:
        values: simple candidate → (queries,) nDCG.

    Returns:
        Weights (features,), the name of the order, and its (queries,) nDCG, each query's by an order that was chosen
        without it.
    """
    if not lists.queries:
        return _equal_weights(_RRF), _RRF.name, np.zeros(0)
    everyone = np.ones(lists.queries, dtype=bool)
    held_out = np.zeros(lists.queries)
    for query in range(lists.queries):
        held = np.zeros(lists.queries, dtype=bool)
        held[query] = True
        weights = _shrunk(_supported(values, ~held), lists.queries - 1)
        held_out[query] = lists.ndcg(lists.rows @ weights, held)[0]
    chosen = _supported(values, everyone)
    weights, name = _shrunk(chosen, lists.queries), chosen.name
    if chosen is not _RRF:
        name = f"rrf and {chosen.name}"
        if held_out.mean() <= values[_RRF.name].mean():
            weights, name, held_out = _equal_weights(_RRF), _RRF.name, values[_RRF.name]
    if _surely_worse(held_out, values["bm25"]) or _surely_worse(values[chosen.name], values["bm25"]):
        weights, name, held_out = _equal_weights(_BM25), _BM25.name, values["bm25"]
    return weights, name, held_out


def _supported(values: Mapping[str, Floats], among: NDArray[np.bool_]) -> Candidate:
    """The simple order whose gain over reciprocal-rank fusion, less its standard error, is largest and above 0."""
    if among.sum() < 2:
        return _RRF
    bounds = {}
    for candidate in SIMPLE:
        gains = (values[candidate.name] - values[_RRF.name])[among]
        bounds[candidate] = float(gains.mean() - _ABOVE * gains.std(ddof=1) / np.sqrt(len(gains)))
    best = max(bounds, key=lambda candidate: bounds[candidate])
    return best if bounds[best] > significance.TIE else _RRF


def _shrunk(candidate: Candidate, queries: int) -> Floats:
    """Weights (features,) between reciprocal-rank fusion and a simple order: half of each at MIN_QUERIES queries.

    A single score and its reciprocal rank give one order, so the reciprocal ranks stand for all simple orders.
    """
    share = queries / (queries + MIN_QUERIES)
    ranks = tuple(name if name in _RANKS else f"{name}_reciprocal_rank" for name in candidate.features)
    own = _equal_weights(Candidate(candidate.name, ranks)) / len(ranks)
    prior = _equal_weights(_RRF) / len(_RRF.features)
    return (1 - share) * prior + share * own


def _surely_worse(ours: Floats, theirs: Floats) -> bool:
    return len(ours) > 0 and significance.difference(ours, theirs, seed=SEED, bounds=metrics.RANGE).worse


def _judged(features: Artifact, pool: Artifact) -> "pd.DataFrame":
    """The features of the valid rows with their grades, in order of the row ids."""
    import pandas as pd

    path = features.file("features.parquet")
    frame = pd.read_parquet(path)
    pairs = pd.read_parquet(pool.file("pairs.parquet"), columns=["row_id", "grade"])
    joined = frame[frame["split"] == "valid"].merge(pairs, on="row_id", how="left", validate="1:1")
    lost = joined["grade"].isna()
    if lost.any():
        row = joined["row_id"][lost].min()
        raise SchemaError(f"{path}: row {row} is not in the pool {pool.path}; make the features again from this pool")
    return joined.sort_values("row_id", kind="stable").reset_index(drop=True)


def _by_query(frame: "pd.DataFrame") -> list[tuple[Ints, list[tuple[float, ...]]]]:
    """The rows of each query in the frame, in order of query id, and their features."""
    found = []
    for query, places in frame.groupby("query_id", sort=True).indices.items():
        columns = (frame[name].to_numpy()[places].tolist() for name in _SCORES)
        try:
            found.append((np.asarray(places), table(*columns)))
        except SchemaError as error:
            raise SchemaError(f"query '{query}': {error}") from error
    return found


def _lists(judged: "pd.DataFrame") -> _CandidateLists:
    grades = judged["grade"].to_numpy(dtype=np.float64)
    docs = np.unique(judged["doc_id"].to_numpy(dtype=str), return_inverse=True)[1]
    generator = np.random.Generator(np.random.PCG64(SEED))
    query: list[Ints] = []
    doc: list[Ints] = []
    pair_query: list[Ints] = []
    grade: list[Floats] = []
    rows: list[Floats] = []
    pairs: list[Floats] = []
    features_of = _by_query(judged)
    most = min(PAIRS_PER_QUERY, max(1, MAX_PAIRS // max(1, len(features_of))))
    for places, found in features_of:
        own = grades[places]
        better, worse = np.nonzero(own[:, np.newaxis] > own)
        if not len(better):
            continue
        if len(better) > most:
            kept = generator.choice(len(better), most, replace=False)
            better, worse = better[kept], worse[kept]
        features = np.asarray(found)
        number = len(query)
        query.append(np.full(len(places), number))
        pair_query.append(np.full(len(better), number))
        pairs.append(features[better] - features[worse])
        doc.append(docs[places])
        grade.append(own)
        rows.append(features)
    none = np.zeros((0, len(FEATURES)))
    return _CandidateLists(
        query=_joined(query).astype(np.int64),
        doc=_joined(doc).astype(np.int64),
        grade=_joined(grade),
        rows=np.concatenate([none, *rows]),
        pair_query=_joined(pair_query).astype(np.int64),
        pairs=np.concatenate([none, *pairs]),
    )


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0), *parts])


def _weights(lists: _CandidateLists, candidate: Candidate, training: NDArray[np.bool_]) -> Floats:
    """(features,) weights; learned ones from the training queries.

    The loss is RankNet's: logistic in the difference of two documents' scores, a pair's weight being one over
    the pairs of its query.
    """
    from sklearn.linear_model import LogisticRegression

    if candidate.strength is None:
        return _equal_weights(candidate)
    weights = np.zeros(len(FEATURES))
    columns = [FEATURES.index(name) for name in candidate.features]
    here = training[lists.pair_query]
    gaps, query = lists.pairs[here][:, columns], lists.pair_query[here]
    spread = np.sqrt((gaps**2).mean(axis=0))
    spread[spread == 0] = 1.0
    share = 1.0 / np.bincount(query)[query]
    # Every second pair is turned round: a classifier wants both classes, and without an intercept nothing else changes.
    sign = np.where(np.arange(len(gaps)) % 2, -1.0, 1.0)
    model = LogisticRegression(C=candidate.strength, fit_intercept=False, solver="newton-cholesky", max_iter=200)
    model.fit(gaps / spread * sign[:, np.newaxis], sign, sample_weight=share)
    weights[columns] = model.coef_[0] / spread
    return weights


def _equal_weights(candidate: Candidate) -> Floats:
    """(features,) 1 for each feature of the candidate, 0 for the others."""
    return np.isin(FEATURES, candidate.features).astype(np.float64)


def _as_fusion(weights: Floats) -> Fusion:
    return Fusion(weights={name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)})


def _held_out(
    lists: _CandidateLists, among: NDArray[np.bool_], choose: Callable[[NDArray[np.bool_]], Candidate]
) -> Floats:
    """(queries among,) nDCG of each query by weights that were chosen and learned without its fold."""
    members = np.flatnonzero(among)
    fold = np.random.Generator(np.random.PCG64(SEED)).permutation(len(members)) % min(FOLDS, len(members))
    values = np.zeros(lists.queries)
    for number in range(int(fold.max()) + 1):
        held = np.zeros(lists.queries, dtype=bool)
        held[members[fold == number]] = True
        training = among & ~held
        values[held] = lists.ndcg(lists.rows @ _weights(lists, choose(training), training), held)
    return values[among]


def _choose(lists: _CandidateLists, among: NDArray[np.bool_]) -> Candidate:
    """The simplest candidate that cross-validation over these queries finds within TOLERANCE of the best."""

    def always(candidate: Candidate) -> Callable[[NDArray[np.bool_]], Candidate]:
        return lambda _: candidate

    means = [float(_held_out(lists, among, always(candidate)).mean()) for candidate in CANDIDATES]
    return next(one for one, mean in zip(CANDIDATES, means, strict=True) if mean >= max(means) - TOLERANCE)
