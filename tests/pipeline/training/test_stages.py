"""Teacher, teacher scores, ranker, plain student and encoder on a small world that can be learned in seconds.

A document's grade is the number of its marker words, so an untrained model ranks at random and a trained one well.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, EncoderConfig, LoopConfig, RankerConfig, TeacherConfig
from pipeline.errors import ArtifactError, ConfigError, MissingError, TrainingError
from pipeline.evaluation import metrics
from pipeline.models import base_models
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import encoder, ranker, ranker_shape, teacher, teacher_scores
from pipeline.training.loop import batches, loop, pair_tokens, scoring
from pipeline.training.losses import cross_encoder_terms
from pipeline.training.tasks import bi_encoder, cross_encoder, initial_model
from pipeline.training.tasks.objective import Objective
from pipeline.training.tasks.teacher_targets import TeacherTargets, joined
from tests.tables import stage

MARKERS = ("oak", "steel", "glass")
FILLERS = tuple(first + second for first in "bdfglmnprst" for second in ("a", "e", "i", "o", "u"))
LIST = 8
QUERIES = 60

CANDIDATES = CandidatesConfig(max_list=6)
LOOP = LoopConfig(learning_rate=3e-3, epochs=4.0, tokens_per_batch=800, evaluations=2, precision="fp32", fresh_rate=3.0)
TEACHER = TeacherConfig(max_tokens=24, max_query_tokens=6, loop=replace(LOOP, epochs=12.0))
RANKER = RankerConfig(layers=2, loop=replace(LOOP, epochs=8.0))
ENCODER = EncoderConfig(dimensions=8, max_tokens=20, max_query_tokens=6, loop=LOOP)


@dataclass(frozen=True, slots=True)
class World:
    workspace: Path
    base: Path
    data: Artifact
    pairs: Artifact
    teacher: Artifact
    teacher_scores: Artifact


def tables() -> tuple[dict[str, pa.Table], pa.Table]:
    """The data, and its pairs with row ids that are neither consecutive nor in order."""
    rng = np.random.default_rng(1)
    texts, grades = [], []
    for _ in range(QUERIES * LIST):
        grade = int(rng.integers(0, 3))
        words = [*rng.choice(FILLERS, size=rng.integers(3, 12)), *rng.choice(MARKERS, size=grade, replace=False)]
        rng.shuffle(words)
        texts.append(" ".join(words))
        grades.append(grade)
    doc_ids = [f"d{number}" for number in range(len(texts))]
    query_ids = [f"q{number}" for number in range(QUERIES)]
    queries = [" ".join(rng.choice(FILLERS, size=2)) for _ in query_ids]
    data = {
        "documents": pa.table({"doc_id": doc_ids, "title": [""] * len(texts), "text": texts}),
        "queries": pa.table({"query_id": query_ids, "text": queries}),
    }
    rows = rng.permutation(len(texts))
    pairs = pa.table(
        {
            "row_id": rng.permutation(10 * len(texts))[: len(texts)],
            "query_id": [query_ids[row // LIST] for row in rows],
            "doc_id": [doc_ids[row] for row in rows],
            "grade": [grades[row] for row in rows],
            "split": ["valid" if row // LIST % 3 == 0 else "train" for row in rows],
            "source": ["human"] * len(rows),
        }
    )
    return data, pairs


def base_model(folder: Path, hidden: int = 32, layers: int = 4, unused: tuple[str, ...] = ()) -> Path:
    words = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", *MARKERS, *FILLERS]
    torch.manual_seed(2)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes))
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    workspace = tmp_path_factory.mktemp("world")
    base = base_model(tmp_path_factory.mktemp("base"))
    data_tables, pair_table = tables()
    data, pairs = stage(workspace, "data", data_tables), stage(workspace, "pairs", {"pairs": pair_table})
    large = teacher.make(workspace, TEACHER, CANDIDATES, data=data, pairs=pairs, base=str(base))
    layers, width = ranker.taught_by(RANKER, large)
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=layers, width=width)
    return World(workspace, base, data, pairs, large, scores)


def valid_ndcg(world: World, scores: Artifact) -> float:
    table = pq.read_table(world.pairs.file("pairs.parquet")).to_pandas()
    rows = table.merge(pq.read_table(scores.file("scores.parquet")).to_pandas(), on="row_id", validate="1:1")
    rows = rows[rows["split"] == "valid"]
    return float(metrics.by_query(rows["query_id"], rows["grade"], rows["score"])["ndcg@10"].mean())


def test_the_teacher_learns_and_says_what_it_measured(world: World) -> None:
    measured = world.teacher.metrics
    assert measured["ndcg@10 before"] < 0.85
    assert measured["ndcg@10"] > 0.98
    scores = teacher_scores.score(
        world.workspace, model=world.teacher, data=world.data, pairs=world.pairs, split="valid"
    )
    assert valid_ndcg(world, scores) == pytest.approx(measured["ndcg@10"], abs=1e-4)
    assert measured["pairs"] == 12 * 40 * CANDIDATES.max_list
    assert 0 <= measured["padding_share"] < 0.15
    assert set(measured["history"][-1]) == {"step", "loss", "ordinal", "pairwise"}


def test_the_same_teacher_is_not_trained_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "learn", None)
    again = teacher.make(world.workspace, TEACHER, CANDIDATES, data=world.data, pairs=world.pairs, base=str(world.base))
    assert again.fingerprint == world.teacher.fingerprint


def test_scores_of_a_split_read_its_texts_alone(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CrossEncoder.load(world.teacher.path)
    all_pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    expected = scoring.cross_scores(model, all_pairs, all_pairs.indices("valid"))
    read, tokenise = [], pair_tokens.tokenise

    def counted(tokenizer: Any, texts: Any, *rest: Any) -> pair_tokens.Ragged:
        read.append(len(texts))
        return tokenise(tokenizer, texts, *rest)

    monkeypatch.setattr(pair_tokens, "tokenise", counted)
    scores_artifact = teacher_scores.score(
        tmp_path, model=world.teacher, data=world.data, pairs=world.pairs, split="valid"
    )
    assert read == [QUERIES // 3, QUERIES // 3 * LIST]
    scores = pq.read_table(scores_artifact.file("scores.parquet"))
    assert scores["row_id"].to_numpy().tolist() == all_pairs.rows[all_pairs.indices("valid")].tolist()
    assert np.array_equal(scores["score"].to_numpy(), expected)


def test_teacher_targets_are_joined_by_row_id(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    shuffled = np.random.default_rng(3).permutation(len(pairs))
    moved = replace(
        pairs,
        **{name: getattr(pairs, name)[shuffled] for name in ("rows", "query", "document", "grades", "split")},
    )
    targets = TeacherTargets.read(world.teacher, world.teacher_scores, moved)
    assert targets.layers == (2,)
    for index in (0, 17, 300):
        ids, types = batches.pair_inputs(moved, np.array([index]), model.template)[0]
        with torch.no_grad():
            reading = model.read(
                torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long), first=(2,)
            )
        assert targets.scores[index] == pytest.approx(reading.scores.item(), abs=0.05)  # bf16 here and there
        states = targets.states_of(np.array([index]), (2,))
        assert torch.nn.functional.cosine_similarity(states, reading.first, dim=-1).item() > 0.999


def test_scores_of_another_teacher_are_refused(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    other = replace(world.teacher, manifest=replace(world.teacher.manifest, fingerprint="f" * 32))
    with pytest.raises(ArtifactError, match="not of ffff"):
        TeacherTargets.read(other, world.teacher_scores, pairs)


def test_a_pair_without_a_score_is_named(world: World) -> None:
    with pytest.raises(ArtifactError, match="no score for row 123456"):
        joined(world.teacher_scores, np.array([123456]))


def test_states_of_a_layer_that_was_not_kept_are_refused(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    targets = TeacherTargets.read(world.teacher, world.teacher_scores, pairs)
    with pytest.raises(ArtifactError, match=r"layers \(2,\), not of \[3\]"):
        targets.states_of(np.array([0]), (2, 3))


def test_narrow_states_keep_the_inner_products_of_wide_ones(world: World) -> None:
    """Against scikit-learn's truncated SVD, which finds the same directions another way."""
    from sklearn.decomposition import TruncatedSVD

    wide = teacher_scores.make(
        world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=(1, 3), width=32
    )
    narrow = teacher_scores.make(
        world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=(1, 3), width=6
    )
    wide_states, narrow_states = (
        np.load(scores_artifact.file("states.npy")).astype(np.float64) for scores_artifact in (wide, narrow)
    )
    assert narrow_states.shape == (QUERIES * LIST, 2, 6)
    for layer in range(2):
        reference = TruncatedSVD(6, algorithm="arpack", random_state=0).fit(wide_states[:, layer])
        expected = reference.transform(wide_states[:, layer])
        scale = np.abs(expected @ expected.T).max()
        assert narrow_states[:, layer] @ narrow_states[:, layer].T == pytest.approx(
            expected @ expected.T, abs=0.02 * scale
        )
        assert 0.5 < narrow.metrics["kept"][layer] <= 1.0


