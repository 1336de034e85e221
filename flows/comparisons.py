"""Steps that an ablation and a study share: scores by split, BM25 and teacher as references, and students' seeds."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flows.runner import Runner
from flows.training_inputs import TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.config import RankerConfig
from pipeline.evaluation.ablation import AblationRun

BM25, TEACHER = "BM25", "teacher"
"""Names of the reference systems of every comparison. A student should close the gap from BM25 to the teacher."""
SPLITS = ("valid", "test")
"""The splits whose pairs students are compared on."""


def by_split(run: Runner, stage: Callable[..., Artifact], **inputs: Any) -> dict[str, Artifact]:
    """The artifacts of a stage for the valid and the test queries, by the name of the split.

    Args:
        run: runs the stage once a split.
        stage: the function of a stage that takes `split`.
        inputs: its other arguments.
    """
    return {split: run.labelled(split)(stage, **inputs, split=split) for split in SPLITS}


def references(inputs: TrainingInputs, pool: Artifact, run: Runner) -> list[AblationRun]:
    """The reference systems, BM25 and the teacher, that the students of a comparison are compared with.

    Args:
        pool: the (query, document) pairs of the valid and test queries that every system scores.
    """
    from index import lexical
    from pipeline.training import teacher_scores

    judged = {"data": inputs.data, "pairs": pool}
    bm25 = by_split(run, lexical.score, lexical=inputs.lexical, **judged)
    teacher = by_split(run.labelled(TEACHER), teacher_scores.score, model=inputs.teacher, engine=run.engine, **judged)
    return [AblationRun(BM25, 0, 0, bm25), AblationRun(TEACHER, 0, 0, teacher)]


def seeded(config: RankerConfig, seed: int) -> RankerConfig:
    """The ranker section `config` with `seed` added to the seed of its training loop."""
    return dataclasses.replace(config, loop=config.loop.reseeded(seed))
