"""The ranker with each of its terms on a small world: exact chunks, exact resumption, what is kept, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.config import ExternalTeacherConfig, RankerConfig, TeacherConfig
from pipeline.errors import ArtifactError, ConfigError, TrainingError
from pipeline.models import surgery
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import external_teacher, ranker, teacher, teacher_scores
from pipeline.training.loop import pair_tokens, scoring
from pipeline.training.losses import ranking
from pipeline.training.losses.cross_encoder_terms import (
    SCORE_TERMS,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    LossWeights,
    Match,
    hyperparameters,
)
from pipeline.training.tasks import cross_encoder, teacher_targets
from pipeline.training.tasks.objective import Objective
from tests.pipeline.training.test_stages import CANDIDATES, LOOP, TEACHER, World, base_model, stage, tables

SHORT = replace(LOOP, epochs=0.5, evaluations=1)
GRADES_ONLY: dict[str, Any] = {"soft_weight": 0.0, "margin_weight": 0.0, "hidden_weight": 0.0}
PLAIN = RankerConfig(layers=2, loop=SHORT, **GRADES_ONLY)
OVER_TOKENS = tuple(TOKEN_TERMS)
ALL_OVER_TOKENS = {f"{name}_weight": 0.3 for name in OVER_TOKENS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    workspace, base = tmp_path_factory.mktemp("world"), base_model(tmp_path_factory.mktemp("base"))
    data_tables, pair_table = tables()
    data, pairs = stage(workspace, "data", data_tables), stage(workspace, "pairs", {"pairs": pair_table})
    large = teacher.make(workspace, TEACHER, CANDIDATES, data=data, pairs=pairs, base=str(base))
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=(2,), width=32)
    return World(workspace, base, data, pairs, large, scores)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base half as wide as the teacher's, with as many heads and the same words."""
    return base_model(tmp_path_factory.mktemp("narrow"), hidden=16, layers=3)


def make(world: World, config: RankerConfig, workspace: Path | None = None) -> Artifact:
    layers, width = ranker.taught_by(config, world.teacher)
    scores = world.teacher_scores
    if (layers, width) not in (((2,), 32), ((), 32)):
        scores = teacher_scores.make(
            world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=layers, width=width
        )
    folder = workspace or world.workspace
    return ranker.make(
        folder,
        config,
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        teacher=world.teacher,
        teacher_scores=scores,
    )


def task(world: World, weights: LossWeights, base: Path | None = None, **loop: Any) -> cross_encoder.CrossTask:
    large = CrossEncoder.load(world.teacher.path)
    source = large
    if base is not None:
        source = CrossEncoder.start(
            base, thresholds=large.thresholds.tolist(), max_tokens=24, max_query_tokens=6, seed=1
        )
    pairs = pair_tokens.read_pairs(world.data, world.pairs, large.tokenizer, max_query_tokens=6, max_tokens=24)
    return cross_encoder.CrossTask(
        surgery.student(source, (1, 3)),
        pairs,
        replace(LOOP, **loop),
        Objective(
            weights=weights,
            targets=teacher_targets.TeacherTargets.read(world.teacher, world.teacher_scores, pairs),
            match=Match(first=(2,), tokens=(2, 4), relation=3, heads=4),
            teacher=large,
            peer=surgery.student(source, (2, 3)) if weights.mutual else None,
        ),
        max_list=6,
    )


EVERY = dict.fromkeys((*SCORE_TERMS, *TAUGHT_TERMS, *TOKEN_TERMS), 0.5)