def test_a_student_wider_than_the_teacher_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="hidden_weight to 0"):
        teacher_scores.make(
            world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=(1,), width=64
        )


def test_without_layers_there_are_no_states(world: World) -> None:
    scores_artifact = teacher_scores.make(
        world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=(), width=32
    )
    assert set(scores_artifact.manifest.files) == {"scores.parquet"}


def test_ranker_and_plain_student_learn(world: World) -> None:
    inputs = {"data": world.data, "pairs": world.pairs, "teacher": world.teacher}
    distilled, plain = (
        ranker.make(world.workspace, RANKER, CANDIDATES, **inputs, teacher_scores=scores)
        for scores in (world.teacher_scores, None)
    )
    assert distilled.fingerprint != plain.fingerprint
    for student in (distilled, plain):
        assert student.metrics["ndcg@10"] > 0.98
        assert student.metrics["keep_layers"] == [2, 4]
        foretold = ranker_shape.cut(RANKER, base_models.shape(world.base), base_models.shape(world.base))
        assert CrossEncoder.load(student.path).shape == replace(foretold, tokenizer=None)
    assert set(distilled.metrics["history"][-1]) == {"step", "loss", "ordinal", "pairwise", "soft", "margin", "hidden"}
    alike = replace(RANKER, soft_weight=0.9, plain=not RANKER.plain)  # Nothing that a plain student depends on.
    again = ranker.make(world.workspace, alike, CANDIDATES, **inputs, teacher_scores=None)
    assert again.fingerprint == plain.fingerprint
    same = replace(RANKER, plain=not RANKER.plain)
    again = ranker.make(world.workspace, same, CANDIDATES, **inputs, teacher_scores=world.teacher_scores)
    assert again.fingerprint == distilled.fingerprint
    assert set(plain.metrics["history"][-1]) == {"step", "loss", "ordinal", "pairwise"}

    scores = {
        name: pq.read_table(
            teacher_scores.score(world.workspace, model=model, data=world.data, pairs=world.pairs, split="valid").file(
                "scores.parquet"
            )
        )["score"].to_numpy()
        for name, model in (("teacher", world.teacher), ("distilled", distilled), ("plain", plain))
    }
    near, far = (np.corrcoef(scores["teacher"], scores[name])[0, 1] for name in ("distilled", "plain"))
    assert near > 0.95
    assert near >= far


