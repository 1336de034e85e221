"""The end of a ranker's training with the rounding of its int8 export: quantisation-aware training.

    first part, as ever  →  round (models/int8_rounding)  →  last part  →  do not round

The best state is chosen in the last part, by the measure of the rounding model, which is what will serve.
"""

import dataclasses
import time

from pipeline.artifacts import Staging
from pipeline.models import int8_rounding
from pipeline.training.loop.checkpoint import Progress
from pipeline.training.tasks.cross_encoder import CrossTask, learn

RATE = 0.5
"""Peak learning rate of the last part, as a share of the first part's; the first part has ended at a low rate."""


def learn_rounded(task: CrossTask, share: float, *, label: str, staging: Staging) -> Progress:
    """Trains the task's model, the last `share` of it with rounding; the progress is of both parts together.

    Args:
        task: its `config` says how long the whole training is.
        share: above 0, at most 1.

    Raises:
        TrainingError: nothing to train on, or the loss is not a number.
    """
    config, first = task.config, Progress()
    if share < 1:
        task.config = config.part(1 - share)
        first = learn(task, label=label, staging=staging)
    for student, _ in task.learner.each():
        int8_rounding.put(student)
    rate = config.learning_rate * (RATE if share < 1 else 1.0)
    # Another seed draws another order: the last part is no repetition of the first.
    task.config = dataclasses.replace(config.part(share), learning_rate=rate).reseeded(1)
    own = dataclasses.replace(staging, checkpoint=staging.checkpoint / "int8", began=time.monotonic())
    last = learn(task, label=f"{label}, int8", staging=own)
    for student, _ in task.learner.each():
        int8_rounding.remove(student)
    task.config = config
    return _joined(first, last)


def _joined(first: Progress, last: Progress) -> Progress:
    """The progress of two trainings, one after the other; its best state is the second's."""
    sums = {
        name: getattr(first, name) + getattr(last, name)
        for name in ("step", "examples", "tokens", "padded", "seconds", "preparation", "evaluation")
    }
    return Progress(
        **sums,
        before=last.before if first.before is None else first.before,
        best=last.best,
        best_step=first.step + last.best_step,
        evaluations=[*first.evaluations, *((first.step + step, value) for step, value in last.evaluations)],
        history=[*first.history, *({**point, "step": first.step + point["step"]} for point in last.history)],
    )
