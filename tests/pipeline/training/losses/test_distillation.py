"""Terms over tokens against loops in numpy that follow the published definitions, with padding that must not count."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor

from pipeline.errors import ShapeError
from pipeline.training.losses import distillation, token_distillation

LENGTHS = (5, 2, 3)
TOKENS = max(LENGTHS)
MASK = torch.tensor([[1] * length + [0] * (TOKENS - length) for length in LENGTHS])
REAL = sum(LENGTHS)

Array = NDArray[Any]


def states(seed: int, *shape: int) -> tuple[Tensor, Array]:
    tensor = torch.randn(len(LENGTHS), *shape, generator=torch.Generator().manual_seed(seed))
    return tensor, tensor.double().numpy()


def real(row: int) -> range:
    return range(LENGTHS[row])


def test_logit_loss_by_hand() -> None:
    loss = distillation.logit_loss(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, 2.5]))
    assert float(loss) == pytest.approx((1 + 4 + 4) / 3)


def test_token_loss_is_the_published_masked_mean() -> None:
    """Squares of real tokens over (real tokens × width)."""
    (ours, first), (theirs, second) = states(0, TOKENS, 6), states(1, TOKENS, 6)
    total = sum(((first[row, token] - second[row, token]) ** 2).sum() for row in range(3) for token in real(row))
    assert float(token_distillation.token_loss(ours, theirs, MASK)) == pytest.approx(total / (REAL * 6), rel=1e-5)


def test_attention_loss_is_the_published_masked_sum_over_heads() -> None:
    """Squares of pairs of real tokens, all heads added up, over the squared lengths."""
    (ours, first), (theirs, second) = states(2, 4, TOKENS, TOKENS), states(3, 4, TOKENS, TOKENS)
    total = sum(
        ((first[row, :, i, j] - second[row, :, i, j]) ** 2).sum()
        for row in range(3)
        for i in real(row)
        for j in real(row)
    )
    expected = total / sum(length**2 for length in LENGTHS)
    assert float(token_distillation.attention_loss(ours, theirs, MASK)) == pytest.approx(expected, rel=1e-5)


def test_cosine_loss_is_one_minus_the_mean_cosine_of_real_tokens() -> None:
    (ours, first), (theirs, second) = states(4, TOKENS, 6), states(5, TOKENS, 6)
    cosines = [
        first[row, token] @ second[row, token] / np.linalg.norm(first[row, token]) / np.linalg.norm(second[row, token])
        for row in range(3)
        for token in real(row)
    ]
    assert float(token_distillation.cosine_loss(ours, theirs, MASK)) == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert float(token_distillation.cosine_loss(ours, -2 * ours, MASK)) == pytest.approx(2, rel=1e-5)


def relations(left: Array, right: Array, row: int, head: int, width: int) -> Array:
    """(real, real) log-probabilities of one relation head of one document."""
    part = slice(head * width, (head + 1) * width)
    log_probabilities: Array = log_softmax(
        left[row, : LENGTHS[row], part] @ right[row, : LENGTHS[row], part].T / np.sqrt(width), axis=-1
    )
    return log_probabilities


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_loss_of_two_widths(heads: int) -> None:
    """Mean over heads and real tokens of a document of the divergence, then over documents."""
    (queries, q), (keys, k) = states(6, TOKENS, 8), states(7, TOKENS, 8)
    (wide_queries, wq), (wide_keys, wk) = states(8, TOKENS, 12), states(9, TOKENS, 12)
    documents = []
    for row in range(3):
        divergences = []
        for head in range(heads):
            ours = relations(q, k, row, head, 8 // heads)
            theirs = relations(wq, wk, row, head, 12 // heads)
            divergences += list((np.exp(theirs) * (theirs - ours)).sum(-1))
        documents.append(np.sum(divergences) / (heads * LENGTHS[row]))
    loss = token_distillation.relation_loss((queries, keys), (wide_queries, wide_keys), MASK, heads)
    assert float(loss) == pytest.approx(np.mean(documents), rel=1e-4)
    same = token_distillation.relation_loss((queries, keys), (queries, keys), MASK, heads)
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_value_relations_do_not_know_a_rotation_within_a_head() -> None:
    values, _ = states(10, TOKENS, 8)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(11)))[0]
    turned = values @ turn
    assert float(token_distillation.relation_loss((turned, turned), (values, values), MASK, 1)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(token_distillation.relation_loss((turned, turned), (values, values), MASK, 2)) > 1e-3


def test_a_softened_class_head_of_two_grades_is_the_published_cross_entropy() -> None:
    """One threshold is a class head with logits (0, score − b): kd_ce less the teacher's entropy, times T²."""
    scores, teacher, level, temperature = torch.tensor([0.4, -1.0]), torch.tensor([2.0, 0.3]), torch.tensor([0.2]), 3.0
    ours, theirs = (
        np.stack([np.zeros(2), (logits - level).numpy()], axis=1) / temperature for logits in (scores, teacher)
    )
    wanted = softmax(theirs, axis=1)
    published = -(wanted * log_softmax(ours, axis=1)).sum(1).mean()
    entropy = -(wanted * np.log(wanted)).sum(1).mean()
    loss = distillation.soft_ordinal_loss(scores, level, teacher, level, temperature)
    assert float(loss) == pytest.approx((published - entropy) * temperature**2, rel=1e-4)