@pytest.mark.parametrize("case", ["equal width", "narrow", "mutual"])
def test_a_step_of_every_term_cut_into_chunks_is_the_whole_step(world: World, narrow: Path, case: str) -> None:
    every = {
        name: weight for name, weight in EVERY.items() if (name, case) != ("hidden", "narrow")
    }  # Equal widths only.

    def gradients(chunk_tokens: int) -> tuple[int, dict[str, float], dict[str, Tensor]]:
        weights = LossWeights(**every, mutual=0.5 if case == "mutual" else 0.0)
        cross_task = task(world, weights, narrow if case == "narrow" else None, chunk_tokens=chunk_tokens)
        step = cross_task.plan(0)[1]
        sums: dict[str, float] = {}
        for chunk in step.chunks:
            loss, parts = cross_task.loss(chunk)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        learned = cross_task.learner.named_parameters()
        return len(step.chunks), sums, {name: value.grad for name, value in learned if value.grad is not None}

    chunks, uncut, first = gradients(8000)
    several, parts, second = gradients(300)
    assert (chunks, several > 2) == (1, True)
    assert every.keys() <= uncut.keys()
    assert {name for name in every if uncut[name] == 0} == (set() if case == "narrow" else {"embedding"})  # a copy
    assert parts == pytest.approx(uncut, rel=1e-4)
    assert first.keys() == second.keys()
    assert any(name.startswith("projections.0.cosine") for name in first) == (case == "narrow")
    assert any(name.startswith("students.1.") for name in first) == (case == "mutual")
    for name, gradient in first.items():
        assert torch.allclose(gradient, second[name], atol=2e-5 * max(1.0, float(gradient.abs().max()))), name


def test_the_teacher_is_as_it_was(world: World) -> None:
    cross_task = task(world, LossWeights(**EVERY))
    assert cross_task.objective.teacher is not None
    before = {name: value.clone() for name, value in cross_task.objective.teacher.state_dict().items()}
    loss, _ = cross_task.loss(cross_task.plan(0)[0].chunks[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is None for value in cross_task.objective.teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in cross_task.objective.teacher.state_dict().items())
    assert not any("teacher" in name for name, _ in cross_task.learner.named_parameters())


def test_a_student_that_is_the_teacher_has_nothing_to_match(world: World) -> None:
    """Self-distillation from the teacher's own weights: all terms over tokens are 0 at the first step."""
    large = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, large.tokenizer, max_query_tokens=6, max_tokens=24)
    weights, match = LossWeights(**dict.fromkeys(OVER_TOKENS, 1.0)), Match(tokens=(1, 2, 3, 4), relation=4, heads=2)
    cross_task = cross_encoder.CrossTask(
        surgery.student(large, (1, 2, 3, 4)),
        pairs,
        LOOP,
        Objective(weights=weights, match=match, teacher=large),
        max_list=6,
    )
    _, parts = cross_task.loss(cross_task.plan(0)[0].chunks[0])
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        dict.fromkeys(OVER_TOKENS, 0), abs=1e-5
    )


def falls(trained: Artifact, name: str) -> bool:
    history = [point[name] for point in trained.metrics["history"]]
    return bool(np.mean(history[-3:]) < 0.9 * np.mean(history[:3]))


@pytest.mark.parametrize("name", OVER_TOKENS)
def test_each_term_alone_is_learned_from_another_base(world: World, narrow: Path, name: str) -> None:
    """A student of half the width: what is matched comes nearer while nothing else is asked for."""
    alone: dict[str, Any] = {"hard_ordinal_weight": 0.0, "hard_pairwise_weight": 0.0, f"{name}_weight": 1.0}
    config = replace(PLAIN, base=str(narrow), loop=replace(LOOP, epochs=5.0, evaluations=0), **alone)
    student = make(world, config)
    assert set(student.metrics["history"][-1]) == {"step", "loss", name}
    assert falls(student, name)
    assert CrossEncoder.load(student.path).hidden == 16
    assert set(student.manifest.files) >= {"head.json", "model/model.safetensors"}
    assert not any("projection" in file for file in student.manifest.files)


@pytest.mark.parametrize(
    "name",
    [name for name in SCORE_TERMS if name not in ("ordinal", "pairwise")],  # All rankers here learn from these.
)
def test_rankers_learn_from_each_loss_of_order(world: World, name: str) -> None:
    changes: dict[str, Any] = {"hard_ordinal_weight": 0.0, "hard_pairwise_weight": 0.0, f"hard_{name}_weight": 1.0}
    config = replace(PLAIN, loop=replace(LOOP, epochs=8.0), **changes)
    student = make(world, replace(config, base=str(world.base), layers=4))
    assert student.metrics["ndcg@10 before"] < 0.9
    assert student.metrics["ndcg@10"] > 0.97


