"""Ways to join the features of a pool's documents into one order, and the choice among them by cross-validation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Artifact
from pipeline.errors import SchemaError
from pipeline.evaluation import metrics
from pipeline.feature_tables import SCORES, by_query
from pipeline.features import FEATURES, field_features

if TYPE_CHECKING:
    import pandas as pd

MEASURE = "ndcg@10"
"""The measure that candidates are compared by."""
FOLDS = 5
"""Number of parts into which the queries are cut for cross-validation."""
TOLERANCE = 0.001
"""A simpler candidate is taken when its mean measure is no further than this below the best."""
MAX_PAIRS = 20_000
"""Maximum number of pairs to learn from; sampled evenly from the queries, at most PAIRS_PER_QUERY of each. A query
counts the same whatever its number of pairs."""
PAIRS_PER_QUERY = 60
"""Most pairs of documents of one query that weights are learned from; of more pairs these are drawn."""
SEED = 13
"""Seed of the drawn pairs and of the folds."""

RANKS = tuple(f"{name}_reciprocal_rank" for name in SCORES)
"""Names of the features that are reciprocal ranks by one score."""
_LEARNED = (("bm25", "ranker"), ("encoder", "ranker"), SCORES, (*SCORES, "ranker_reciprocal_rank"), FEATURES)
_LEARNED_WITHOUT_RANKER = (("bm25", "encoder"), tuple(name for name in FEATURES if not name.startswith("ranker")))
_STRENGTHS = (0.01, 0.3)
"""Values of scikit-learn's C, the strongest regularisation first."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    Candidate("rrf", RANKS[:2]),
    Candidate("rrf_all", RANKS),
)
"""`rrf` joins BM25 and encoder, `rrf_all` the ranker too."""


def candidates(names: Sequence[str]) -> tuple[Candidate, ...]:
    """All candidates for these features, the simplest first: SIMPLE, then learned ones.

    Where fields are indexed apart, learned ones that weigh the fields' own scores too come last.
    """
    learned = _LEARNED if "ranker" in names else _LEARNED_WITHOUT_RANKER
    apart = field_features(names)
    sets = [*learned, *((*each, *apart) for each in learned if apart and {"bm25", "encoder"} <= set(each))]
    weighed = (Candidate(" + ".join(each), each, strength) for each in sets for strength in _STRENGTHS)
    return (*simple_orders(names), *weighed)


def simple_orders(names: Sequence[str]) -> tuple[Candidate, ...]:
    """The candidates of SIMPLE that need no other features than these."""
    return tuple(candidate for candidate in SIMPLE if set(candidate.features) <= set(names))


@dataclass(frozen=True, slots=True)
class CandidateLists:
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
    names: tuple[str, ...] = FEATURES
    """The features, in the order of the columns; those of the ranker are missing where there is none."""

    @property
    def queries(self) -> int:
        return int(self.query.max(initial=-1)) + 1

    def ndcg(self, scores: Floats, chosen: NDArray[np.bool_]) -> Floats:
        """nDCG of the chosen queries, ranked by a score for each document, (chosen queries,).

        The ideal order is that of the documents in the pool.
        """
        here = chosen[self.query]
        return metrics.by_query(self.query[here], self.grade[here], scores[here], [MEASURE], ids=self.doc[here])[
            MEASURE
        ]


def judged_features(features: Artifact, pool: Artifact) -> "pd.DataFrame":
    """The features of the valid rows with their grades, in order of the row ids; none of a ranker where there is none.

    Raises:
        SchemaError: a valid row is not in the pool.
    """
    import pandas as pd

    path = features.file("features.parquet")
    frame = pd.read_parquet(path)
    pairs = pd.read_parquet(pool.file("pairs.parquet"), columns=["row_id", "grade"])
    joined = frame[frame["split"] == "valid"].merge(pairs, on="row_id", how="left", validate="1:1")
    lost = joined["grade"].isna()
    if lost.any():
        row = joined["row_id"][lost].min()
        raise SchemaError(f"{path}: row {row} is not in the pool {pool.path}; make the features again from this pool")
    if "ranker" not in features.manifest.inputs:
        joined = joined.drop(columns="ranker")  # All zero, see `serving.runtime.offline`.
    return joined.sort_values("row_id", kind="stable").reset_index(drop=True)


