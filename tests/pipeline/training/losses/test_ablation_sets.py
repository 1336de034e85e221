"""Loss sets written as text become ranker configs with those weights and no others."""

import dataclasses

import pytest

from pipeline.config import RankerConfig
from pipeline.errors import ConfigError
from pipeline.training.losses import ablation_sets

RECIPE = RankerConfig(
    hard_ordinal_weight=0.5, hard_pairwise_weight=1.0, soft_weight=0.5, margin_weight=0.25, hidden_weight=0.1
)


def teacher_weights(config: RankerConfig) -> dict[str, float]:
    """The teacher's losses in use."""
    return {name: weight for name, weight in ablation_sets.terms(config).items() if weight}


def test_hard_leaves_nothing_of_the_teacher() -> None:
    loss_set = ablation_sets.parse("hard", RECIPE)
    assert teacher_weights(loss_set.config) == {}
    assert (loss_set.config.hard_ordinal_weight, loss_set.config.hard_pairwise_weight) == (0.5, 1.0)
    assert not loss_set.from_teacher
    assert loss_set.terms == 2


def test_terms_have_the_recipes_weights_or_their_own() -> None:
    loss_set = ablation_sets.parse("soft + margin=2", RECIPE)
    assert teacher_weights(loss_set.config) == {"soft": 0.5, "margin": 2.0}
    assert loss_set.from_teacher
    assert loss_set.terms == 4


def test_all_is_what_the_recipe_learns_from_its_teacher() -> None:
    assert teacher_weights(ablation_sets.parse("all", RECIPE).config) == teacher_weights(RECIPE)


def test_hard_losses_can_be_taken_away() -> None:
    loss_set = ablation_sets.parse("hard=0+soft", RECIPE)
    assert (loss_set.config.hard_ordinal_weight, loss_set.config.hard_pairwise_weight) == (0.0, 0.0)
    assert loss_set.terms == 1


def test_everything_else_stays_as_the_recipe_has_it() -> None:
    other = dataclasses.replace(RECIPE, layers=4, temperature=3.0)
    student_config = ablation_sets.parse("margin", other).config
    assert (student_config.layers, student_config.temperature, student_config.loop) == (4, 3.0, other.loop)


def test_plain_owes_nothing_to_a_teacher() -> None:
    loss_set = ablation_sets.parse("plain", RECIPE)
    assert (loss_set.name, loss_set.config.base, teacher_weights(loss_set.config)) == ("plain", "base", {})
    assert not loss_set.from_teacher


def test_a_taught_student_can_be_cut_from_the_base() -> None:
    loss_set = ablation_sets.parse("soft@base", RECIPE)
    assert (loss_set.config.base, teacher_weights(loss_set.config)) == ("base", {"soft": 0.5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soft+magin", "no loss is called 'magin'"),
        ("soft=much", "'much' is no weight"),
        ("soft=nan", "sets 'soft=nan': 'nan' is no weight"),
        ("soft=inf", "'inf' is no weight"),
        ("soft=-1", "sets 'soft=-1': '-1' is no weight"),
        ("hard=-inf", "'-inf' is no weight"),
        ("", "no loss is called ''"),
        ("soft=1+soft=2", r"sets 'soft=1\+soft=2': has soft twice; write each loss once"),
        ("hard+soft+hard=0", "has hard twice"),
        ("soft@teachr", "'@teachr' is no start"),
    ],
)
def test_what_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ablation_sets.parse(text, RECIPE)


def test_a_term_that_the_recipe_leaves_out_needs_a_weight() -> None:
    without = dataclasses.replace(RECIPE, margin_weight=0.0)
    with pytest.raises(ConfigError, match=r"ranker\.margin_weight is 0; give a weight"):
        ablation_sets.parse("margin", without)
    assert teacher_weights(ablation_sets.parse("margin=0.5", without).config) == {"margin": 0.5}
