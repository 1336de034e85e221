"""The encoder's loss of one step, against sums done by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.config import EncoderConfig, LoopConfig
from pipeline.errors import ConfigError
from pipeline.tokens import TextTemplate
from pipeline.training.loop import pair_tokens
from pipeline.training.losses.distillation import similarity_loss
from pipeline.training.tasks import bi_encoder
from pipeline.training.tasks.bi_encoder import BiEncoderLearner, EncoderTargets, EncoderTask, prefix

DIMENSIONS = 4
LOOP = LoopConfig(tokens_per_batch=1000, evaluations=0, precision="fp32")
CONFIG = EncoderConfig(
    dimensions=DIMENSIONS,
    widths=(2,),
    margin_weight=1.0,
    in_batch_weight=1.0,
    temperature=0.1,
    similarity_weight=1.0,
    similarity_temperature=0.2,
    loop=LOOP,
)
QUERY = np.array([0, 0, 0, 1, 1])
DOCUMENT = np.array([0, 1, 2, 3, 4])
GRADES = np.array([2, 0, 0, 1, 0])
TARGETS = np.array([3.0, 0.0, 1.0, 2.0, -1.0], dtype=np.float32)
HARD = np.array([False, False, True, False, False])


class Table(torch.nn.Module):
    """In place of a body: a vector for each first token."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)
        self.dense = torch.nn.Linear(DIMENSIONS, DIMENSIONS)
        self.query_template = self.document_template = TextTemplate(before=(), after=(), max_tokens=8)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.vectors[input_ids[:, 0]], dim=1)