def test_a_ranker_from_another_base_than_the_teacher(world: World) -> None:
    config = replace(RANKER, base=str(world.base), keep_layers=(1, 3, 4), loop=replace(LOOP, epochs=1.0))
    layers, width = ranker.taught_by(config, world.teacher)
    assert (layers, width) == ((1, 3), 32)
    scores = teacher_scores.make(
        world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=layers, width=width
    )
    student = ranker.make(
        world.workspace,
        config,
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        teacher=world.teacher,
        teacher_scores=scores,
    )
    assert CrossEncoder.load(student.path).layers == 3
    assert student.manifest.inputs["base"]


def test_layers_that_are_not_there_are_refused(world: World) -> None:
    inputs = {"data": world.data, "pairs": world.pairs, "teacher": world.teacher, "teacher_scores": None}
    with pytest.raises(ConfigError, match=r"ranker\.layers is 5: the model that it is cut from has 4"):
        ranker.make(world.workspace, replace(RANKER, layers=5), CANDIDATES, **inputs)
    with pytest.raises(ConfigError, match=r"ranker\.keep_layers \[2, 9\].*layers 1 to 4"):
        ranker.make(world.workspace, replace(RANKER, keep_layers=(2, 9)), CANDIDATES, **inputs)
    with pytest.raises(ConfigError, match="student has 2, so name fewer"):
        ranker.taught_by(replace(RANKER, layer_map=(1, 2, 3)), world.teacher)
    assert ranker.taught_by(replace(RANKER, hidden_weight=0.0), world.teacher) == ((), 32)


