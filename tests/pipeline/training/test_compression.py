"""The known methods as changes of a recipe: which models teach in between, and which of the teacher's layers."""

import dataclasses

import pytest

from pipeline.config import PretrainConfig, RankerConfig, Recipe, ScratchConfig, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.training import compression, ranker_chain, ranker_shape

SMALL = RankerConfig(layers=2, intermediate=16, feed_forward_rank=4, embedding_rank=4, max_tokens=24)
"""A ranker that is made smaller in every way beside its depth that a chain of models can be checked for."""


def recipe(ranker: RankerConfig, *, base_layers: int = 6, teacher_layers: int = 0) -> Recipe:
    scratch = ScratchConfig(layers=base_layers, hidden=32, heads=2, intermediate=64, positions=64)
    teacher = TeacherConfig(base="scratch", layers=teacher_layers, max_tokens=32, max_query_tokens=8)
    return Recipe(pretrain=PretrainConfig(scratch=scratch), teacher=teacher, ranker=ranker)


def applied(name: str, before: Recipe) -> Recipe:
    return compression.by_name(name).change(before, ranker_chain.source_shape(before))


@pytest.mark.parametrize("name", ["noisy-student", "assistant"])
def test_a_model_between_teacher_and_ranker_is_made_small_in_depth_alone(name: str) -> None:
    small = dataclasses.replace(SMALL, int8_share=0.5, prune_vocabulary=True)
    after = applied(name, recipe(small))
    (between,) = after.assistants
    assert {key: getattr(between, key) for key in compression.WHOLE} == {
        key: getattr(RankerConfig(), key) for key in compression.WHOLE
    }
    assert between.layers == (6 if name == "noisy-student" else 4)
    assert {key: getattr(after.ranker, key) for key in compression.WHOLE} == {
        key: getattr(small, key) for key in compression.WHOLE
    }


@pytest.mark.parametrize("base", ["teacher", "base"])
def test_a_noisy_student_has_the_depth_of_its_teacher_and_not_of_its_base(base: str) -> None:
    after = applied("noisy-student", recipe(RankerConfig(layers=2, base=base), teacher_layers=4))
    assert [cut.teacher.layers for cut in ranker_chain.cuts(after)] == [4, 4]


@pytest.mark.parametrize("base", ["teacher", "base"])
def test_relations_of_an_inner_layer_are_those_of_the_teacher(base: str) -> None:
    after = applied("minilm-inner", recipe(RankerConfig(layers=2, base=base), teacher_layers=4))
    assert after.ranker.relation_layer == 3
    with pytest.raises(ConfigError, match="of the teacher's 2 layers the one at three quarters is the last"):
        applied("minilm-inner", recipe(RankerConfig(layers=1, base=base), teacher_layers=2))


def test_relations_of_the_last_layer_are_not_those_that_the_recipe_names() -> None:
    after = applied("minilm-last", recipe(RankerConfig(layers=2, relation_layer=3)))
    *_, last = ranker_chain.cuts(after)
    match = ranker_shape.matched_layers(after.ranker, dataclasses.replace(last.source, layers=2), last.teacher)
    assert match.relation == 6


@pytest.mark.parametrize("name", ["teachers-3", "assistant", "born-again", "noisy-student", "init-base"])
@pytest.mark.parametrize("between", [0, 1])
def test_only_the_first_student_has_several_teachers(name: str, between: int) -> None:
    """A later student learns from one model, so several would be ignored."""
    first = RankerConfig(layers=4, hidden_weight=0.0, teachers=1 + between)
    before = recipe(RankerConfig(layers=2, teachers=2 - between))
    before = dataclasses.replace(before, assistants=(first,) * between)
    after = applied(name, before)
    first, *later = (*after.assistants, after.ranker)
    assert all(student.teachers == 1 for student in later)
    assert first.teachers == 3 or name != "teachers-3"
    with pytest.raises(ConfigError, match=r"set assistants\[0\]\.teachers"):
        dataclasses.replace(before, assistants=(first,), ranker=RankerConfig(layers=2, teachers=2))


def test_states_of_a_ranker_of_one_layer_are_no_method() -> None:
    with pytest.raises(ConfigError, match="the recipe's ranker has one layer, whose states are not compared"):
        applied("patient-kd", recipe(RankerConfig(layers=1)))
    assert applied("patient-kd", recipe(RankerConfig(layers=1, layer_map=(2,)))).ranker.hidden_weight == 1.0


@pytest.mark.parametrize("name", ["init-first", "init-last"])
def test_layers_that_are_kept_anyway_are_no_method(name: str) -> None:
    with pytest.raises(ConfigError, match="cut to layers 1, 2, 3, 4, 5, 6 already"):
        applied(name, recipe(RankerConfig(layers=6)))