def ragged(ids: list[int]) -> pair_tokens.Ragged:
    return pair_tokens.Ragged(np.array(ids, np.int32), np.arange(len(ids) + 1))


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(7, DIMENSIONS, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def wide() -> torch.Tensor:
    return F.normalize(torch.randn(7, 9, generator=torch.Generator().manual_seed(5)), dim=1)


def task(vectors: torch.Tensor, wide: torch.Tensor, config: EncoderConfig = CONFIG) -> EncoderTask:
    """Queries are the tokens 0 and 1, documents 2 to 6."""
    pairs = pair_tokens.Pairs(
        rows=np.arange(5),
        query=QUERY,
        document=DOCUMENT,
        grades=GRADES,
        split=np.array(["train"] * 5),
        queries=ragged([0, 1]),
        documents=ragged([2, 3, 4, 5, 6]),
    )
    model = Table(vectors)
    learner = BiEncoderLearner(model, [math.e] * len(config.all_widths))  # type: ignore[arg-type]
    targets = EncoderTargets(scores=TARGETS, hard=HARD, base_vectors=(wide[:2], wide[2:]))
    return EncoderTask(learner, pairs, targets, config, max_list=5)


def test_a_query_that_is_a_document_is_not_contrasted_with_it(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    """Document 4 is judged with query 1 alone, and is query 0 itself."""
    pairs = replace(task(vectors, wide).pairs, own_documents={0: 4})
    masks = []
    for known in (task(vectors, wide).pairs, pairs):
        learner = BiEncoderLearner(Table(vectors), [math.e] * len(CONFIG.all_widths))  # type: ignore[arg-type]
        targets = EncoderTargets(scores=TARGETS, hard=HARD, base_vectors=(wide[:2], wide[2:]))
        encoder_task = EncoderTask(learner, known, targets, CONFIG, max_list=5)
        queries, documents, query, document = encoder_task._numbers(np.arange(5))
        masks.append(encoder_task._contrasts(queries, documents, query, document, np.arange(5))[1])
    before, after = masks
    assert torch.nonzero(before != after).tolist() == [[0, 4]]
    assert before[0, 4]


def unit(vector: torch.Tensor, width: int) -> list[float]:
    cut = vector[:width].double()
    return (cut / cut.norm()).tolist()


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_each_loss_is_the_mean_over_the_widths(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    encoder_task = task(vectors, wide)
    [step] = encoder_task.plan(0)
    [chunk] = step.chunks
    loss, parts = encoder_task.loss(chunk)

    std = bi_encoder.within_query_std(TARGETS, QUERY)
    margins, contrasts, similarities = [], [], []
    for width in (4, 2):
        short = [unit(vector, width) for vector in vectors]
        scores = [math.e * cosine(short[q], short[2 + d]) for q, d in zip(QUERY, DOCUMENT, strict=True)]
        gaps = [(score - target) / std for score, target in zip(scores, TARGETS.tolist(), strict=True)]
        means = [sum(gaps[:3]) / 3, sum(gaps[3:]) / 2]
        margins.append(sum((gap - means[q]) ** 2 for gap, q in zip(gaps, QUERY, strict=True)) / 5)
        # Query 0 is not contrasted with document 1, which it is judged with, but with its mined document 2.
        losses = []
        for q, positive, against in ((0, 0, (2, 3, 4)), (1, 3, (0, 1, 2))):
            weights = {d: math.exp(cosine(short[q], short[2 + d]) / 0.1) for d in (positive, *against)}
            losses.append(-math.log(weights[positive] / sum(weights.values())))
        contrasts.append(sum(losses) / 2)
        divergence = 0.0
        for row in range(7):
            other_rows = [number for number in range(7) if number != row]
            student, teacher = (
                [math.exp(cosine(of[row], of[other]) / 0.2) for other in other_rows] for of in (short, wide.tolist())
            )
            divergence += sum(
                t / sum(teacher) * math.log(t / sum(teacher) / (s / sum(student)))
                for s, t in zip(student, teacher, strict=True)
            )
        similarities.append(divergence / 7)
    for name, values in (("margin", margins), ("in_batch", contrasts), ("similarity", similarities)):
        assert parts[name].item() == pytest.approx(sum(values) / 2, rel=1e-4)
    assert loss.item() == pytest.approx(sum(sum(values) / 2 for values in (margins, contrasts, similarities)), rel=1e-4)


def test_without_shorter_widths_the_whole_vector_alone_counts(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    full, both, short = (
        task(vectors, wide, replace(CONFIG, dimensions=4, widths=widths)) for widths in ((), (2,), (2, 1))
    )
    values = []
    for encoder_task in (full, both, short):
        [step] = encoder_task.plan(0)
        values.append({name: value.item() for name, value in encoder_task.loss(step.chunks[0])[1].items()})
    assert values[0] != values[1] != values[2]
    assert len(full.learner.log_scale) == 1
    vectors[:, 2:] = 0.0  # All that the longer width would see more.
    equal = [task(vectors, wide, replace(CONFIG, widths=widths)) for widths in ((), (2,))]
    first, second = (encoder_task.loss(encoder_task.plan(0)[0].chunks[0])[0].item() for encoder_task in equal)
    assert first == pytest.approx(second, rel=1e-5)


def test_a_term_without_weight_is_not_computed(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    encoder_task = task(vectors, wide, replace(CONFIG, in_batch_weight=0.0))
    _, parts = encoder_task.loss(encoder_task.plan(0)[0].chunks[0])
    assert set(parts) == {"margin", "similarity"}


def test_parts_of_a_step_add_up_in_the_similarity_term() -> None:
    draw = torch.Generator().manual_seed(3)
    student, teacher = (F.normalize(torch.randn(6, width, generator=draw), dim=1) for width in (3, 8))
    parts = [similarity_loss(student[part], teacher[part], 0.1, total=6) for part in (slice(0, 3), slice(3, 6))]
    alone = [similarity_loss(student[part], teacher[part], 0.1) for part in (slice(0, 3), slice(3, 6))]
    assert float(sum(parts)) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)
    assert float(similarity_loss(teacher, teacher, 0.1)) == pytest.approx(0.0, abs=1e-6)
    assert float(similarity_loss(student[:2], teacher[:2], 0.1)) == 0.0


def test_a_prefix_is_of_unit_length() -> None:
    vectors = F.normalize(torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 5.0]]), dim=1)
    assert prefix(vectors, 3) is vectors
    assert torch.allclose(prefix(vectors, 2), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


def test_the_first_scales_give_each_width_the_teachers_deviation(vectors: torch.Tensor, wide: torch.Tensor) -> None:
    encoder_task = task(vectors, wide)
    scales = bi_encoder.first_scales(encoder_task.learner.encoder, encoder_task.pairs, TARGETS, (4, 2), seed=1)
    for width, scale in zip((4, 2), scales, strict=True):
        short = [unit(vector, width) for vector in vectors]
        cosines = np.array([cosine(short[q], short[2 + d]) for q, d in zip(QUERY, DOCUMENT, strict=True)])
        centred = np.concatenate([cosines[:3] - cosines[:3].mean(), cosines[3:] - cosines[3:].mean()])
        assert scale * np.sqrt((centred**2).mean()) == pytest.approx(
            bi_encoder.within_query_std(TARGETS, QUERY), rel=1e-3
        )


@pytest.mark.parametrize("widths", [(64,), (0,), (32, 32), (65,)])
def test_widths_that_cannot_be_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.widths"):
        EncoderConfig(dimensions=64, widths=widths)
    assert EncoderConfig(dimensions=64, widths=(8, 32)).all_widths == (64, 32, 8)


def test_an_encoder_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="every loss has weight 0"):
        EncoderConfig(margin_weight=0.0, in_batch_weight=0.0)
    assert EncoderConfig(margin_weight=0.0, in_batch_weight=0.0, similarity_weight=1.0).similarity_weight == 1.0