def test_the_encoder_learns_from_the_base_and_its_projection(world: World) -> None:
    trained = encoder.make(
        world.workspace,
        ENCODER,
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        base=str(world.base),
        teacher_scores=world.teacher_scores,
    )
    assert trained.metrics["ndcg@10"] > trained.metrics["ndcg@10 before"] + 0.03
    assert set(trained.metrics["history"][-1]) == {"step", "loss", "margin", "in_batch"}
    model = BiEncoder.load(trained.path)
    assert model.dense.weight.shape == (8, 32)
    assert load_file(trained.file("model/2_Dense/model.safetensors"))["linear.bias"].shape == (8,)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=20)
    valid = pairs.indices("valid")
    cosines = scoring.cosines(model, pairs, valid, precision="fp32")
    assert np.abs(cosines).max() <= 1 + 1e-5
    assert scoring.ndcg(pairs, valid, cosines) == pytest.approx(trained.metrics["ndcg@10"], abs=1e-4)


def test_an_encoder_whose_body_is_not_trained_is_its_base_with_a_projection(world: World) -> None:
    config = replace(ENCODER, train_body=False, projection="similarities", similarity_weight=0.0)
    trained = encoder.make(
        world.workspace,
        config,
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        base=str(world.base),
        teacher_scores=world.teacher_scores,
    )
    model, base = BiEncoder.load(trained.path), encoder.untrained(config, world.base)
    weights = base.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert trained.metrics["steps"] == 0
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=20)
    valid = pairs.indices("valid")
    cosines = scoring.cosines(model, pairs, valid, precision="fp32")
    assert scoring.ndcg(pairs, valid, cosines) == pytest.approx(trained.metrics["ndcg@10"], abs=1e-4)


def test_an_encoder_wider_than_its_base_is_refused(world: World) -> None:
    config = replace(ENCODER, dimensions=64)
    with pytest.raises(ConfigError, match="64: the base model is 32 wide"):
        encoder.make(
            world.workspace,
            config,
            CANDIDATES,
            data=world.data,
            pairs=world.pairs,
            base=str(world.base),
            teacher_scores=world.teacher_scores,
        )


def cross(world: World, config: LoopConfig) -> cross_encoder.CrossTask:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    weights = cross_encoder_terms.LossWeights(
        ordinal=1.0, pairwise=1.0, soft=0.5, temperature=2.0, margin=0.5, hidden=1.0
    )
    targets = TeacherTargets.read(world.teacher, world.teacher_scores, pairs)
    objective = Objective(weights=weights, targets=targets, match=cross_encoder_terms.Match(first=(2,)))
    return cross_encoder.CrossTask(model, pairs, config, objective, max_list=6)


def test_a_step_cut_into_chunks_has_the_gradient_of_the_whole(world: World) -> None:
    def gradients(chunk_tokens: int) -> tuple[int, float, list[torch.Tensor]]:
        task = cross(world, replace(LOOP, chunk_tokens=chunk_tokens))
        step = task.plan(0)[1]
        total = 0.0
        for chunk in step.chunks:
            loss, _ = task.loss(chunk)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        values = [parameter.grad for parameter in task.model.parameters() if parameter.grad is not None]
        return len(step.chunks), total, values

    chunks, uncut, first = gradients(8000)
    several, parts, second = gradients(300)
    assert chunks == 1
    assert several > 2
    assert parts == pytest.approx(uncut, rel=1e-5)
    for left, right in zip(first, second, strict=True):
        assert torch.allclose(left, right, atol=1e-5 * max(1.0, float(left.abs().max())))


