"""Searches the best depth and width of a ranker under a bound on its cost, by successive halving.

Many shapes are trained briefly, few for long:

    every depth, as wide as the bound allows  →  a quarter of the training each, the better half goes on
                                              →  half of the training, the better half goes on  →  …  →  the best

Source: Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016,
arXiv:1502.07943.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.artifacts import Artifact
from pipeline.config import RankerConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.models.base_models import ModelShape
from pipeline.training import ranker_shape

SOURCE = "Jamieson and Talwalkar 2016, arXiv:1502.07943"
"""The paper of the search, for the table of a study."""

FIRST_SHARE = 0.25
"""Share of the training that every shape gets; each later round gets twice as much, up to all of it."""

LEAST_UNITS = 1 / 16
"""The fewest feed-forward units of a shape, as a share of the model's own."""

Train = Callable[[RankerConfig, str], Artifact]
"""Trains a ranker, given its section and a label; the metrics of the artifact judge it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StudentShape:
    """The depth and feed-forward width of a student, and what it costs."""

    layers: int
    units: int
    cost: float
    """Multiplications for each token in the matrix products, as a share of those of the recipe's ranker."""

    def of(self, config: RankerConfig, source: ModelShape) -> RankerConfig:
        """The recipe's ranker section, changed so that the ranker has this shape."""
        units = 0 if self.units == source.intermediate else self.units
        return dataclasses.replace(
            config, layers=self.layers, keep_layers=(), layer_map=(), intermediate=units, plain=False
        )


def shapes(recipe: Recipe, source: ModelShape) -> list[StudentShape]:
    """The widest shape of each depth whose cost is within the bound, from the shallowest.

    Args:
        recipe: `study.search_cost` is the bound, as a share of the cost of its ranker.
        source: shape of the model that rankers are cut from.

    Raises:
        ConfigError: fewer than two shapes keep the bound, or the recipe's ranker has one layer, the cheapest there is.
    """
    own = recipe.ranker
    full_cost = ranker_shape.products(source, own.depth, own.intermediate or source.intermediate)
    if not full_cost:
        raise ConfigError("study.search_cost: the recipe's ranker has one layer, so none is cheaper; set it to 0")
    allowed = recipe.study.search_cost * full_cost
    candidates = []
    for layers in range(2, source.layers + 1):
        units = ranker_shape.units_within(source, layers, allowed)
        if units >= max(ranker_shape.MULTIPLE, LEAST_UNITS * source.intermediate):
            candidates.append(StudentShape(layers, units, ranker_shape.products(source, layers, units) / full_cost))
    if len(candidates) < 2:
        raise ConfigError(
            f"study.search_cost is {recipe.study.search_cost:g}: {len(candidates)} depths of two layers or more fit "
            "into that share of the ranker's products, and a search needs two; raise it"
        )
    return candidates


def search(recipe: Recipe, source: ModelShape, train: Train, measure: str) -> StudentShape:
    """The best shape within the bound, judged on the valid queries.

    Args:
        recipe: its ranker's loop is the whole training.
        source: shape of the model that rankers are cut from.
        train: trains a ranker.
        measure: the metric of a trained ranker that decides.

    Raises:
        ConfigError: fewer than two shapes keep the bound, or the recipe's ranker has one layer.
    """
    left, share = shapes(recipe, source), FIRST_SHARE
    while len(left) > 1:
        scores = []
        for shape in left:
            label = f"search, {shape.layers} layers × {shape.units}, {share:.0%} of the training"
            config = shape.of(recipe.ranker, source)
            model = train(dataclasses.replace(config, loop=config.loop.part(share)), label)
            scores.append(float(model.metrics[measure] or 0.0))
        left = _better_half(left, scores)
        log.info("search: %s stay", ", ".join(f"{shape.layers} × {shape.units}" for shape in left))
        share = min(1.0, 2 * share)
    return left[0]


def _better_half(shapes: Sequence[StudentShape], scores: Sequence[float]) -> list[StudentShape]:
    """The better half, rounded up, from the best; of equals the shallower."""
    order = sorted(range(len(shapes)), key=lambda number: (-scores[number], shapes[number].layers))
    return [shapes[number] for number in order[: math.ceil(len(shapes) / 2)]]