def lists(seed: int, n: int = 12, queries: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, the teacher's scores and the queries of n documents, in no order."""
    rng = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, queries, (n,), generator=rng)
    return torch.randn(n, generator=rng), torch.randn(n, generator=rng) * 3, groups


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_listwise_loss_is_torchs_divergence_query_by_query(seed: int, temperature: float) -> None:
    scores, targets, groups = lists(seed)
    divergences = [
        torch.nn.functional.kl_div(
            (scores[groups == query] / temperature).log_softmax(0),
            (targets[groups == query] / temperature).softmax(0),
            reduction="sum",
        )
        for query in groups.unique()
    ]
    loss = distillation.listwise_loss(scores, targets, groups, temperature)
    assert loss.item() == pytest.approx(temperature**2 * torch.stack(divergences).mean().item(), rel=1e-4)
    assert distillation.listwise_loss(targets, targets, groups, temperature).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_infonce_loss_is_cross_entropy_with_the_teachers_best(seed: int) -> None:
    scores, targets, groups = lists(seed)
    targets = targets.round()  # Ties, of which the first document is the positive.
    entropies = [
        torch.nn.functional.cross_entropy(scores[groups == query][None], targets[groups == query].argmax()[None])
        for query in groups.unique()
    ]
    loss = distillation.infonce_loss(scores, targets, groups)
    assert loss.item() == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-4)


def test_listwise_losses_of_single_documents_are_zero_and_stay_finite_far_out() -> None:
    alone = torch.arange(3)
    scores = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    for groups in (alone, torch.zeros(3, dtype=torch.long)):
        for loss in (
            distillation.listwise_loss(scores, -scores.detach(), groups, 1.0),
            distillation.infonce_loss(scores, -scores.detach(), groups),
        ):
            (gradient,) = torch.autograd.grad(loss, scores)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
            if groups is alone:
                assert loss.item() == 0


TERMS = {
    "token": (token_distillation.token_loss, (TOKENS, 6), REAL),
    "attention": (token_distillation.attention_loss, (4, TOKENS, TOKENS), sum(length**2 for length in LENGTHS)),
    "cosine": (token_distillation.cosine_loss, (TOKENS, 6), REAL),
    "relation": (
        lambda ours, theirs, mask, total: token_distillation.relation_loss(
            (ours, ours), (theirs, theirs), mask, 2, total=total
        ),
        (TOKENS, 6),
        len(LENGTHS),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_padding_learns_nothing_and_the_teacher_neither(name: str) -> None:
    term, shape, total = TERMS[name]
    ours, theirs = (states(seed, *shape)[0].requires_grad_() for seed in (12, 13))
    term(ours, theirs, MASK, total=total).backward()  # type: ignore[operator]
    assert theirs.grad is None
    assert ours.grad is not None
    by_token = ours.grad.abs().sum(-1) if ours.ndim == 3 else ours.grad.abs().sum((1, 3))
    assert (by_token[MASK == 0] == 0).all()
    assert (by_token[MASK == 1] > 0).all()


@pytest.mark.parametrize("name", TERMS)
def test_documents_one_by_one_add_up_to_all_of_them(name: str) -> None:
    """Each cut to its own length: value and gradient of the padded three."""
    term, shape, total = TERMS[name]
    ours, theirs = states(14, *shape)[0].requires_grad_(), states(15, *shape)[0]
    full = term(ours, theirs, MASK, total=total)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(full, ours)
    parts = []
    for row, length in enumerate(LENGTHS):
        cut = (slice(row, row + 1), ...) + (
            (slice(length), slice(length)) if ours.ndim == 4 else (slice(length), slice(None))
        )
        parts.append(term(ours[cut], theirs[cut], MASK[row : row + 1, :length], total=total))  # type: ignore[operator]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), ours)
    assert torch.stack(parts).sum().item() == pytest.approx(full.item(), rel=1e-5)
    assert torch.allclose(summed, gradient, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("name", TERMS)
def test_terms_stay_finite_far_out(name: str, scale: float) -> None:
    term, shape, total = TERMS[name]
    ours = (states(16, *shape)[0] * scale).requires_grad_()
    loss = term(ours, states(17, *shape)[0], MASK, total=total)  # type: ignore[operator]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(ours.grad).all()  # type: ignore[arg-type]


def test_unequal_heads_and_widths_are_named() -> None:
    with pytest.raises(ShapeError, match=r"attention_loss: shapes \(3, 2, 5, 5\) and \(3, 4, 5, 5\)"):
        token_distillation.attention_loss(torch.zeros(3, 2, 5, 5), torch.zeros(3, 4, 5, 5), MASK)
    for term in (token_distillation.token_loss, token_distillation.cosine_loss):
        with pytest.raises(ShapeError, match=r"\(3, 5, 6\) and \(3, 5, 8\)"):
            term(torch.zeros(3, 5, 6), torch.zeros(3, 5, 8), MASK)
    with pytest.raises(ShapeError, match="5 heads do not divide 6"):
        token_distillation.relation_loss((torch.zeros(3, 5, 6),) * 2, (torch.zeros(3, 5, 10),) * 2, MASK, 5)
