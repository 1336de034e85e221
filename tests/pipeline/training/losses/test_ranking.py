"""Each loss against another road to the same number, then masks, empty cases and extreme values."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ShapeError
from pipeline.training.losses import distillation, ranking

THRESHOLDS = torch.tensor([-1.5, 0.2, 1.3])


def sample(seed: int, n: int = 24, queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, grades 0..3 and groups of n documents."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, generator=draw) * 2,
        torch.randint(0, 4, (n,), generator=draw),
        torch.randint(0, queries, (n,), generator=draw),
    )


def test_grade_probabilities_are_differences_of_sigmoids() -> None:
    scores = torch.linspace(-5, 5, 11)
    probabilities = ranking.grade_log_probabilities(scores, THRESHOLDS).exp().numpy()
    reach = np.concatenate(
        [np.ones((11, 1)), expit(scores.numpy()[:, None] - THRESHOLDS.numpy()), np.zeros((11, 1))], axis=1
    )
    assert probabilities == pytest.approx(reach[:, :-1] - reach[:, 1:], abs=1e-6)
    assert probabilities.sum(1) == pytest.approx(np.ones(11), abs=1e-6)


def test_one_threshold_is_binary_cross_entropy() -> None:
    scores, grades, _ = sample(0)
    grades = grades.clamp(max=1)
    loss = ranking.ordinal_loss(scores, grades, torch.tensor([0.3]))
    assert float(loss) == pytest.approx(float(F.binary_cross_entropy_with_logits(scores - 0.3, grades.float())))


@pytest.mark.parametrize("score", [-80.0, 80.0])
def test_ordinal_loss_stays_finite_far_out(score: float) -> None:
    scores = torch.full((4,), score, requires_grad=True)
    loss = ranking.ordinal_loss(scores, torch.arange(4), THRESHOLDS)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(scores.grad).all()  # type: ignore[union-attr]


def test_a_grade_without_threshold_is_refused() -> None:
    with pytest.raises(ShapeError, match="grade 4"):
        ranking.ordinal_loss(torch.zeros(1), torch.tensor([4]), THRESHOLDS)


@pytest.mark.parametrize("seed", range(5))
def test_ranknet_agrees_with_a_slow_loop(seed: int) -> None:
    scores, grades, groups = sample(seed)
    terms = [
        math.log1p(math.exp(-float(scores[i] - scores[j])))
        for i in range(len(scores))
        for j in range(len(scores))
        if groups[i] == groups[j] and grades[i] > grades[j]
    ]
    assert float(ranking.ranknet_loss(scores, grades, groups)) == pytest.approx(np.mean(terms), rel=1e-5)
    assert ranking.ordered_pairs(grades, groups) == len(terms)


def test_ranknet_of_equal_grades_is_zero_and_has_a_gradient() -> None:
    scores = torch.randn(4, requires_grad=True)
    loss = ranking.ranknet_loss(scores, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None


@pytest.mark.parametrize("seed", range(3))
def test_hinge_agrees_with_torchs_margin_ranking(seed: int) -> None:
    scores, grades, groups = sample(seed)
    indices = range(len(scores))
    better, worse = zip(
        *[(i, j) for i in indices for j in indices if groups[i] == groups[j] and grades[i] > grades[j]], strict=True
    )
    first, second = scores[list(better)], scores[list(worse)]
    expected = F.margin_ranking_loss(first, second, torch.ones(len(first)), margin=0.7)
    assert float(ranking.hinge_loss(scores, grades, groups, 0.7)) == pytest.approx(float(expected), rel=1e-5)
    far = torch.where(grades > 0, 50.0 * grades, -50.0)
    assert ranking.hinge_loss(far, grades, groups, 0.7).item() == 0


def test_listnet_is_the_mean_of_each_querys_soft_cross_entropy() -> None:
    scores, grades, groups = sample(4)
    terms = [
        float(F.cross_entropy(scores[kept][None], grades[kept].float().softmax(0)[None]))
        for kept in (groups == query for query in groups.unique())
    ]
    assert float(ranking.listnet_loss(scores, grades, groups)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_listnet_of_single_documents_is_zero_and_stays_finite_far_out() -> None:
    alone = torch.arange(3)
    assert ranking.listnet_loss(torch.tensor([9.0, -9.0, 0.0]), alone, alone).item() == pytest.approx(0, abs=1e-6)
    scores = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    ranking.listnet_loss(scores, torch.tensor([0, 3, 1]), torch.zeros(3, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(scores.grad).all()  # type: ignore[arg-type]


def ndcg(grades: list[int], order: list[int]) -> float:
    gain = sum(grades[doc] / math.log2(rank + 2) for rank, doc in enumerate(order))
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades, reverse=True)))


@pytest.mark.parametrize("seed", range(5))
def test_lambdarank_weighs_a_pair_by_what_its_swap_changes_in_ndcg(seed: int) -> None:
    """Against nDCG computed before and after each swap."""
    scores, grades, groups = sample(seed)
    total = 0.0
    for query in groups.unique().tolist():
        kept = (groups == query).nonzero()[:, 0].tolist()
        mine = [int(grades[doc]) for doc in kept]
        if not any(mine):
            continue
        values = [float(scores[doc]) for doc in kept]
        order = sorted(range(len(kept)), key=lambda doc: -values[doc])
        for i in range(len(kept)):
            for j in range(len(kept)):
                if mine[i] > mine[j]:
                    swapped = [{i: j, j: i}.get(doc, doc) for doc in order]
                    delta = abs(ndcg(mine, order) - ndcg(mine, swapped))
                    total += delta * math.log1p(math.exp(-(values[i] - values[j])))
    expected = total / len(groups.unique())
    assert float(ranking.lambdarank_loss(scores, grades, groups)) == pytest.approx(expected, rel=1e-4)


def test_lambdarank_of_equal_scores_takes_them_in_their_order() -> None:
    """Two documents, the worse first: the swap moves the whole gain from rank 2 to rank 1."""
    scores, grades = torch.zeros(2, requires_grad=True), torch.tensor([0, 1])
    loss = ranking.lambdarank_loss(scores, grades, torch.zeros(2, dtype=torch.long))
    assert loss.item() == pytest.approx((1 - 1 / math.log2(3)) * math.log(2))
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([0.5 * (1 - 1 / math.log2(3)), -0.5 * (1 - 1 / math.log2(3))])


def test_listwise_losses_without_grades_are_zero() -> None:
    scores = torch.randn(4, requires_grad=True)
    none = torch.zeros(4, dtype=torch.long)
    for loss in (ranking.lambdarank_loss(scores, none, none), ranking.hinge_loss(scores, none, none, 1.0)):
        loss.backward()
        assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(4))  # type: ignore[arg-type]


def test_soft_loss_is_the_divergence_that_torch_computes() -> None:
    scores, _, _ = sample(1)
    teacher, _, _ = sample(2)
    levels = torch.tensor([-1.0, 0.0, 2.0])
    temperature = 3.0
    loss = distillation.soft_ordinal_loss(scores, THRESHOLDS, teacher, levels, temperature)
    expected = F.kl_div(
        ranking.grade_log_probabilities(scores / temperature, THRESHOLDS / temperature),
        ranking.grade_log_probabilities(teacher / temperature, levels / temperature),
        log_target=True,
        reduction="batchmean",
    )
    assert float(loss) == pytest.approx(float(expected) * temperature**2, rel=1e-5)
    same = distillation.soft_ordinal_loss(teacher, levels, teacher, levels, temperature)
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_soft_gradient_hardly_depends_on_a_high_temperature() -> None:
    """The factor temperature² keeps gradients on one scale; with several thresholds, softening also merges grades."""

    def gradient(temperature: float) -> Tensor:
        scores = torch.tensor([0.1, -0.2, 0.05], requires_grad=True)
        level = torch.tensor([0.0])
        distillation.soft_ordinal_loss(scores, level, torch.tensor([0.3, 0.1, -0.1]), level, temperature).backward()
        assert scores.grad is not None
        return scores.grad

    assert gradient(5.0).numpy() == pytest.approx(gradient(40.0).numpy(), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_margin_loss_is_half_the_mean_over_all_pairs_of_a_list(seed: int) -> None:
    scores, _, _ = sample(seed)
    targets, _, _ = sample(seed + 100)
    one_list = torch.zeros(len(scores), dtype=torch.long)
    gaps = (scores[:, None] - scores) - (targets[:, None] - targets)
    assert float(ranking.margin_loss(scores, targets, one_list)) == pytest.approx(
        float(gaps.square().mean()) / 2, rel=1e-5
    )


def test_margin_loss_knows_only_differences_within_a_query() -> None:
    scores, _, groups = sample(3)
    shifted = scores + torch.tensor([5.0, -3.0, 0.0, 100.0, 7.0])[groups]
    assert float(ranking.margin_loss(shifted, scores, groups)) == pytest.approx(0, abs=1e-8)


def test_patient_kd_loss_is_two_minus_twice_the_cosine() -> None:
    draw = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 6, 3, 8, generator=draw)
    expected = (2 - 2 * F.cosine_similarity(student, teacher, dim=-1)).mean()
    assert float(distillation.patient_kd_loss(student, teacher)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation.patient_kd_loss(student, student * 7)) == pytest.approx(0, abs=1e-6)
    assert float(distillation.patient_kd_loss(student, -student)) == pytest.approx(4, rel=1e-5)


def test_patient_kd_loss_names_both_shapes() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 8\).*\(2, 2, 8\)"):
        distillation.patient_kd_loss(torch.zeros(2, 3, 8), torch.zeros(2, 2, 8))


def test_contrast_of_one_positive_is_cross_entropy_over_it_and_the_negatives() -> None:
    draw = torch.Generator().manual_seed(5)
    similarities = torch.rand(3, 6, generator=draw)
    positive = torch.zeros(3, 6, dtype=torch.bool)
    positive[torch.arange(3), torch.arange(3)] = True
    allowed = torch.rand(3, 6, generator=draw) > 0.3
    loss = ranking.contrast_loss(similarities, positive, allowed, 0.1)
    terms = []
    for query in range(3):
        kept = [doc for doc in range(6) if allowed[query, doc] and doc != query]
        logits = similarities[query, [query, *kept]] / 0.1
        terms.append(float(F.cross_entropy(logits[None], torch.tensor([0]))))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-4)


def test_contrast_without_positives_or_without_negatives_is_zero() -> None:
    similarities = torch.rand(2, 3, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    for positive, allowed in ((none, ~none), (~none, none)):
        loss = ranking.contrast_loss(similarities, positive, allowed, 0.05)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(similarities.grad).all()  # type: ignore[union-attr]


def test_uneven_chunks_add_up_to_the_gradient_of_one_batch() -> None:
    scores, grades, groups = sample(6, n=40, queries=8)
    targets, _, _ = sample(7, n=40)
    states, teacher_states = torch.randn(2, 40, 2, 8, generator=torch.Generator().manual_seed(8))
    base = torch.cat([scores[:, None], states.flatten(1)], dim=1)  # (n, 1 + 16) all that is learned

    def loss(values: Tensor, kept: Tensor, documents: int, pairs: int) -> Tensor:
        part = values[kept]
        mine = part[:, 0]
        return (
            ranking.ordinal_loss(mine, grades[kept], THRESHOLDS, total=documents)
            + ranking.ranknet_loss(mine, grades[kept], groups[kept], total=pairs)
            + ranking.hinge_loss(mine, grades[kept], groups[kept], 1.0, total=pairs)
            + ranking.listnet_loss(mine, grades[kept], groups[kept], total=8)
            + ranking.lambdarank_loss(mine, grades[kept], groups[kept], total=8)
            + distillation.logit_loss(mine, targets[kept], total=documents)
            + distillation.listwise_loss(mine, targets[kept], groups[kept], 2.0, total=8)
            + distillation.infonce_loss(mine, targets[kept], groups[kept], total=8)
            + distillation.soft_ordinal_loss(mine, THRESHOLDS, targets[kept], THRESHOLDS, 2.0, total=documents)
            + ranking.margin_loss(mine, targets[kept], groups[kept], total=documents)
            + distillation.patient_kd_loss(part[:, 1:].unflatten(1, (2, 8)), teacher_states[kept], total=documents)
        )

    pairs = ranking.ordered_pairs(grades, groups)
    uncut = base.clone().requires_grad_()
    loss(uncut, torch.arange(40), 40, pairs).backward()
    cut = base.clone().requires_grad_()
    for queries in ([0], [1, 2, 3], [4, 5, 6, 7]):
        kept = torch.isin(groups, torch.tensor(queries)).nonzero()[:, 0]
        loss(cut, kept, 40, pairs).backward()
    assert uncut.grad is not None
    assert cut.grad is not None
    assert torch.allclose(uncut.grad, cut.grad, atol=1e-6)
