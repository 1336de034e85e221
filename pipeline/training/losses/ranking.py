"""The losses of ranking, each a pure function of scores; `distillation` has those that match a teacher.

Each is a mean over documents, ordered pairs or queries. Where a step goes through the model in
several chunks, a chunk passes `total`, the count over the whole step; the chunks' values then add up to the value of
one big batch, and so do their gradients. Without `total` the count of this call is taken.

Shapes: n documents, of any queries, in any order; `groups` (n,) int64 says which query each belongs to, from 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ShapeError

IGNORE = -1e4
"""A logit that takes no part in a softmax; finite, so that a row of them gives no NaN."""


def grade_log_probabilities(scores: Tensor, thresholds: Tensor, temperature: float = 1.0) -> Tensor:
    """log P(grade = g) under the cumulative link P(grade ≥ k) = sigmoid((score − b_k) / temperature).

    Written as log σ(a) + log σ(−b) + log(1 − e^(b−a)) for the difference σ(a) − σ(b), which loses no digits
    where both are near 0 or 1.

    Args:
        scores: (n,) float.
        thresholds: (grades,) strictly ascending; grade g from 1 starts at thresholds[g − 1].

    Returns:
        (n, grades + 1), grade 0 first.

    Source: McCullagh, Regression models for ordinal data, JRSS B 1980.
    """
    above = (scores.unsqueeze(1) - thresholds.unsqueeze(0)) / temperature  # (n, grades)
    reach = F.pad(F.logsigmoid(above), (1, 0))  # log P(grade ≥ g); P(grade ≥ 0) = 1
    stop = F.pad(F.logsigmoid(-above), (0, 1))  # log P(grade < g + 1)
    gaps = thresholds.diff() / temperature  # (grades − 1,)
    between = F.pad(torch.log(-torch.expm1(-gaps)), (1, 1))
    return reach + stop + between


def ordinal_loss(scores: Tensor, grades: Tensor, thresholds: Tensor, *, total: float | None = None) -> Tensor:
    """Negative log-likelihood of the grades under the cumulative link, mean over documents.

    Args:
        scores: (n,) float.
        grades: (n,) int64 in 0..len(thresholds).
        thresholds: (grades,) strictly ascending.
        total: documents of the whole step.

    Returns:
        Scalar ≥ 0.

    Raises:
        ShapeError: the shapes differ, or a grade has no threshold.
    """
    same_shape(scores, grades, "ordinal_loss")
    if len(grades) and int(grades.max()) > len(thresholds):
        raise ShapeError(
            f"ordinal_loss: grade {int(grades.max())}, but {len(thresholds)} thresholds; one a grade above 0"
        )
    likely = grade_log_probabilities(scores, thresholds).gather(1, grades.unsqueeze(1))  # (n, 1)
    return -likely.sum() / counted(total, len(scores))


def ordered_pairs(grades: Tensor, groups: Tensor) -> int:
    """The number of document pairs of one query with different grades: the `total` of `ranknet_loss`."""
    return int(_better(grades, groups).sum())


def ranknet_loss(scores: Tensor, grades: Tensor, groups: Tensor, *, total: float | None = None) -> Tensor:
    """log(1 + e^−(s_i − s_j)) for documents i, j of one query with grade_i > grade_j, mean over such pairs.

    Args:
        scores: (n,) float.
        grades: (n,) int64.
        groups: (n,) int64.
        total: ordered pairs of the whole step.

    Returns:
        Scalar ≥ 0; 0 where no query has two grades.

    Source: Burges et al., Learning to rank using gradient descent, ICML 2005.
    """
    same_shape(scores, grades, "ranknet_loss")
    same_shape(scores, groups, "ranknet_loss")
    better = _better(grades, groups)  # (n, n)
    gaps = (scores.unsqueeze(1) - scores.unsqueeze(0))[better]  # (pairs,)
    return F.softplus(-gaps).sum() / counted(total, len(gaps))


def hinge_loss(scores: Tensor, grades: Tensor, groups: Tensor, margin: float, *, total: float | None = None) -> Tensor:
    """max(0, margin − (s_i − s_j)) for documents i, j of one query with grade_i > grade_j, mean over such pairs.

    Args:
        scores: (n,) float.
        grades: (n,) int64.
        groups: (n,) int64.
        margin: the lead that the better document's score should have, above 0.
        total: ordered pairs of the whole step.

    Returns:
        Scalar ≥ 0; 0 where no query has two grades.

    Source: Herbrich, Graepel and Obermayer, Large margin rank boundaries for ordinal regression, 2000.
    """
    same_shape(scores, grades, "hinge_loss")
    same_shape(scores, groups, "hinge_loss")
    better = _better(grades, groups)  # (n, n)
    gaps = (scores.unsqueeze(1) - scores.unsqueeze(0))[better]  # (pairs,)
    return F.relu(margin - gaps).sum() / counted(total, len(gaps))


def listnet_loss(scores: Tensor, grades: Tensor, groups: Tensor, *, total: float | None = None) -> Tensor:
    """Cross-entropy of softmax(scores) against softmax(grades) within each query, mean over queries.

    The top-one probabilities of the paper. Equal grades ask for equal scores, and one document for nothing.

    Args:
        scores: (n,) float.
        grades: (n,) int64.
        groups: (n,) int64.
        total: queries of the whole step.

    Returns:
        Scalar ≥ 0; at its least the entropy of the grades' softmax.

    Source: Cao et al., Learning to rank: from pairwise approach to listwise approach, ICML 2007.
    """
    same_shape(scores, grades, "listnet_loss")
    same_shape(scores, groups, "listnet_loss")
    logs = group_log_softmax(scores, groups)
    shares = group_log_softmax(grades.to(scores.dtype), groups).exp()
    return -(shares * logs).sum() / counted(total, query_count(groups))


def lambdarank_loss(scores: Tensor, grades: Tensor, groups: Tensor, *, total: float | None = None) -> Tensor:
    """RankNet whose pairs weigh what their swap would change in nDCG, sum over a query's pairs, mean over queries.

    The scheme is LambdaRank's, which LambdaLoss shows to bound nDCG: the weight of documents i and j is
    |grade_i − grade_j| · |1 / log2(1 + rank_i) − 1 / log2(1 + rank_j)| / ideal DCG. The gain is linear, as in the
    report's headline nDCG; ranks come from the scores as they are now, of equals the earlier first, and give no
    gradient; no rank is cut off; the logarithm of the loss is natural.

    Args:
        scores: (n,) float.
        grades: (n,) int64 ≥ 0.
        groups: (n,) int64.
        total: queries of the whole step.

    Returns:
        Scalar ≥ 0; 0 where no query has two grades.

    Source: Burges, From RankNet to LambdaRank to LambdaMART, MSR-TR-2010-82; Wang et al., The LambdaLoss framework
    for ranking metric optimization, CIKM 2018.
    """
    same_shape(scores, grades, "lambdarank_loss")
    same_shape(scores, groups, "lambdarank_loss")
    together = groups.unsqueeze(1) == groups.unsqueeze(0)  # (n, n)
    gains = grades.to(scores.dtype)
    discounts = 1 / torch.log2(2.0 + _before(scores.detach(), together))  # (n,) of the present order
    ideal = (together * (gains / torch.log2(2.0 + _before(gains, together)))).sum(1)  # (n,) DCG of the query's best
    better = _better(grades, groups)
    swap = (gains.unsqueeze(1) - gains.unsqueeze(0)) * (discounts.unsqueeze(1) - discounts.unsqueeze(0)).abs()
    swap = swap / ideal.clamp(min=1e-9).unsqueeze(1)  # (n, n), of the better document's row
    gaps = (scores.unsqueeze(1) - scores.unsqueeze(0))[better]  # (pairs,)
    return (swap[better] * F.softplus(-gaps)).sum() / counted(total, query_count(groups))


def margin_loss(scores: Tensor, targets: Tensor, groups: Tensor, *, total: float | None = None) -> Tensor:
    """Squared error of score differences within each query, mean over documents.

    Over all pairs of a list, the mean of ((s_i − s_j) − (t_i − t_j))² is twice the variance of s − t: so this is the
    squared error after each query's mean was taken off, in O(n).

    Args:
        scores: (n,) float.
        targets: (n,) of the teacher; receives no gradient.
        groups: (n,) int64.
        total: documents of the whole step.

    Returns:
        Scalar ≥ 0; 0 where each query has one document.

    Source: Hofstätter et al., Improving efficient neural ranking models with cross-architecture knowledge
    distillation, arXiv:2010.02666 (margin-MSE over one pair).
    """
    same_shape(scores, targets, "margin_loss")
    same_shape(scores, groups, "margin_loss")
    return centred(scores - targets.detach(), groups).square().sum() / counted(total, len(scores))


def centred(values: Tensor, groups: Tensor) -> Tensor:
    """Subtracts from each value the mean of its group, (n,)."""
    size = int(groups.max()) + 1 if len(groups) else 0
    sums = values.new_zeros(size).index_add(0, groups, values)  # (groups,)
    counts = torch.bincount(groups, minlength=size).clamp(min=1)
    return values - (sums / counts)[groups]


def contrast_loss(
    similarities: Tensor, positive: Tensor, allowed: Tensor, temperature: float, *, total: float | None = None
) -> Tensor:
    """Each positive against the negatives of its query: −log softmax, mean over positives, then over queries.

    Args:
        similarities: (queries, documents) cosines.
        positive: (queries, documents) bool.
        allowed: (queries, documents) bool, documents that may count as negative: of other queries, and not known
            to this one. Positives are never negatives.
        temperature: above 0; divides the cosines.
        total: queries with a positive of the whole step.

    Returns:
        Scalar ≥ 0; 0 where no query has a positive.

    Source: van den Oord et al., arXiv:1807.03748 (InfoNCE); in-batch negatives as in Karpukhin et al., EMNLP 2020.
    """
    logits = similarities / temperature
    against = logits.masked_fill(~allowed | positive, IGNORE).logsumexp(1, keepdim=True)  # (queries, 1)
    losses = F.softplus(against - logits).masked_fill(~positive, 0.0)  # −log(e^p / (e^p + Σ e^n))
    counts = positive.sum(1)  # (queries,)
    return (losses.sum(1) / counts.clamp(min=1)).sum() / counted(total, int((counts > 0).sum()))


def _better(grades: Tensor, groups: Tensor) -> Tensor:
    """(n, n) bool: row's document is of the same query as the column's, and of a higher grade."""
    return (groups.unsqueeze(1) == groups.unsqueeze(0)) & (grades.unsqueeze(1) > grades.unsqueeze(0))


def group_log_softmax(values: Tensor, groups: Tensor) -> Tensor:
    """(n,) logarithm of the softmax over the values of the same group."""
    together = groups.unsqueeze(1) == groups.unsqueeze(0)  # (n, n)
    return values - _group_logsumexp(values, together)


def _group_logsumexp(values: Tensor, together: Tensor) -> Tensor:
    """(n,) log Σ e^value over the documents of the same query."""
    return values.unsqueeze(0).masked_fill(~together, -torch.inf).logsumexp(1)


def _before(values: Tensor, together: Tensor) -> Tensor:
    """(n,) how many documents of the same query stand before this one when the values descend."""
    index = torch.arange(len(values), device=values.device)
    higher = values.unsqueeze(0) > values.unsqueeze(1)
    earlier = (values.unsqueeze(0) == values.unsqueeze(1)) & (index.unsqueeze(0) < index.unsqueeze(1))
    return (together & (higher | earlier)).sum(1)


def query_count(groups: Tensor) -> int:
    return int((torch.bincount(groups) > 0).sum())


def counted(total: float | None, here: Tensor | int) -> float:
    """The divisor of a mean: the count over the step where the caller gives it, else that of this call; never 0."""
    return max(1.0, float(here if total is None else total))


def same_shape(first: Tensor, second: Tensor, where: str) -> None:
    """Checks that two tensors have one shape.

    Raises:
        ShapeError: they have not; names the loss.
    """
    if first.shape != second.shape:
        raise ShapeError(f"{where}: shapes {tuple(first.shape)} and {tuple(second.shape)} differ")