def test_teachers_have_the_same_losses(world: World) -> None:
    weights: dict[str, Any] = {f"{name}_weight": 0.5 for name in SCORE_TERMS if name != "ordinal"}
    trained = teacher.make(
        world.workspace,
        TeacherConfig(max_tokens=24, max_query_tokens=6, loop=SHORT, ordinal_weight=0.0, **weights),
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        base=str(world.base),
    )
    assert set(trained.metrics["history"][-1]) == {"step", "loss", *SCORE_TERMS} - {"ordinal"}


def test_two_students_learn_from_each_other_and_one_is_kept(world: World) -> None:
    config = replace(PLAIN, mutual_weight=1.0, loop=replace(LOOP, epochs=6.0))
    student = make(world, config)
    assert set(student.metrics["history"][-1]) == {"step", "loss", "ordinal", "pairwise", "mutual", "peer"}
    assert student.metrics["ndcg@10"] > 0.97
    assert CrossEncoder.load(student.path).layers == 2
    first = student.metrics["history"][0]
    assert first["mutual"] > 0
    assert first["peer"] != pytest.approx(first["ordinal"] * 0.5 + first["pairwise"], rel=1e-6)


def test_mutual_loss_is_both_divergences(world: World) -> None:
    cross_task = task(world, LossWeights(ordinal=1.0, mutual=2.0, temperature=3.0))
    chunk = cross_task.plan(0)[0].chunks[0]
    loss, parts = cross_task.loss(chunk)
    assert loss.item() == pytest.approx(
        parts["ordinal"].item() + parts["peer"].item() + 2 * parts["mutual"].item(), rel=1e-5
    )
    logs = [
        ranking.grade_log_probabilities(
            torch.from_numpy(scoring.cross_scores(student.eval(), cross_task.pairs, chunk.indices, precision="fp32")),
            student.thresholds.detach(),
            3.0,
        )
        for student, _ in cross_task.learner.each()
    ]
    both = sum((a.exp() * (a - b)).sum() for a, b in (logs, logs[::-1])) * 9 / len(chunk.indices)
    assert parts["mutual"].item() == pytest.approx(float(both), rel=1e-3)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("case", ["mutual", "projections"])