def test_first_thresholds_are_the_log_odds_of_the_grades(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    grades = pairs.grades[pairs.indices("train")]
    thresholds = initial_model.first_thresholds(pairs)
    for level, value in enumerate(thresholds):
        below = (grades <= level).mean()
        assert 1 / (1 + np.exp(-value)) == pytest.approx(below, abs=0.01)
    with pytest.raises(TrainingError, match="no pair has a grade above 0"):
        initial_model.first_thresholds(replace(pairs, grades=pairs.grades * 0))


def test_valid_queries_are_drawn_whole(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    assert np.array_equal(scoring.valid_indices(pairs, 0, 1), pairs.indices("valid"))
    some = scoring.valid_indices(pairs, 50, 1)
    assert len(some) == 48
    assert (np.bincount(pairs.query[some])[np.unique(pairs.query[some])] == LIST).all()
    assert set(pairs.split[some]) == {"valid"}
    assert not np.array_equal(some, scoring.valid_indices(pairs, 50, 2))


def test_the_encoders_negatives_are_documents_nobody_joined_with_the_query(world: World) -> None:
    model = BiEncoder.start(world.base, dimensions=8, max_tokens=20, max_query_tokens=6, seed=0)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=20)
    targets = bi_encoder.EncoderTargets(scores=np.zeros(len(pairs), np.float32), hard=np.zeros(len(pairs), bool))
    task = bi_encoder.EncoderTask(bi_encoder.BiEncoderLearner(model, [1.0]), pairs, targets, ENCODER, max_list=6)
    chunk = task.plan(0)[0].chunks[0]
    queries, documents, query, document = task._numbers(chunk.indices)
    positive, allowed = task._contrasts(queries, documents, query, document, chunk.indices)
    judged = set(zip(pairs.query.tolist(), pairs.document.tolist(), strict=True))
    for row, number in enumerate(queries.tolist()):
        grades = {pairs.document[index]: pairs.grades[index] for index in chunk.indices if pairs.query[index] == number}
        top = max(grades.values())
        for column, other in enumerate(documents.tolist()):
            assert bool(allowed[row, column]) == ((number, other) not in judged)
            assert bool(positive[row, column]) == (top > 0 and grades.get(other) == top)


def test_a_killed_teacher_goes_on_and_becomes_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TEACHER, loop=replace(LOOP, checkpoint_s=0.0, epochs=2.0))
    straight = teacher.make(
        tmp_path / "straight", config, CANDIDATES, data=world.data, pairs=world.pairs, base=str(world.base)
    )

    class Killed(BaseException):
        pass

    calls, original = 0, cross_encoder.CrossTask.loss

    def loss(task: cross_encoder.CrossTask, chunk: cross_encoder.PairChunk) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        return original(task, chunk)

    monkeypatch.setattr(cross_encoder.CrossTask, "loss", loss)
    with pytest.raises(Killed):
        teacher.make(tmp_path / "broken", config, CANDIDATES, data=world.data, pairs=world.pairs, base=str(world.base))
    left = list((tmp_path / "broken" / "artifacts" / "teacher").glob("*.checkpoint/step-*.safetensors"))
    assert len(left) == 2  # the newest and the one before

    calls = 10
    resumed = teacher.make(
        tmp_path / "broken", config, CANDIDATES, data=world.data, pairs=world.pairs, base=str(world.base)
    )
    assert calls - 10 == straight.metrics["steps"] - 4
    assert resumed.fingerprint == straight.fingerprint
    assert resumed.manifest.files == straight.manifest.files  # the same weights, byte by byte
    assert not any(file.exists() for file in left)


