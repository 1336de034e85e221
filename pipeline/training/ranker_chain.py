"""The chain of rankers of a recipe, as shapes alone: each assistant and the ranker, its source and its teacher.

    teacher ─► assistants[0] ─► … ─► ranker     each is cut from the model before it, the teacher's base, a new model
                                                or a base of its own

`preflight` checks the chain before the first training; the study searches shapes for its end.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.config import RankerConfig, Recipe, weights_of
from pipeline.errors import ConfigError
from pipeline.models import base_models, model_files, model_folders
from pipeline.models.base_models import ModelShape
from pipeline.models.families import family_of
from pipeline.recipe import named
from pipeline.training import encoder, pretrain, ranker, ranker_shape
from pipeline.training.losses.cross_encoder_terms import TOKEN_TERMS


class RankerCut(NamedTuple):
    """An assistant or the ranker, and the models that it comes from."""

    path: str
    """Its key in the recipe."""
    config: RankerConfig
    source: ModelShape
    """The model that it is cut from."""
    teacher: ModelShape
    """The model that it learns from."""


def source_shape(recipe: Recipe) -> ModelShape:
    """The shape of the model that the ranker is cut from.

    Raises:
        ConfigError: the teacher or a student cannot be had from its base.
        MissingError: a base model cannot be had.
    """
    *_, last = cuts(recipe)
    return last.source


def cuts(recipe: Recipe) -> Iterator[RankerCut]:
    """Each assistant and the ranker in their order.

    Raises:
        ConfigError: the teacher or a student cannot be had from its base.
        MissingError: a base model cannot be had.
    """
    base = base_shape(recipe)
    can_be_cut = "cut" in family_of(base.model_type).offers
    if recipe.teacher.layers not in (0, base.layers) and not can_be_cut:
        raise ConfigError(f"teacher.layers: no layers of a {base.model_type} model can be left out; set it to 0")
    if recipe.teacher.layers > base.layers:
        raise ConfigError(
            f"teacher.layers is {recipe.teacher.layers}: its base has {base.layers}; keep at most that many"
        )
    teacher = dataclasses.replace(base, layers=recipe.teacher.layers or base.layers)
    for path, config in students(recipe):
        known = {ranker.FROM_TEACHER: teacher, ranker.FROM_BASE: base, pretrain.SCRATCH: _scratch(recipe)}
        source = known.get(config.base) or _cross_encoder(config.base)
        if config.base == pretrain.SCRATCH != recipe.teacher.base:
            _check_new_tokens(path, config)
        yield RankerCut(path, config, source, teacher)
        with named("ranker", path):
            teacher = ranker_shape.cut(config, source, teacher)


def students(recipe: Recipe) -> list[tuple[str, RankerConfig]]:
    """Key and section of each assistant and the ranker."""
    assistants = [(f"assistants[{number}]", student) for number, student in enumerate(recipe.assistants)]
    return [*assistants, ("ranker", recipe.ranker)]


def _check_new_tokens(path: str, config: RankerConfig) -> None:
    """Checks that a new model, whose vocabulary is new too, is not compared with its teacher token by token.

    Raises:
        ConfigError: it is; names the key.
    """
    for name in TOKEN_TERMS:
        if getattr(config, f"{name}_weight"):
            raise ConfigError(
                f"{path}.{name}_weight: the new model of {path}.base has a vocabulary of its own, so its tokens cannot "
                "be compared with the teacher's; set it to 0"
            )


def check_plain(recipe: Recipe) -> None:
    """Checks that the plain student, which has the ranker's shape, can be cut from the base of the teacher.

    Raises:
        ConfigError: it cannot, as where an assistant with a deeper base of its own is what the ranker is cut from.
        MissingError: a base model cannot be had.
    """
    if recipe.ranker.base != ranker.FROM_TEACHER or not recipe.assistants:
        return
    base = base_shape(recipe)
    weights: dict[str, Any] = {
        name: 0.0 for name in weights_of(recipe.ranker) if not name.startswith(ranker_shape.HARD)
    }
    try:
        ranker_shape.cut(dataclasses.replace(ranker.plain(recipe.ranker), **weights), base, base)
    except ConfigError as error:
        raise ConfigError(f"the plain student, which is cut from teacher.base: {error}") from error


def bases(recipe: Recipe) -> Iterator[tuple[str, RankerConfig, str]]:
    """Key and section of each assistant and the ranker, and the base that it is cut from in the end."""
    base = recipe.teacher.base
    for path, student in students(recipe):
        known = {ranker.FROM_TEACHER: base, ranker.FROM_BASE: recipe.teacher.base}
        base = known.get(student.base, student.base)
        yield path, student, base


def served_bases(recipe: Recipe) -> dict[str, str]:
    """Key → the base that the served model is cut from in the end."""
    *_, (_, _, base) = bases(recipe)
    own = recipe.encoder.base
    return {"ranker.base": base, "encoder.base": recipe.teacher.base if own == encoder.FROM_BASE else own}


def base_shape(recipe: Recipe) -> ModelShape:
    """The shape of the model that the teacher starts from."""
    return _scratch(recipe) if recipe.teacher.base == pretrain.SCRATCH else _cross_encoder(recipe.teacher.base)


def _scratch(recipe: Recipe) -> ModelShape:
    """The shape of the model that the recipe trains from scratch."""
    scratch = recipe.pretrain.scratch
    shared = family_of(scratch.family).shares_layers
    return ModelShape(
        *(scratch.layers, scratch.hidden, scratch.heads),
        shared=shared,
        intermediate=scratch.intermediate,
        model_type=scratch.family,
    )


def _cross_encoder(base: str) -> ModelShape:
    """The shape of a base that a cross-encoder starts from, of a known family and with no head of several labels."""
    folder = model_folders.folder(base)
    shape = base_models.shape(folder)
    model_files.check_head(folder)
    return shape
