"""The two parts of a training with rounding: what each gets, and the progress of both together."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Staging
from pipeline.config import LoopConfig
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.int8_rounding import RoundedLinear
from pipeline.training import int8_training
from pipeline.training.loop.checkpoint import Progress

CONFIG = LoopConfig(epochs=2.0, max_tokens=1000, max_seconds=40.0, evaluations=4, learning_rate=1e-4, seed=5)


class Task:
    """The parts of a task that are read: its config and its students."""

    def __init__(self, model: CrossEncoder) -> None:
        self.config, self.learner = CONFIG, self
        self._model = model

    def each(self) -> list[tuple[CrossEncoder, None]]:
        return [(self._model, None)]

    @property
    def rounds(self) -> bool:
        return any(isinstance(module, RoundedLinear) for module in self._model.modules())


@pytest.fixture
def parts(untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Any]:
    """Trains with a share of rounding; what the loop was asked for each time, and the progress."""

    def run(share: float) -> Any:
        task, trainings = Task(CrossEncoder.load(untrained.ranker.path)), []

        def learn(given: Task, *, label: str, staging: Staging) -> Progress:
            trainings.append((given.config, given.rounds, label, staging))
            first = len(trainings) == 1
            return Progress(
                step=6 if first else 2,
                examples=60,
                seconds=1.5,
                before=0.1 if first else 0.5,
                best=0.7 if first else 0.6,
                best_step=4 if first else 1,
                evaluations=[(3, 0.4), (6, 0.7)] if first else [(0, 0.5), (2, 0.6)],
                history=[{"step": 2.0, "loss": 1.0}],
            )

        monkeypatch.setattr(int8_training, "learn", learn)
        any_task: Any = task
        began = time.monotonic() - 1000
        staging = Staging(tmp_path / "folder", tmp_path / "checkpoint", began)
        progress = int8_training.learn_rounded(any_task, share, label="ranker", staging=staging)
        assert task.config is CONFIG
        assert not task.rounds
        return trainings, progress, began

    return run


def test_the_last_part_rounds_and_together_they_take_the_whole_training(parts: Callable[[float], Any]) -> None:
    ((first, rounds, _, early), (last, rounded, label, late)), progress, began = parts(0.25)
    assert (rounds, rounded) == (False, True)
    for name in ("epochs", "max_tokens", "max_seconds", "evaluations"):
        assert getattr(first, name) + getattr(last, name) == getattr(CONFIG, name)
        assert getattr(last, name) == getattr(CONFIG, name) / 4
    assert first.learning_rate == CONFIG.learning_rate
    assert last.learning_rate == CONFIG.learning_rate * int8_training.RATE
    assert first.seed == CONFIG.seed != last.seed
    assert "int8" in label
    assert late.checkpoint.parent == early.checkpoint
    assert early.began == began < late.began  # The seconds of the first part do not count in the second's bound.
    assert (progress.step, progress.examples, progress.seconds) == (8, 120, 3.0)
    assert (progress.before, progress.best, progress.best_step) == (0.1, 0.6, 7)
    assert progress.evaluations == [(3, 0.4), (6, 0.7), (6, 0.5), (8, 0.6)]
    assert [point["step"] for point in progress.history] == [2.0, 8.0]


def test_rounding_in_all_of_it_is_one_training(parts: Callable[[float], Any]) -> None:
    ((config, rounded, _, _),), progress, _ = parts(1.0)
    assert rounded
    assert (config.epochs, config.max_tokens, config.max_seconds) == (2.0, 1000, 40.0)
    assert config.learning_rate == CONFIG.learning_rate
    assert progress.step == 6