def test_a_killed_ranker_goes_on_and_becomes_the_same(
    world: World, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes: dict[str, Any] = {"mutual_weight": 0.5} if case == "mutual" else {"base": str(narrow), **ALL_OVER_TOKENS}
    config = replace(PLAIN, **changes, loop=replace(SHORT, checkpoint_s=0.0, epochs=1.0))
    straight = make(world, config, tmp_path / "straight")
    _kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        make(world, config, tmp_path / "broken")
    monkeypatch.undo()
    assert list((tmp_path / "broken").rglob("step-*.safetensors"))
    resumed = make(world, config, tmp_path / "broken")
    assert resumed.manifest.files == straight.manifest.files  # the same weights, byte by byte


def _kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls, original = 0, cross_encoder.CrossTask.loss

    def loss(self: cross_encoder.CrossTask, chunk: cross_encoder.PairChunk) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        return original(self, chunk)

    monkeypatch.setattr(cross_encoder.CrossTask, "loss", loss)


def test_self_distillation_from_the_teachers_start_reaches_the_teacher(world: World) -> None:
    """Born again: as deep as the teacher, from the weights that it started from, and without any grade."""
    teacher_weights = {"soft_weight": 0.5, "margin_weight": 0.5, "logit_weight": 0.5}
    alone: dict[str, Any] = {"hard_ordinal_weight": 0.0, "hard_pairwise_weight": 0.0, **teacher_weights}
    student = make(world, replace(PLAIN, base=str(world.base), layers=4, loop=replace(LOOP, epochs=12.0), **alone))
    assert student.metrics["keep_layers"] == [1, 2, 3, 4]
    assert student.metrics["ndcg@10 before"] < 0.85
    assert student.metrics["ndcg@10"] > 0.98
    assert all(falls(student, name) for name in ("soft", "margin", "logit"))


def test_an_outside_teachers_scores_come_with_their_own_thresholds(world: World, tmp_path: Path) -> None:
    table = pq.read_table(world.pairs.file("pairs.parquet"))
    noise = np.random.default_rng(2).normal(size=len(table))
    scores = 100 + 5 * table["grade"].to_numpy() + noise
    pq.write_table(pa.table({"row_id": table["row_id"], "score": scores}), tmp_path / "scores.parquet")
    given = ExternalTeacherConfig(scores=str(tmp_path / "scores.parquet"))
    scores = external_teacher.make(tmp_path, given, data=world.data, pairs=world.pairs, layers=())
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    read = teacher_targets.TeacherTargets.read(world.teacher, scores, pairs)
    assert read.thresholds.tolist() != pytest.approx(model.thresholds.tolist(), rel=1e-3)
    assert np.corrcoef(read.scores, pairs.grades)[0, 1] > 0.95
    config = replace(PLAIN, soft_weight=1.0, margin_weight=0.5)
    student = ranker.make(
        tmp_path,
        config,
        CANDIDATES,
        data=world.data,
        pairs=world.pairs,
        teacher=world.teacher,
        teacher_scores=scores,
    )
    assert {"soft", "margin"} <= student.metrics["history"][-1].keys()


# What is refused


def test_attention_of_unequal_heads_is_refused(world: World, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    BertTokenizer.from_pretrained(world.base).save_pretrained(tmp_path)
    config = BertConfig.from_pretrained(world.base, num_attention_heads=4)
    BertModel(config).save_pretrained(tmp_path)
    other = replace(PLAIN, base=str(tmp_path), attention_weight=1.0)
    with pytest.raises(ConfigError, match=r"student has 4 attention heads, the teacher 2.*ranker\.relation_weight"):
        make(world, other)
    make(world, replace(other, attention_weight=0.0, relation_weight=1.0))  # needs no equal heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation_weight": 1.0, "relation_heads": 3}, r"ranker\.relation_heads: 3 do not divide both"),
        ({"relation_weight": 1.0, "relation_layer": 5}, r"ranker\.relation_layer is 5; the teacher has layers 1 to 4"),
        ({"attention_weight": 1.0, "layer_map": (1, 2, 3)}, "student has 2, so name fewer"),
        ({"token_hidden_weight": 1.0, "layer_map": (9,)}, r"ranker\.layer_map \[9\]: the teacher has layers 1 to 4"),
        ({"hidden_weight": 1.0, "layer_map": (0,)}, r"ranker\.layer_map \[0\]: the teacher has layers 1 to 4"),
        ({"mutual_weight": 1.0, "layers": 4}, "all 4 layers are kept"),
    ],
)
def test_what_cannot_apply_is_refused_before_training(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(ranker, "learn", None)
    with pytest.raises(ConfigError, match=message):
        make(world, replace(PLAIN, **changes))


def test_a_layer_map_is_checked_before_the_teacher_scores_anything(world: World) -> None:
    with pytest.raises(ConfigError, match="the teacher has layers 1 to 4"):
        ranker.taught_by(replace(PLAIN, hidden_weight=1.0, layer_map=(7,)), world.teacher)


def test_terms_over_tokens_need_the_teachers_tokenizer(world: World, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    base_model(tmp_path)
    words = list(BertTokenizer.from_pretrained(tmp_path).get_vocab())
    swapped = {word: number for number, word in enumerate([*words[:5], *reversed(words[5:])])}
    BertTokenizer(vocab=swapped).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"another tokenizer than the teacher.*ranker\.cosine_weight"):
        make(world, replace(PLAIN, base=str(tmp_path), cosine_weight=1.0))
    make(world, replace(PLAIN, base=str(tmp_path), logit_weight=1.0))  # which reads no tokens


def test_patient_kd_without_states_is_refused_before_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = teacher_scores.make(
        world.workspace, teacher=world.teacher, data=world.data, pairs=world.pairs, layers=(), width=32
    )
    monkeypatch.setattr(ranker, "learn", None)
    with pytest.raises(ArtifactError, match="states of layers"):
        ranker.make(
            world.workspace,
            replace(PLAIN, hidden_weight=1.0),
            CANDIDATES,
            data=world.data,
            pairs=world.pairs,
            teacher=world.teacher,
            teacher_scores=bare,
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (LossWeights(), "every loss has weight 0"),
        (LossWeights(hidden=1.0), "every loss has weight 0"),  # a student of one layer has none to match
        (LossWeights(soft=1.0, logit=1.0), "losses soft, logit need the teacher's scores"),
        (LossWeights(ordinal=1.0, cosine=1.0), "losses cosine need the teacher itself"),
        (LossWeights(ordinal=1.0, mutual=1.0), "losses mutual need a second student"),
    ],
)
def test_a_task_says_what_its_losses_lack(world: World, weights: LossWeights, message: str) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    with pytest.raises(ConfigError, match=message):
        cross_encoder.CrossTask(model, pairs, LOOP, Objective(weights=weights), max_list=6)