def test_without_valid_pairs_the_last_state_is_kept(world: World, tmp_path: Path) -> None:
    data_tables, pair_table = tables()
    kept = pair_table.filter(pa.compute.equal(pair_table["split"], "train"))
    data, pairs = stage(tmp_path, "data", data_tables), stage(tmp_path, "pairs", {"pairs": kept})
    config = replace(TEACHER, loop=replace(LOOP, epochs=0.5))
    trained = teacher.make(tmp_path, config, CANDIDATES, data=data, pairs=pairs, base=str(world.base))
    assert trained.metrics["ndcg@10"] is None
    assert trained.metrics["steps"] > 0


def test_an_unknown_base_is_said_before_anything_is_made(world: World, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"):
        teacher.make(tmp_path, TEACHER, CANDIDATES, data=world.data, pairs=world.pairs, base="./nowhere")
    assert not (tmp_path / "artifacts").exists()


def test_scores_in_bf16_are_near_those_in_fp32(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    exact, rough = (
        scoring.cross_scores(model, pairs, np.arange(len(pairs)), precision=precision) for precision in ("fp32", "bf16")
    )
    assert np.abs(exact - rough).max() < 0.03 * exact.std()
    one_by_one = [scoring.cross_scores(model, pairs, np.array([index]), precision="fp32")[0] for index in (0, 5, 200)]
    assert exact[[0, 5, 200]] == pytest.approx(one_by_one, abs=1e-4)


def test_progress_is_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="pipeline.progress"):
        teacher.make(
            world.workspace,
            replace(TEACHER, loop=replace(LOOP, epochs=0.5, seed=99)),
            CANDIDATES,
            data=world.data,
            pairs=world.pairs,
            base=str(world.base),
        )
    assert "teacher: 120 pairs" in caplog.text


def test_metrics_are_plain_json(world: World) -> None:
    text = (world.teacher.path / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["metrics"]["evaluations"][0][0] == 0
    assert len(world.teacher.metrics["history"]) <= loop.HISTORY


def test_pruned_students_score_alike_and_their_cards_say_so(world: World, tmp_path: Path) -> None:
    unused = ("never", "read", "words")
    base = str(base_model(tmp_path, unused=unused))
    quick = replace(LOOP, epochs=0.2)
    students, encoders = [], []
    for pruned in (False, True):
        config = replace(RANKER, base=base, loop=quick, prune_vocabulary=pruned)
        shorter = replace(ENCODER, loop=quick, prune_vocabulary=pruned)
        inputs = {"data": world.data, "pairs": world.pairs, "teacher_scores": world.teacher_scores}
        students.append(ranker.make(world.workspace, config, CANDIDATES, **inputs, teacher=world.teacher))
        encoders.append(encoder.make(world.workspace, shorter, CANDIDATES, **inputs, base=base))
    for unpruned, small in (students, encoders):
        cut = small.metrics["vocabulary"]
        assert (cut["before"] - cut["after"], cut["bytes_saved"]) == (len(unused), len(unused) * 32 * 4)
        assert "vocabulary" not in unpruned.metrics
        text = small.file("model/README.md").read_text(encoding="utf-8")
        assert f"{cut['before']} → {cut['after']} tokens" in text
        assert str(world.workspace) not in text
        assert base not in text
    assert "losses and weights: ordinal 1, pairwise 1\n" in world.teacher.file("model/README.md").read_text()

    before, after = (
        teacher_scores.score(world.workspace, model=student, data=world.data, pairs=world.pairs, split="valid")
        for student in students
    )
    assert scores_of(after) == pytest.approx(scores_of(before), abs=1e-6)
    wide, narrow = (BiEncoder.load(artifact.path) for artifact in encoders)
    cosines = []
    for model in (wide, narrow):
        pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=20)
        cosines.append(scoring.cosines(model, pairs, pairs.indices("valid"), precision="fp32"))
    assert cosines[1] == pytest.approx(cosines[0], abs=1e-6)


def scores_of(scores_artifact: Artifact) -> Any:
    return pq.read_table(scores_artifact.file("scores.parquet")).column("score").to_numpy()
