"""Whether the models of a recipe can be cut and taught as it says: known from configs alone, before hours of training.

Read by the flows before their first stage. What needs weights or data is still found by the stages themselves.
"""

import dataclasses

from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.models import base_models
from pipeline.models.base_models import ModelShape
from pipeline.models.families import family_of
from pipeline.recipe import named
from pipeline.training import encoder, pretrain, ranker


def check_rankers(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: teacher, an assistant or the ranker cannot be had from its base, or learn from whom it should.
        MissingError: a base model cannot be had.
    """
    base = _base(recipe)
    if recipe.teacher.layers > base.layers:
        raise ConfigError(
            f"teacher.layers is {recipe.teacher.layers}: its base has {base.layers}; keep at most that many"
        )
    tutor = dataclasses.replace(base, layers=recipe.teacher.layers or base.layers)
    students = [(f"assistants[{number}]", one) for number, one in enumerate(recipe.assistants)]
    for place, config in (*students, ("ranker", recipe.ranker)):
        known = {ranker.FROM_TEACHER: tutor, ranker.FROM_BASE: base}
        whole = known.get(config.base) or _cross_encoder(config.base)
        with named("ranker", place):
            tutor = ranker.cut(config, whole, tutor)


def check_encoder(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: the encoder cannot be had from its base.
        MissingError: the base model cannot be had.
    """
    own = recipe.encoder.base != encoder.FROM_BASE
    encoder.check(recipe.encoder, base_models.shape(base_models.folder(recipe.encoder.base)) if own else _base(recipe))


def _base(recipe: Recipe) -> ModelShape:
    """Of what the teacher starts from."""
    scratch = recipe.pretrain.scratch
    if recipe.teacher.base == pretrain.SCRATCH:
        return ModelShape(scratch.layers, scratch.hidden, scratch.heads, shared=family_of(scratch.family).shares_layers)
    return _cross_encoder(recipe.teacher.base)


def _cross_encoder(base: str) -> ModelShape:
    """The shape of a base that a cross-encoder starts from, of a known family and with no head of several labels."""
    folder = base_models.folder(base)
    shape = base_models.shape(folder)
    base_models.check_head(folder)
    return shape