def test_another_scale_of_grades_is_refused(world: World) -> None:
    model = CrossEncoder.load(world.teacher.path)
    pairs = pair_tokens.read_pairs(world.data, world.pairs, model.tokenizer, max_query_tokens=6, max_tokens=24)
    finer = replace(pairs, grades=pairs.grades * 2)
    with pytest.raises(ArtifactError, match="knows grades 0 to 2, the pairs go up to 4"):
        teacher_targets.TeacherTargets.read(world.teacher, world.teacher_scores, finer)
    with pytest.raises(ConfigError, match="grades up to 4, the model knows 0 to 2"):
        cross_encoder.CrossTask(model, finer, LOOP, Objective(weights=LossWeights(ordinal=1.0)), max_list=6)
    targets = teacher_targets.TeacherTargets.read(world.teacher, world.teacher_scores, pairs)
    coarse = replace(targets, thresholds=targets.thresholds[:1])
    objective = Objective(weights=LossWeights(soft=1.0), targets=coarse)
    with pytest.raises(ArtifactError, match="teacher knows grades 0 to 1 and the student 0 to 2"):
        cross_encoder.CrossTask(model, pairs, LOOP, objective, max_list=6)


@pytest.mark.parametrize("kind", [TeacherConfig, RankerConfig])
def test_weights_that_are_no_weights_are_refused(kind: Callable[..., Any]) -> None:
    name = "pairwise_weight" if kind is TeacherConfig else "cosine_weight"
    with pytest.raises(ConfigError, match=f"{name} is -0.5; it must be 0, for none, or more"):
        kind(**{name: -0.5})
    zero = {key: 0.0 for key in kind.__dataclass_fields__ if key.endswith("_weight")}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="nothing to learn"):
        kind(**zero)
    for setting in hyperparameters():
        if hasattr(kind(), setting):
            with pytest.raises(ConfigError, match=rf"{setting} is -1.*must be"):
                kind(**{setting: -1.0})
    with pytest.raises(ConfigError, match=r"hinge_margin is 0.*above 0"):
        kind(hinge_margin=0.0)


def test_a_loss_that_is_no_number_stops_with_the_checkpoint_whole(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PLAIN, mutual_weight=1.0, loop=replace(SHORT, checkpoint_s=0.0, epochs=1.0))
    straight = make(world, config, tmp_path / "straight")
    calls, original = 0, cross_encoder.CrossTask.loss

    def loss(self: cross_encoder.CrossTask, chunk: cross_encoder.PairChunk) -> Any:
        nonlocal calls
        calls += 1
        value, parts = original(self, chunk)
        return value * (float("nan") if calls == 4 else 1.0), parts

    monkeypatch.setattr(cross_encoder.CrossTask, "loss", loss)
    with pytest.raises(TrainingError, match="at step 4"):
        make(world, config, tmp_path / "broken")
    monkeypatch.undo()
    assert make(world, config, tmp_path / "broken").manifest.files == straight.manifest.files
