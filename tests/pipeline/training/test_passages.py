"""Long documents through training: labels, students, offline scores and the exported model read the same passages.

The documents of `test_stages` stand somewhere inside longer ones, so that who reads beginnings alone ranks badly.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, RankerConfig, Recipe
from pipeline.config_training import PassagesConfig
from pipeline.errors import ConfigError
from pipeline.export import bundle
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import preflight, ranker, teacher, teacher_scores
from pipeline.training.loop import loop, pair_passages, pair_tokens, scoring
from pipeline.training.tasks.teacher_targets import as_taught
from serving.runtime.engine import Engine
from tests.pipeline.training.test_stages import CANDIDATES, FILLERS, RANKER, TEACHER, base_model, tables
from tests.tables import stage

PASSAGES = PassagesConfig(most=9)


@dataclass(frozen=True, slots=True)
class LongWorld:
    workspace: Path
    base: Path
    data: Artifact
    pairs: Artifact
    teacher: Artifact
    teacher_scores: Artifact
    student: Artifact


@pytest.fixture(scope="module", autouse=True)
def fp32() -> Iterator[None]:
    """Scores in fp32, also on a processor that multiplies in bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "bf16_is_native", lambda device: False)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> LongWorld:
    workspace, base = tmp_path_factory.mktemp("long"), base_model(tmp_path_factory.mktemp("base"))
    short, pair_table = tables()
    rng = np.random.default_rng(4)

    def inside(text: str) -> str:
        before, after = (" ".join(rng.choice(FILLERS, size=rng.integers(0, 50))) for _ in range(2))
        return f"{before} {text} {after}"

    documents = short["documents"]
    texts = [inside(text) for text in documents.column("text").to_pylist()]
    long = {**short, "documents": documents.set_column(2, "text", pa.array(texts))}
    pairs = stage(workspace, "pairs", {"pairs": pair_table})
    config = replace(TEACHER, passages=PASSAGES)
    large = teacher.make(
        workspace, config, CANDIDATES, data=stage(workspace, "data", short), pairs=pairs, base=str(base)
    )
    data = stage(workspace, "data", long)
    layers, width = ranker.taught_by(RANKER, large)
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=layers, width=width)
    student = ranker.make(workspace, RANKER, CANDIDATES, data=data, pairs=pairs, teacher=large, teacher_scores=scores)
    return LongWorld(workspace, base, data, pairs, large, scores, student)


def read(world: LongWorld, model: CrossEncoder) -> pair_tokens.Pairs:
    lengths = {"max_query_tokens": 6, "max_tokens": model.template.document_tokens}
    return pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, **lengths)


def slow_scores(model: CrossEncoder, table: pair_tokens.Pairs, index: int) -> list[float]:
    """The score of each passage of one pair, one input at a time."""
    template = model.template
    assert template.passages is not None
    query, document = table.queries[table.query[index]], table.documents[table.document[index]]
    room = template.max_tokens - template.special_tokens - len(query)
    starts = [0]
    while len(document) > room and starts[-1] + room < len(document) and len(starts) < template.passages.most:
        starts.append(min(starts[-1] + room // 2, len(document) - room))
    values = []
    for start in starts:
        ids, types = template.assemble(query, document[start : start + room])
        with torch.inference_mode():
            values.append(float(model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids)))[0]))
    return values


def test_labels_are_the_best_passages_scores_and_states(world: LongWorld) -> None:
    model = CrossEncoder.load(world.teacher.path)
    table = read(world, model)
    scores = pq.read_table(world.teacher_scores.file("scores.parquet")).column("score").to_numpy()
    spans = np.load(world.teacher_scores.file("passages.npy"))
    states = np.load(world.teacher_scores.file("states.npy"))
    layers = json.loads(world.teacher_scores.file("states.json").read_text())["layers"]
    assert 0 < world.teacher_scores.metrics["in_passages"] <= len(table) < world.teacher_scores.metrics["inputs"]
    for index in range(0, len(table), 37):
        values = slow_scores(model, table, index)
        assert scores[index] == pytest.approx(max(values), abs=1e-5)
        query, document = table.queries[table.query[index]], table.documents[table.document[index]]
        start, end = spans[index] if spans[index].any() else (0, len(document))
        ids, types = model.template.assemble(query, document[start:end])
        with torch.inference_mode():
            inputs = (torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids)))
            reading = model.read(*inputs, first=layers)
        assert float(reading.scores) == pytest.approx(max(values), abs=1e-5)
        np.testing.assert_allclose(states[index], reading.first[0].numpy(), atol=4e-3)


def test_a_student_learns_from_these_passages_and_serves_as_its_teacher_reads(world: LongWorld) -> None:
    model, student = CrossEncoder.load(world.teacher.path), CrossEncoder.load(world.student.path)
    assert student.template == model.template
    card = (world.student.path / "model" / "README.md").read_text()
    assert "up to 9 passages as long as the query leaves, which start half a passage apart" in " ".join(card.split())
    table = read(world, model)
    spans = np.load(world.teacher_scores.file("passages.npy"))
    passage_pairs = as_taught(table, world.teacher_scores)
    for index in range(0, len(table), 37):
        document = table.documents[table.document[index]]
        part = document[spans[index, 0] : spans[index, 1]] if spans[index].any() else document
        assert passage_pairs.documents[passage_pairs.document[index]] == part
    assert len(passage_pairs.documents) <= len(table.documents) + len(table)


