"""Distillation losses over tokens: pure functions of what student and teacher give for each token of the same inputs.

They take a padded batch; `mask` (batch, tokens) is 1 for a real token, and padding does not count. Each loss is a sum
divided by `total`, the count of documents or tokens in the whole step; None takes the count of the inputs. The
teacher's outputs never receive a gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ShapeError
from pipeline.training.losses.ranking import IGNORE, counted, same_shape


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
