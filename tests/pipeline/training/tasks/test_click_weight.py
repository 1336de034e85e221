"""Grades that rest on clicks weigh in the losses over grades as the recipe says, against weighted loops."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.training.loop.pair_tokens import Pairs, rests_on_clicks
from pipeline.training.losses.cross_encoder_terms import SCORE_TERMS, LossWeights
from pipeline.training.tasks.bi_encoder import BiEncoderLearner, EncoderTargets, EncoderTask
from pipeline.training.tasks.cross_encoder import CrossTask
from tests.pipeline.training.tasks import test_bi_encoder as encoders
from tests.pipeline.training.tasks.test_bi_encoder import vectors, wide
from tests.pipeline.training.tasks.test_teacher_targets import (
    LENGTH,
    CrossEncoder,
    model,
    pairs,
    scores_of,
    task,
    values,
)

__all__ = ["model", "vectors", "wide"]  # Fixtures.

WEIGHT = 0.3
EVERY = LossWeights(**dict.fromkeys(SCORE_TERMS, 0.5))


def clicked(table: Pairs) -> Pairs:
    """The pairs of which about half of the training grades, drawn with seed 6, rest on clicks."""
    draw = np.random.default_rng(6).random(len(table)) < 0.5
    return replace(table, clicked=draw & (table.split == "train"))


def spread(model: CrossEncoder) -> CrossEncoder:
    """The model with scores that differ; those of an untrained one are nearly equal."""
    wide = copy.deepcopy(model)
    with torch.no_grad():
        wide.head.weight.mul_(300)
    return wide


def weighed(base: CrossTask, table: Pairs, share: float) -> CrossTask:
    return CrossTask(base.model, table, base.config, base.objective, max_list=LENGTH, click_weight=share)


def test_a_click_counts_by_its_weight_in_every_document_and_ordered_pair(model: CrossEncoder) -> None:
    table = clicked(pairs(lists=0))
    weighed_task = weighed(task(model, table, LossWeights(ordinal=1.0, pairwise=1.0)), table, WEIGHT)
    levels = model.thresholds.detach()
    assert table.clicked is not None
    for step, (counts, terms, _) in zip(weighed_task.plan(0), values(weighed_task), strict=True):
        rows = np.concatenate([chunk.indices for chunk in step.chunks])
        scores, weight = scores_of(model, table, rows), np.where(table.clicked[rows], WEIGHT, 1.0)
        reach = torch.sigmoid(scores[:, None] - levels)
        chance = torch.stack([1 - reach[:, 0], reach[:, 0] - reach[:, 1], reach[:, 1]], 1)
        nll = [-float(chance[row, grade].log()) for row, grade in enumerate(table.grades[rows])]
        assert counts.graded == pytest.approx(weight.sum())
        assert terms["ordinal"] == pytest.approx(np.average(nll, weights=weight), rel=1e-4)
        losses, shares = [], []
        for better in range(len(rows)):
            for worse in range(len(rows)):
                same = table.query[rows[better]] == table.query[rows[worse]]
                if same and table.grades[rows[better]] > table.grades[rows[worse]]:
                    losses.append(float(torch.nn.functional.softplus(scores[worse] - scores[better])))
                    shares.append(min(weight[better], weight[worse]))
        assert terms["pairwise"] == pytest.approx(np.average(losses, weights=shares), rel=1e-4)


def test_a_weight_of_one_changes_nothing_and_any_other_changes_each_term(model: CrossEncoder) -> None:
    table = clicked(pairs(lists=0))
    base = task(spread(model), replace(table, clicked=None), EVERY)
    as_before, same = values(base), values(weighed(base, table, 1.0))
    assert same == as_before
    other = values(weighed(base, table, WEIGHT))
    for name in EVERY.of(as_before[0][1]):
        changes = [
            abs(before[name] - after[name]) for (_, before, _), (_, after, _) in zip(as_before, other, strict=True)
        ]
        assert max(changes) > 1e-5, name


def test_a_weight_of_zero_learns_from_people_alone(model: CrossEncoder) -> None:
    table = clicked(pairs(lists=0))
    base = task(spread(model), table, EVERY)
    none = weighed(base, table, 0.0)
    assert table.clicked is not None
    rows = np.concatenate([chunk.indices for chunk in none.plan(0)[0].chunks])
    people = rows[~table.clicked[rows]]
    step = weighed(base, replace(table, clicked=None), 1.0)._step([people])
    loss, _ = weighed(base, replace(table, clicked=None), 1.0).loss(step.chunks[0])
    _, terms, total = values(none)[0]
    assert terms
    assert total == pytest.approx(loss.item(), rel=1e-4)


def test_negatives_of_a_query_that_only_clicks_judge_rest_on_clicks() -> None:
    query = np.array([0, 0, 1, 1, 2, 2, 2])
    sources = ["click", "negative", "human", "negative", "click", "human", "unjudged"]
    rests = rests_on_clicks(query, sources)
    assert rests is not None
    assert rests.tolist() == [True, True, False, False, True, False, False]
    assert rests_on_clicks(query[:2], ["human", "negative"]) is None


def test_the_contrast_of_the_encoder_weighs_clicks(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    """Query 0 is answered by a person, query 1 by a click."""
    plain = encoders.task(vectors, wide)
    by_click = replace(plain.pairs, clicked=np.array([False, False, False, True, True]))

    def contrast(table: Pairs, share: float) -> float:
        learner = BiEncoderLearner(encoders.Table(vectors), [1.0] * len(encoders.CONFIG.all_widths))  # type: ignore[arg-type]
        targets = EncoderTargets(scores=encoders.TARGETS, hard=encoders.HARD, base_vectors=(wide[:2], wide[2:]))
        encoder_task = EncoderTask(learner, table, targets, encoders.CONFIG, max_list=5, click_weight=share)
        [step] = encoder_task.plan(0)
        _, terms = encoder_task.loss(step.chunks[0])
        return terms["in_batch"].item()

    both, person = contrast(plain.pairs, 1.0), contrast(by_click, 0.0)
    assert contrast(by_click, 1.0) == both
    click = 2 * both - person  # `both` is the mean of the two queries.
    assert contrast(by_click, WEIGHT) == pytest.approx((person + WEIGHT * click) / (1 + WEIGHT), rel=1e-5)