def test_passages_find_what_the_beginning_lacks(world: LongWorld) -> None:
    for artifact in (world.teacher, world.student):
        model = CrossEncoder.load(artifact.path)
        table = read(world, model)
        valid = table.indices("valid")
        beginnings = scoring.cross_scores(model, table, valid)
        cut = pair_passages.cut(pair_passages.rows_of(table, valid), model.template)
        joined = cut.joined(scoring.cross_scores(model, cut.inputs, np.arange(len(cut.inputs))))
        assert scoring.ndcg(table, valid, joined) > scoring.ndcg(table, valid, beginnings) + 0.05


def test_offline_scores_are_those_of_the_exported_model(world: LongWorld) -> None:
    config = ExportConfig(precisions=("fp32",), golden=4)
    exported = bundle.make(world.workspace, config, model=world.student, data=world.data, pairs=world.pairs)
    engine = Engine(exported.path, threads=1)
    scores = teacher_scores.score(
        world.workspace, model=world.student, data=world.data, pairs=world.pairs, split="valid"
    )
    texts = pair_tokens.read_texts(world.data, world.pairs, "valid")
    offline = pq.read_table(scores.file("scores.parquet")).column("score").to_numpy()
    assert len(offline) == len(texts.query) > 100
    for query in np.unique(texts.query)[::4]:
        rows = np.flatnonzero(texts.query == query)
        served = engine.scores(texts.queries[query], [texts.documents[texts.document[row]] for row in rows])
        np.testing.assert_allclose(served, offline[rows], atol=1e-5)
    engine.close()


def test_no_pairs_have_no_scores(world: LongWorld) -> None:
    model = CrossEncoder.load(world.student.path)
    model.template = replace(model.template, passages=PassagesConfig(most=5, best=3).passages(None))
    cut = pair_passages.cut(pair_passages.rows_of(read(world, model), np.arange(0)), model.template)
    assert cut.joined(np.zeros(0, np.float32)).shape == (0,)


@pytest.mark.parametrize("best", [1, 3])
def test_the_mean_of_the_best_passages(world: LongWorld, best: int) -> None:
    model = CrossEncoder.load(world.student.path)
    model.template = replace(model.template, passages=PassagesConfig(most=5, best=best).passages(None))
    table = pair_passages.rows_of(read(world, model), np.arange(20))
    cut = pair_passages.cut(table, model.template)
    joined = cut.joined(scoring.cross_scores(model, cut.inputs, np.arange(len(cut.inputs))))
    for index, score in enumerate(joined):
        assert score == pytest.approx(np.sort(slow_scores(model, table, index))[::-1][:best].mean(), abs=1e-5)


def test_a_student_of_other_tokens_is_refused(world: LongWorld, tmp_path: Path) -> None:
    other = base_model(tmp_path / "other", unused=("[unused]",))
    config = replace(RANKER, base=str(other))
    with pytest.raises(ConfigError, match="another tokenizer, so it would read other passages"):
        ranker.make(
            *(world.workspace, config, CANDIDATES),
            data=world.data,
            pairs=world.pairs,
            teacher=world.teacher,
            teacher_scores=world.teacher_scores,
        )
    recipe = Recipe(teacher=replace(TEACHER, base=str(world.base), passages=PASSAGES), ranker=config)
    with pytest.raises(ConfigError, match=r"ranker\.base: .*another tokenizer"):
        preflight.check_passages(recipe)


@pytest.mark.parametrize(
    ("teacher_passages", "ranker_passages", "message"),
    [
        ({"most": 4, "tokens": 16}, {}, r"^teacher\.passages\.tokens is 16; the longest query leaves 15 tokens"),
        ({"most": 4, "stride": 15}, {}, r"^teacher\.passages\.stride is 15"),
        ({}, {"most": 4, "tokens": 16}, r"^ranker\.passages\.tokens is 16"),
    ],
)
def test_passages_that_do_not_fit_are_refused_before_training(
    world: LongWorld, teacher_passages: dict[str, int], ranker_passages: dict[str, int], message: str
) -> None:
    recipe = Recipe(
        teacher=replace(TEACHER, base=str(world.base), passages=PassagesConfig(**teacher_passages)),
        ranker=replace(RANKER, passages=PassagesConfig(**ranker_passages)),
    )
    with pytest.raises(ConfigError, match=message):
        preflight.check_passages(recipe)


def test_passages_can_be_switched_off_for_the_ranker_alone() -> None:
    teachers = PASSAGES.passages(None)
    assert RankerConfig().passages.passages(teachers) == teachers
    assert RankerConfig(passages=PassagesConfig(most=1)).passages.passages(teachers) is None
    assert PassagesConfig().passages(None) is None


def test_a_model_without_passages_is_cut_into_its_pairs(world: LongWorld) -> None:
    model = CrossEncoder.load(world.student.path)
    table = read(world, model)
    cut = pair_passages.cut(table, replace(model.template, passages=None))
    assert cut.inputs is table
    values = np.arange(len(table), dtype=np.float32)
    assert cut.joined(values) is values
    assert cut.stats == {}
