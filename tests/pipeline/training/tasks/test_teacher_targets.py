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
from pipeline.training.tasks.cross_encoder import CrossTask, Objective, first_thresholds
from pipeline.training.tasks.teacher_targets import TeacherTargets

GRADED, LISTS, LENGTH = 6, 12, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    place = tmp_path_factory.mktemp("base")
    config = ScratchConfig(layers=2, hidden=32, heads=2, intermediate=64, positions=64, vocab_size=300)
    pretrain.new_model(place, config, vocabulary.train(["some words of a query and a document"] * 9, config), seed=1)
    thresholds = first_thresholds(pairs())
    return CrossEncoder.start(place, thresholds=thresholds, max_tokens=32, max_query_tokens=8, seed=2).eval()


def pairs(lists: int = LISTS) -> Pairs:
    """Six training queries of five documents with grades, so many lists of five without, one valid query."""
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
    taught = teacher_targets(table) if weights.soft or weights.margin else None
    return CrossTask(model, table, config, Objective(weights=weights, targets=taught), max_list=LENGTH)


def values(made: CrossTask) -> list[tuple[Any, Mapping[str, float], float]]:
    """Each step of an epoch: its counts, its terms and its loss, over all its chunks."""
    found = []
    for step in made.plan(0):
        terms: dict[str, float] = {}
        whole = 0.0
        for chunk in step.chunks:
            with torch.no_grad():
                loss, logs = made.loss(chunk)
            whole += float(loss)
            for name, value in logs.items():
                terms[name] = terms.get(name, 0.0) + float(value)
        found.append((step.chunks[0].counts, terms, whole))
    return found


ALL = LossWeights(ordinal=0.5, pairwise=1.0, listnet=0.3, soft=0.7, margin=0.2, temperature=2.0)


def scores_of(model: CrossEncoder, table: Pairs, places: Any) -> torch.Tensor:
    """One at a time, without the task."""
    found = []
    for place in places:
        query, document = table.queries[table.query[place]], table.documents[table.document[place]]
        ids, types = model.template.assemble(query, document)
        with torch.no_grad():
            found.append(model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)))
    return torch.cat(found)


def test_only_those_who_are_taught_read_them(model: CrossEncoder) -> None:
    table = pairs()
    plain = task(model, table, LossWeights(ordinal=1.0))
    assert set(table.split[plain.train]) == {"train"}
    assert [counts.graded - counts.documents for counts, _, _ in values(plain)] == [0] * len(plain.plan(0))
    taught = task(model, table, ALL)
    places = np.concatenate([chunk.indices for step in taught.plan(0) for chunk in step.chunks])
    assert sorted(places) == np.flatnonzero(table.split != "valid").tolist()


def test_the_terms_of_a_step_are_those_of_a_loop_over_its_pairs(model: CrossEncoder) -> None:
    table = pairs()
    made = task(model, table, ALL)
    told, levels = teacher_targets(table), model.thresholds.detach()
    share = GRADED / (GRADED + LISTS)
    mixed = 0
    for step, (counts, terms, loss) in zip(made.plan(0), values(made), strict=True):
        places = np.concatenate([chunk.indices for chunk in step.chunks])
        scores, grades = scores_of(model, table, places), table.grades[places]
        graded = grades >= 0
        mixed += 0 < graded.sum() < len(graded)
        assert (counts.documents, counts.graded) == (len(places), graded.sum())

        reach = torch.sigmoid(scores[:, None] - levels)  # (n, 2) P(grade ≥ 1), P(grade ≥ 2)
        chance = torch.stack([1 - reach[:, 0], reach[:, 0] - reach[:, 1], reach[:, 1]], 1)
        nll = sum(-float(chance[row, grades[row]].log()) for row in np.flatnonzero(graded))
        assert terms["ordinal"] == pytest.approx(nll / (len(places) * share), rel=1e-4, abs=1e-6)

        gaps, hidden = [], 0.0
        for group in np.unique(table.query[places]):
            rows = np.flatnonzero(table.query[places] == group)
            gaps += [
                float(F.softplus(scores[low] - scores[high]))
                for high in rows
                for low in rows
                if grades[high] > grades[low] >= 0
            ]
            ours, theirs = scores[rows], torch.from_numpy(told.scores[places[rows]])
            hidden += float(((ours - ours.mean()) - (theirs - theirs.mean())).square().sum())
        hard = graded.sum() / (len(places) * share)
        assert terms["pairwise"] == pytest.approx(np.mean(gaps) * hard if gaps else 0.0, rel=1e-4, abs=1e-6)
        assert terms["margin"] == pytest.approx(hidden / len(places), rel=1e-4)
        weighted = {"ordinal": 0.5, "pairwise": 1.0, "listnet": 0.3, "soft": 0.7, "margin": 0.2}
        assert loss == pytest.approx(sum(weighted[name] * value for name, value in terms.items()), rel=1e-5)
    assert mixed >= 2


def test_over_an_epoch_the_grades_weigh_as_their_weight_says(model: CrossEncoder) -> None:
    """Mean over all documents of the steps' ordinal terms: the mean over graded documents, whatever else is there."""

    def mean(table: Pairs, weights: LossWeights) -> float:
        found = values(task(model, table, weights))
        return sum(counts.documents * terms["ordinal"] for counts, terms, _ in found) / sum(
            counts.documents for counts, _, _ in found
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
    made = CrossTask(model, table, LoopConfig(tokens_per_batch=250), objective, max_list=3)
    counts = [step.chunks[0].counts for step in made.plan(0)]
    documents = sum(one.documents for one in counts)
    assert documents > sum(one.graded for one in counts) > 0
    assert sum(one.documents * one.hard for one in counts) == pytest.approx(documents)


def test_chunks_of_a_mixed_step_add_up_to_its_gradient(model: CrossEncoder) -> None:
    def gradients(chunk_tokens: int) -> tuple[int, list[torch.Tensor]]:
        made = task(model, pairs(), ALL, chunk_tokens=chunk_tokens)
        step = next(step for step in made.plan(0) if 0 < step.chunks[0].counts.graded < step.chunks[0].counts.documents)
        model.zero_grad()
        for chunk in step.chunks:
            made.loss(chunk)[0].backward()
        return len(step.chunks), [one.grad.clone() for one in model.parameters() if one.grad is not None]

    one, whole = gradients(4000)
    several, parts = gradients(170)
    assert one == 1
    assert several > 1
    for left, right in zip(whole, parts, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * max(1.0, float(left.abs().max())), rtol=1e-4)
