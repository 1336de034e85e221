"""How much BM25, encoder and ranker each count in the final order, learned from the valid queries.

The candidates run from a single score, over their reciprocal-rank sum, to pairwise logistic regressions on
some or all features (`pipeline.features`). What is kept is the simplest that cross-validation over queries
finds as good as the best; with too few queries to learn from, the ranker's order.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.evaluation import metrics
from pipeline.features import FEATURES, Fusion, table

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1

MEASURE = "ndcg@10"
FOLDS = 5
MIN_QUERIES = 20
"""With fewer queries whose documents differ in grade nothing is learned."""
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


def make(workspace: Path, features: Artifact, pool: Artifact) -> Artifact:
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
    return artifacts.make(workspace, "fusion", version=VERSION, config={}, inputs=inputs, build=build)


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
        "chosen": "ranker",
        "reason": "",
    }
    everyone = np.ones(lists.queries, dtype=bool)
    if lists.queries:
        for simple in SIMPLE:
            values = lists.ndcg(lists.rows @ _weights(lists, simple, everyone), everyone)
            found["ndcg"][simple.name] = float(values.mean())
    if lists.queries < MIN_QUERIES:
        found["reason"] = (
            f"{lists.queries} of {judged['query_id'].nunique()} valid queries have documents of different grade; "
            f"{MIN_QUERIES} are needed to learn weights, so the ranker alone decides"
        )
        log.warning("fusion: %s", found["reason"])
        if lists.queries:
            found["ndcg"]["fused"] = found["ndcg"]["ranker"]
        return _fusion(lists, SIMPLE[0], everyone), found

    chosen = _choose(lists, everyone)
    fused = _held_out(lists, everyone, lambda training: _choose(lists, training)).mean()
    best = max(SIMPLE, key=lambda candidate: found["ndcg"][candidate.name])
    if chosen.strength is not None and fused <= found["ndcg"][best.name]:
        found["reason"] = f"learned weights came to {fused:.4f} on held-out queries, no more than {best.name} alone"
        chosen = best
    if chosen.strength is None:
        fused = found["ndcg"][chosen.name]
    found["ndcg"]["fused"] = float(fused)
    found |= {"chosen": chosen.name, "strength": chosen.strength}
    return _fusion(lists, chosen, everyone), found


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
    """For each query, in order of their ids: the places of its rows in the frame, and their features."""
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

    weights = np.zeros(len(FEATURES))
    columns = [FEATURES.index(name) for name in candidate.features]
    if candidate.strength is None:
        weights[columns] = 1.0
        return weights
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


def _fusion(lists: _CandidateLists, candidate: Candidate, training: NDArray[np.bool_]) -> Fusion:
    weights = _weights(lists, candidate, training)
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
