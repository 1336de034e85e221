"""Pairs without a grade in the ranker's training: the teacher's terms read them, the terms over grades do not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.config import LoopConfig, ScratchConfig
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import pretrain
from pipeline.training.loop.pair_tokens import Pairs, Ragged
from pipeline.training.losses.cross_encoder_terms import LossWeights
from pipeline.training.tasks import vocabulary
from pipeline.training.tasks.cross_encoder import CrossTask
from pipeline.training.tasks.initial_model import first_thresholds
from pipeline.training.tasks.objective import Objective
from pipeline.training.tasks.teacher_targets import TeacherTargets

GRADED, LISTS, LENGTH = 6, 12, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    folder = tmp_path_factory.mktemp("base")
    config = ScratchConfig(layers=2, hidden=32, heads=2, intermediate=64, positions=64, vocab_size=300)
    pretrain.new_model(folder, config, vocabulary.train(["some words of a query and a document"] * 9, config), seed=1)
    thresholds = first_thresholds(pairs())
    return CrossEncoder.start(folder, thresholds=thresholds, max_tokens=32, max_query_tokens=8, seed=2).eval()


def pairs(lists: int = LISTS) -> Pairs:
    """Six training queries of five documents with grades, `lists` lists of five without, one valid query."""
    groups = GRADED + lists + 1
    rows = np.arange(groups * LENGTH)
    query = rows // LENGTH
    split = np.array(["train"] * GRADED + ["unlabelled"] * lists + ["valid"])[query]
    grades = np.where(split == "unlabelled", -1, rows % 3)
    draw = np.random.default_rng(4)

    def texts(count: int, longest: int) -> Ragged:
        lengths = draw.integers(2, longest, size=count)
        return Ragged(draw.integers(6, 30, size=lengths.sum()).astype(np.int32), np.cumsum([0, *lengths]))

    return Pairs(
        rows=rows,
        query=query,
        document=rows,
        grades=grades,
        split=split,
        queries=texts(groups, 6),
        documents=texts(len(rows), 20),
    )


def teacher_targets(table: Pairs) -> TeacherTargets:
    scores = np.random.default_rng(8).normal(size=len(table)).astype(np.float32) * 2
    return TeacherTargets(scores, torch.tensor([-0.7, 0.7]), None, table.rows, ())


def task(model: CrossEncoder, table: Pairs, weights: LossWeights, **loop: Any) -> CrossTask:
    config = LoopConfig(tokens_per_batch=250, precision="fp32", **{"chunk_tokens": 4000, **loop})
    targets = teacher_targets(table) if weights.soft or weights.margin else None
    return CrossTask(model, table, config, Objective(weights=weights, targets=targets), max_list=LENGTH)


def values(cross_task: CrossTask) -> list[tuple[Any, Mapping[str, float], float]]:
    """Each step of an epoch: its counts, its terms and its loss, over all its chunks."""
    steps = []
    for step in cross_task.plan(0):
        terms: dict[str, float] = {}
        total = 0.0
        for chunk in step.chunks:
            with torch.no_grad():
                loss, logs = cross_task.loss(chunk)
            total += float(loss)
            for name, value in logs.items():
                terms[name] = terms.get(name, 0.0) + float(value)
        steps.append((step.chunks[0].counts, terms, total))
    return steps


ALL = LossWeights(ordinal=0.5, pairwise=1.0, listnet=0.3, soft=0.7, margin=0.2, temperature=2.0)


def scores_of(model: CrossEncoder, table: Pairs, indices: Any) -> torch.Tensor:
    """One at a time, without the task."""
    scores = []
    for index in indices:
        query, document = table.queries[table.query[index]], table.documents[table.document[index]]
        ids, types = model.template.assemble(query, document)
        with torch.no_grad():
            scores.append(model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)))
    return torch.cat(scores)


def test_only_those_who_are_taught_read_them(model: CrossEncoder) -> None:
    table = pairs()
    plain = task(model, table, LossWeights(ordinal=1.0))
    assert set(table.split[plain.train]) == {"train"}
    assert [counts.graded - counts.documents for counts, _, _ in values(plain)] == [0] * len(plain.plan(0))
    cross_task = task(model, table, ALL)
    indices = np.concatenate([chunk.indices for step in cross_task.plan(0) for chunk in step.chunks])
    assert sorted(indices) == np.flatnonzero(table.split != "valid").tolist()


def test_the_terms_of_a_step_are_those_of_a_loop_over_its_pairs(model: CrossEncoder) -> None:
    table = pairs()
    cross_task = task(model, table, ALL)
    targets, levels = teacher_targets(table), model.thresholds.detach()
    share = GRADED / (GRADED + LISTS)
    mixed = 0
    for step, (counts, terms, loss) in zip(cross_task.plan(0), values(cross_task), strict=True):
        indices = np.concatenate([chunk.indices for chunk in step.chunks])
        scores, grades = scores_of(model, table, indices), table.grades[indices]
        graded = grades >= 0
        mixed += 0 < graded.sum() < len(graded)
        assert (counts.documents, counts.graded) == (len(indices), graded.sum())

        reach = torch.sigmoid(scores[:, None] - levels)  # (n, 2) P(grade ≥ 1), P(grade ≥ 2)
        chance = torch.stack([1 - reach[:, 0], reach[:, 0] - reach[:, 1], reach[:, 1]], 1)
        nll = sum(-float(chance[row, grades[row]].log()) for row in np.flatnonzero(graded))
        assert terms["ordinal"] == pytest.approx(nll / (len(indices) * share), rel=1e-4, abs=1e-6)

        gaps, hidden = [], 0.0
        for group in np.unique(table.query[indices]):
            rows = np.flatnonzero(table.query[indices] == group)
            gaps += [
                float(F.softplus(scores[low] - scores[high]))
                for high in rows
                for low in rows
                if grades[high] > grades[low] >= 0
            ]
            ours, theirs = scores[rows], torch.from_numpy(targets.scores[indices[rows]])
            hidden += float(((ours - ours.mean()) - (theirs - theirs.mean())).square().sum())
        hard = graded.sum() / (len(indices) * share)
        assert terms["pairwise"] == pytest.approx(np.mean(gaps) * hard if gaps else 0.0, rel=1e-4, abs=1e-6)
        assert terms["margin"] == pytest.approx(hidden / len(indices), rel=1e-4)
        weighted = {"ordinal": 0.5, "pairwise": 1.0, "listnet": 0.3, "soft": 0.7, "margin": 0.2}
        assert loss == pytest.approx(sum(weighted[name] * value for name, value in terms.items()), rel=1e-5)
    assert mixed >= 2


def test_over_an_epoch_the_grades_weigh_as_their_weight_says(model: CrossEncoder) -> None:
    """Mean over all documents of the steps' ordinal terms: the mean over graded documents, whatever else is there."""

    def mean(table: Pairs, weights: LossWeights) -> float:
        steps = values(task(model, table, weights))
        return sum(counts.documents * terms["ordinal"] for counts, terms, _ in steps) / sum(
            counts.documents for counts, _, _ in steps
        )

    table = pairs()
    assert mean(table, ALL) == pytest.approx(mean(table, LossWeights(ordinal=1.0)), rel=1e-4)


