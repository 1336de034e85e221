"""Distillation losses: each is a pure function of student and teacher outputs for the same inputs.

Each loss is a sum divided by `total`, the count of documents, queries or tokens in the whole step; None takes the count
of the inputs. So the values of a step's chunks, and their gradients, add up to those of one big batch. The teacher's
outputs never receive a gradient.

Losses over tokens take a padded batch; `mask` (batch, tokens) is 1 for a real token, and padding does not count.
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


def token_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, total: float | None = None) -> Tensor:
    """Squared error of the states of all tokens, mean over real tokens and the width.

    Args:
        student: (batch, tokens, hidden) float.
        teacher: (batch, tokens, hidden) float.
        mask: (batch, tokens).
        total: real tokens of the whole step.

    Returns:
        Scalar ≥ 0.

    Raises:
        ShapeError: the shapes differ.

    Source: Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv:1909.10351; `hid_mse_loss` of TextBrewer.
    """
    same_shape(student, teacher, "token_loss")
    squares = (student.float() - teacher.detach().float()).square().mean(-1)  # (batch, tokens)
    return (squares * mask).sum() / counted(total, mask.sum())


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, total: float | None = None) -> Tensor:
    """Squared error of attention scores before their softmax, mean over pairs of real tokens, sum over heads.

    The sum over heads is that of TextBrewer's masked form; the paper's mean over heads is this divided by their number.

    Args:
        student: (batch, heads, tokens, tokens) float, scaled, without the mask.
        teacher: (batch, heads, tokens, tokens) float, likewise.
        mask: (batch, tokens).
        total: pairs of real tokens of the whole step: the sum of its squared lengths.

    Returns:
        Scalar ≥ 0.

    Raises:
        ShapeError: the shapes differ, as with unequal numbers of heads.

    Source: Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv:1909.10351; `att_mse_loss` of TextBrewer.
    """
    same_shape(student, teacher, "attention_loss")
    squares = (student.float() - teacher.detach().float()).square().sum(1)  # (batch, tokens, tokens)
    return torch.einsum("bij,bi,bj->", squares, mask.float(), mask.float()) / counted(total, mask.sum(1).square().sum())


def soft_token_loss(logits: Tensor, targets: Tensor, temperature: float, *, total: float | None = None) -> Tensor:
    """KL divergence of guessed tokens from the teacher's guesses, both softened, times temperature².

    Args:
        logits: (tokens, vocabulary) of the student.
        targets: (tokens, vocabulary) of the teacher; receives no gradient.
        temperature: above 0.
        total: guessed tokens of the whole step.

    Returns:
        Scalar ≥ 0, mean over tokens.

    Raises:
        ShapeError: the shapes differ.

    Source: Sanh et al., DistilBERT, arXiv:1910.01108.
    """
    same_shape(logits, targets, "soft_token_loss")
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(targets.detach().float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="sum")
    return divergence * temperature**2 / counted(total, len(logits))


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, total: float | None = None) -> Tensor:
    """1 − cosine of the states of each real token, mean over real tokens.

    Args:
        student: (batch, tokens, hidden) float.
        teacher: (batch, tokens, hidden) float.
        mask: (batch, tokens).
        total: real tokens of the whole step.

    Returns:
        Scalar in [0, 2].

    Raises:
        ShapeError: the shapes differ.

    Source: Sanh et al., DistilBERT, arXiv:1910.01108; `cos_loss` of TextBrewer.
    """
    same_shape(student, teacher, "cosine_loss")
    apart = 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)  # (batch, tokens)
    return (apart * mask).sum() / counted(total, mask.sum())


def relation_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    mask: Tensor,
    heads: int,
    *,
    total: float | None = None,
) -> Tensor:
    """KL divergence of the student's relations between tokens from the teacher's.

    The two vectors of a token, such as query and key, are cut into `heads` parts; the relation of two tokens is the
    scaled product of the first's part with the second's, softmax over the second. So student and teacher may have any
    widths and heads of their own. Mean over heads and real tokens of a document, then over documents.

    Args:
        student: two of (batch, tokens, width): queries and keys, or the values twice.
        teacher: two of (batch, tokens, width of its own).
        mask: (batch, tokens).
        heads: relation heads; must divide both widths.
        total: documents of the whole step.

    Returns:
        Scalar ≥ 0.

    Raises:
        ShapeError: heads that do not divide a width.

    Source: Wang et al., MiniLMv2, Findings of ACL 2021, arXiv:2012.15828; with query–key and value–value relations as
    in MiniLM, NeurIPS 2020, arXiv:2002.10957.
    """
    ours = _log_relations(*student, mask, heads)  # (batch, heads, tokens, tokens)
    with torch.no_grad():
        theirs = _log_relations(*teacher, mask, heads)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean(1)  # (batch, tokens)
    by_document = (divergence * mask).sum(1) / mask.sum(1).clamp(min=1)
    return by_document.sum() / counted(total, len(by_document))


def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Scaled dot products of each token's query with each token's key, (batch, heads, tokens, tokens) float32.

    Each head reads its part of the width; the scale is one over the square root of the part's width.

    Args:
        queries: (batch, tokens, width).
        keys: (batch, tokens, width).

    Raises:
        ShapeError: `heads` does not divide the width.
    """
    width = queries.shape[-1]
    if width % heads:
        raise ShapeError(f"{heads} heads do not divide {width}; choose ranker.relation_heads that divide both widths")
    left, right = (part.view(*part.shape[:2], heads, width // heads).transpose(1, 2) for part in (queries, keys))
    scale: float = (width // heads) ** -0.5
    return (left @ right.transpose(2, 3)).float() * scale


def _log_relations(first: Tensor, second: Tensor, mask: Tensor, heads: int) -> Tensor:
    logits = attention_scores(first, second, heads)
    return logits.masked_fill(mask[:, None, None, :] == 0, IGNORE).log_softmax(-1)


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
