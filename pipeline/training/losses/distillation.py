"""Distillation losses over scores and pooled states: pure functions of student and teacher outputs for the same inputs.

Each loss is a sum divided by `total`, the count of documents, queries or tokens in the whole step; None takes the count
of the inputs. So the values of a step's chunks, and their gradients, add up to those of one big batch. The teacher's
outputs never receive a gradient.

Losses over the states of single tokens are in `token_distillation`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ShapeError
from pipeline.training.losses.ranking import (
    IGNORE,
    counted,
    grade_log_probabilities,
    group_log_softmax,
    query_count,
    same_shape,
)


def soft_ordinal_loss(
    scores: Tensor,
    thresholds: Tensor,
    teacher_scores: Tensor,
    teacher_thresholds: Tensor,
    temperature: float,
    *,
    total: float | None = None,
) -> Tensor:
    """KL divergence of the student's grade distribution from the teacher's, both softened, times temperature².

    Scores and thresholds are divided by the temperature; the factor keeps the gradient's size. It is the soft
    cross-entropy less the teacher's own entropy, so 0 means equal.

    Args:
        scores: (n,) of the student.
        thresholds: (grades,) of the student.
        teacher_scores: (n,); receives no gradient.
        teacher_thresholds: (grades,); receives no gradient.
        temperature: above 0.
        total: documents of the whole step.

    Returns:
        Scalar ≥ 0, mean over documents.

    Raises:
        ShapeError: the shapes differ.

    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, arXiv:1503.02531.
    """
    same_shape(scores, teacher_scores, "soft_ordinal_loss")
    same_shape(thresholds, teacher_thresholds, "soft_ordinal_loss")
    student = grade_log_probabilities(scores, thresholds, temperature)  # (n, grades + 1)
    teacher = grade_log_probabilities(teacher_scores.detach(), teacher_thresholds.detach(), temperature)
    divergence = (teacher.exp() * (teacher - student)).sum()
    return divergence * temperature**2 / counted(total, len(scores))


def patient_kd_loss(student: Tensor, teacher: Tensor, *, total: float | None = None) -> Tensor:
    """Distance between the directions of matched first-token states.

    The paper sums over examples and layers. We average, so that the term's weight means the same at any batch size.

    Args:
        student: (n, layers, hidden) float.
        teacher: (n, layers, hidden) float; receives no gradient.
        total: documents of the whole step.

    Returns:
        Scalar in [0, 4], the mean squared distance between unit vectors; 0 without layers.

    Raises:
        ShapeError: the shapes differ.

    Source: Sun et al., Patient knowledge distillation, EMNLP 2019, arXiv:1908.09355.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"patient_kd_loss: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
            "choose teacher layers with ranker.layer_map and states as wide as the student"
        )
    gap = F.normalize(student, dim=-1) - F.normalize(teacher.detach(), dim=-1)
    distances = gap.square().sum(dim=-1)  # (n, layers)
    return distances.sum() / (counted(total, len(student)) * max(1, student.shape[1]))


def logit_loss(scores: Tensor, targets: Tensor, *, total: float | None = None) -> Tensor:
    """Squared error of the scores themselves, mean over documents.

    Args:
        scores: (n,) float.
        targets: (n,) of the teacher.
        total: documents of the whole step.

    Returns:
        Scalar ≥ 0.

    Raises:
        ShapeError: the shapes differ.

    Source: Ba and Caruana, Do deep nets really need to be deep?, NeurIPS 2014; `kd_mse_loss` of TextBrewer.
    """
    same_shape(scores, targets, "logit_loss")
    return (scores - targets.detach()).square().sum() / counted(total, len(scores))


def listwise_loss(
    scores: Tensor, targets: Tensor, groups: Tensor, temperature: float, *, total: float | None = None
) -> Tensor:
    """KL divergence of the student's softmax over a query's documents from the teacher's, mean over queries.

    Both are softened by the temperature; the factor temperature² keeps the gradient's size. 0 means equal shares.

    Args:
        scores: (n,) float.
        targets: (n,) of the teacher; receives no gradient.
        groups: (n,) int64, number of the query.
        temperature: above 0.
        total: queries of the whole step.

    Returns:
        Scalar ≥ 0; 0 where each query has one document.

    Raises:
        ShapeError: the shapes differ.

    Source: Cao et al., Learning to rank: from pairwise approach to listwise approach, ICML 2007, with the teacher's
    scores for the grades.
    """
    same_shape(scores, targets, "listwise_loss")
    same_shape(scores, groups, "listwise_loss")
    student = group_log_softmax(scores / temperature, groups)  # (n,)
    teacher = group_log_softmax(targets.detach() / temperature, groups)
    divergence = (teacher.exp() * (teacher - student)).sum()
    return divergence * temperature**2 / counted(total, query_count(groups))


def infonce_loss(scores: Tensor, targets: Tensor, groups: Tensor, *, total: float | None = None) -> Tensor:
    """Cross-entropy of a query's documents with the one that the teacher scores highest as the only positive.

    Mean over queries. Of documents that the teacher scores alike the first is the positive.

    Args:
        scores: (n,) float.
        targets: (n,) of the teacher; decides on the positive and receives no gradient.
        groups: (n,) int64, number of the query.
        total: queries of the whole step.

    Returns:
        Scalar ≥ 0; 0 where each query has one document.

    Raises:
        ShapeError: the shapes differ.

    Source: van den Oord et al., Representation learning with contrastive predictive coding, arXiv:1807.03748; as the
    localized contrastive estimation of Gao et al., ECIR 2021, for re-rankers.
    """
    same_shape(scores, targets, "infonce_loss")
    same_shape(scores, groups, "infonce_loss")
    logs = group_log_softmax(scores, groups)  # (n,)
    order = torch.argsort(targets.detach(), descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]  # By query, the best first.
    ordered = groups[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return -logs[order[first]].sum() / counted(total, query_count(groups))


def similarity_loss(student: Tensor, teacher: Tensor, temperature: float, *, total: float | None = None) -> Tensor:
    """KL divergence of each text's similarity distribution over the others from the teacher's, mean over texts.

    What is matched is which of the other texts are near, not the vectors, so the widths may differ.

    Args:
        student: (n, dimensions) of unit length.
        teacher: (n, hidden) of unit length, of the same texts.
        temperature: above 0; divides the cosines of both.
        total: texts of the whole step.

    Returns:
        Scalar ≥ 0; 0 for fewer than three texts, as there is then nothing to compare.

    Raises:
        ShapeError: not as many vectors of each.

    Source: Fang et al., SEED: self-supervised distillation for visual representation, ICLR 2021, arXiv:2101.04731,
    with the batch in place of a queue.
    """
    if len(student) != len(teacher):
        raise ShapeError(f"similarity_loss: {len(student)} vectors of the student and {len(teacher)} of the teacher")
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    ours, theirs = (
        (vectors @ vectors.T / temperature).masked_fill(itself, IGNORE).log_softmax(1)  # (n, n)
        for vectors in (student, teacher.detach())
    )
    return (theirs.exp() * (theirs - ours)).sum() / counted(total, len(student))