def candidate_lists(judged: "pd.DataFrame") -> CandidateLists:
    """The lists and pairs of the queries whose documents differ in grade.

    Args:
        judged: see `fusion.fit`; without a column `ranker` where there is none.
    """
    ranked = "ranker" in judged.columns
    judged = judged if ranked else judged.assign(ranker=0.0)
    grades = judged["grade"].to_numpy(dtype=np.float64)
    docs = np.unique(judged["doc_id"].to_numpy(dtype=str), return_inverse=True)[1]
    generator = np.random.Generator(np.random.PCG64(SEED))
    query: list[Ints] = []
    doc: list[Ints] = []
    pair_query: list[Ints] = []
    grade: list[Floats] = []
    rows: list[Floats] = []
    pairs: list[Floats] = []
    features_of = by_query(judged)
    most = min(PAIRS_PER_QUERY, max(1, MAX_PAIRS // max(1, len(features_of))))
    for indices, features in features_of:
        own = grades[indices]
        better, worse = _ordered_pairs(own, most, generator)
        if not len(better):
            continue
        number = len(query)
        query.append(np.full(len(indices), number))
        pair_query.append(np.full(len(better), number))
        pairs.append(features[better] - features[worse])
        doc.append(docs[indices])
        grade.append(own)
        rows.append(features)
    names = (*FEATURES, *field_features(judged.columns))
    known = [number for number, name in enumerate(names) if ranked or not name.startswith("ranker")]
    none = np.zeros((0, len(names)))
    return CandidateLists(
        query=_joined(query).astype(np.int64),
        doc=_joined(doc).astype(np.int64),
        grade=_joined(grade),
        rows=np.concatenate([none, *rows])[:, known],
        pair_query=_joined(pair_query).astype(np.int64),
        pairs=np.concatenate([none, *pairs])[:, known],
        names=tuple(names[number] for number in known),
    )


def _ordered_pairs(grades: Floats, most: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """The indices of the better and the worse document of each pair of different grade; at most `most`, drawn."""
    better, worse = np.nonzero(grades[:, np.newaxis] > grades)
    if len(better) > most:
        kept = generator.choice(len(better), most, replace=False)
        better, worse = better[kept], worse[kept]
    return better, worse


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0), *parts])


def candidate_weights(lists: CandidateLists, candidate: Candidate, training: NDArray[np.bool_]) -> Floats:
    """(features,) weights; learned ones from the training queries.

    The loss is RankNet's: logistic in the difference of two documents' scores, a pair's weight being one over
    the pairs of its query.
    """
    from sklearn.linear_model import LogisticRegression

    if candidate.strength is None:
        return equal_weights(candidate, lists.names)
    weights = np.zeros(len(lists.names))
    columns = [lists.names.index(name) for name in candidate.features]
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


def equal_weights(candidate: Candidate, names: Sequence[str] = FEATURES) -> Floats:
    """(features,) 1 for each feature of the candidate, 0 for the others of these names."""
    return np.isin(names, candidate.features).astype(np.float64)


def held_out_ndcg(
    lists: CandidateLists, among: NDArray[np.bool_], choose: Callable[[NDArray[np.bool_]], Candidate]
) -> Floats:
    """(queries among,) nDCG of each query by weights that were chosen and learned without its fold."""
    members = np.flatnonzero(among)
    fold = np.random.Generator(np.random.PCG64(SEED)).permutation(len(members)) % min(FOLDS, len(members))
    values = np.zeros(lists.queries)
    for number in range(int(fold.max()) + 1):
        held = np.zeros(lists.queries, dtype=bool)
        held[members[fold == number]] = True
        training = among & ~held
        values[held] = lists.ndcg(lists.rows @ candidate_weights(lists, choose(training), training), held)
    return values[among]


def choose(lists: CandidateLists, among: NDArray[np.bool_]) -> Candidate:
    """The simplest candidate that cross-validation over these queries finds within TOLERANCE of the best."""

    def always(candidate: Candidate) -> Callable[[NDArray[np.bool_]], Candidate]:
        return lambda _: candidate

    known = candidates(lists.names)
    means = [float(held_out_ndcg(lists, among, always(candidate)).mean()) for candidate in known]
    return next(candidate for candidate, mean in zip(known, means, strict=True) if mean >= max(means) - TOLERANCE)