def test_grades_weigh_alike_where_longer_lists_are_cut(model: CrossEncoder) -> None:
    """Lists with grades are cut from five to three, those without hold two: over an epoch the factor is one."""
    table = pairs()
    kept = (table.grades >= 0) | (table.rows % LENGTH < 2)
    names = ("rows", "query", "document", "grades", "split")
    table = replace(table, **{name: getattr(table, name)[kept] for name in names})
    objective = Objective(weights=ALL, targets=teacher_targets(table))
    cross_task = CrossTask(model, table, LoopConfig(tokens_per_batch=250), objective, max_list=3)
    counts = [step.chunks[0].counts for step in cross_task.plan(0)]
    documents = sum(count.documents for count in counts)
    assert documents > sum(count.graded for count in counts) > 0
    assert sum(count.documents * count.hard for count in counts) == pytest.approx(documents)


def test_chunks_of_a_mixed_step_add_up_to_its_gradient(model: CrossEncoder) -> None:
    def gradients(chunk_tokens: int) -> tuple[int, list[torch.Tensor]]:
        cross_task = task(model, pairs(), ALL, chunk_tokens=chunk_tokens)
        step = next(
            step for step in cross_task.plan(0) if 0 < step.chunks[0].counts.graded < step.chunks[0].counts.documents
        )
        model.zero_grad()
        for chunk in step.chunks:
            cross_task.loss(chunk)[0].backward()
        return len(step.chunks), [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ]

    chunks, uncut = gradients(4000)
    several, parts = gradients(170)
    assert chunks == 1
    assert several > 1
    for left, right in zip(uncut, parts, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * max(1.0, float(left.abs().max())), rtol=1e-4)
