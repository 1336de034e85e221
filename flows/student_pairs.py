"""Checks the pairs that students learn from before the first training, as far as they can be made without a model."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from flows import training
from flows.runner import Runner
from flows.training_inputs import TeacherInputs
from pipeline.artifacts import Artifact
from pipeline.config import RankerConfig, Recipe, weights_of
from pipeline.errors import ConfigError
from pipeline.training.ranker_shape import HARD

COMPARED = ("margin_weight", "listwise_weight", "infonce_weight")
"""Weights of the losses by which a student learns from its teacher how the documents of one query compare."""


def check(recipe: Recipe, students: Iterable[RankerConfig], inputs: TeacherInputs, run: Runner) -> None:
    """Makes the labelled and unlabelled pairs of a recipe and checks that its students can learn from them.

    Args:
        recipe: its augmented pairs, which take a model, are left out; they stand in lists as long as the labelled ones.
        students: sections of rankers that learn from a teacher.
        inputs: what comes before the first training (`training.labelled`).

    Raises:
        ConfigError: no unlabelled pair is found, or a student learns from its teacher by comparing documents alone
            where no query has two.
        SchemaError: the file of an external teacher lacks pairs.
    """
    import pyarrow.parquet as pq

    from pipeline.training import external_scores

    labelled = dataclasses.replace(recipe, candidates=dataclasses.replace(recipe.candidates, augmented=0.0))
    pairs = training.with_ungraded(labelled, inputs, run)
    if recipe.external_teacher.scores:
        table = pq.read_table(pairs.file("pairs.parquet"))
        external_scores.read(Path(recipe.external_teacher.scores), table, pairs)
    longest = min(recipe.candidates.max_list, _longest_list(pairs))
    for student in students:
        losses = [name for name, weight in weights_of(student).items() if weight and not name.startswith(HARD)]
        if longest < 2 and losses and set(losses) <= set(COMPARED):
            raise ConfigError(
                f"ranker.{losses[0]}: it compares documents of one query, and no training step has two of any; raise "
                "candidates.negatives, candidates.unlabelled or candidates.max_list, or give another loss a weight"
            )


def _longest_list(pairs: Artifact) -> int:
    """The most pairs that a query has which students are trained on."""
    import pandas as pd

    table = pd.read_parquet(pairs.file("pairs.parquet"), columns=["query_id", "split"])
    return int(table[table["split"] != "valid"]["query_id"].value_counts().max())
