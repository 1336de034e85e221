"""The teacher: a large cross-encoder, trained on graded pairs.

The stage reads the artifacts `data` and `pairs` and a base encoder. The stages teacher_scores, ranker and report read
its output.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig, TeacherConfig
from pipeline.models import base_models, model_card, surgery
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import scoring
from pipeline.training.losses.cross_encoder_terms import LossWeights
from pipeline.training.tasks.cross_encoder import CrossTask, learn
from pipeline.training.tasks.initial_model import InputLength, untrained
from pipeline.training.tasks.objective import Objective

STAGE = Stage("teacher", version=2, inputs={"data": "data", "pairs": "pairs", "base": "pretrained"}, section="teacher")


@STAGE
def make(
    workspace: Path,
    config: TeacherConfig,
    candidates: CandidatesConfig,
    *,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
) -> Artifact:
    """The `teacher` artifact: `model/` and `head.json` of a CrossEncoder.

    Its metrics are those of the valid split before and after training.

    Args:
        base: a pretrained artifact, or a folder, package or hub name as `model_folders.folder` takes it.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: the base is no encoder, has too few layers or positions.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    start = base_models.StartingModel.of(base)

    def build(staging: Staging) -> Mapping[str, Any]:
        with start.opened(staging) as folder:
            length = InputLength(max_tokens=config.max_tokens, max_query_tokens=config.max_query_tokens)
            model, table = untrained(folder, data, pairs, length, seed=config.loop.seed)
        if config.layers:
            model = surgery.student(model, surgery.spaced(model.layers, config.layers))
        model.template = replace(model.template, passages=config.passages.passages(None))
        model.to(scoring.device())
        objective = Objective(weights=LossWeights.of_config(config))
        task = CrossTask(
            model, table, config.loop, objective, max_list=candidates.max_list, click_weight=candidates.click_weight
        )
        progress = learn(task, label="teacher", staging=staging)
        model.save(staging.folder)
        metrics = progress.metrics(scoring.MEASURE, "pairs")
        record = model_card.TrainingRecord(
            base=base,
            inputs={"data": data, "pairs": pairs},
            config=to_dict(config),
            metrics=metrics,
            measure=scoring.MEASURE,
        )
        model_card.write(staging.folder / "model", "teacher", model, record)
        return metrics

    return STAGE.make(
        workspace,
        config={**to_dict(config), **candidates.step_settings()},
        inputs={"data": data, "pairs": pairs, "base": start.input},
        build=build,
    )
