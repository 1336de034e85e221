"""The ranker: a shallow cross-encoder distilled from the teacher. Without a teacher's scores, the plain student.

From `data`, `pairs`, the teacher and its scores; exported for serving, judged in the report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig, RankerConfig, to_dict
from pipeline.errors import ConfigError
from pipeline.models import surgery, texts, weights
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import scoring
from pipeline.training.batches import read_pairs
from pipeline.training.cross_task import CrossTask, Lessons, Weights, first_thresholds, learn

VERSION = 2

FROM_TEACHER = "teacher"


def make(
    workspace: Path,
    config: RankerConfig,
    candidates: CandidatesConfig,
    data: Artifact,
    pairs: Artifact,
    teacher: Artifact,
    teacher_scores: Artifact | None,
) -> Artifact:
    """The `ranker` artifact: `model/` and `head.json` of a CrossEncoder; metrics of the valid split before and after.

    Args:
        teacher: gives its layers where `config.base` says so, and in any case the lengths of the input.
        teacher_scores: what it said about `pairs`; None trains the plain student, with the hard losses alone.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: a layer to keep or to learn from that is not there.
        ArtifactError: scores of another teacher or other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    place = teacher.path if config.base == FROM_TEACHER else weights.folder(config.base)
    inputs: dict[str, Artifact | str] = {"data": data, "pairs": pairs, "teacher": teacher}
    if config.base != FROM_TEACHER:
        inputs["base"] = weights.digest(config.base)
    if teacher_scores is not None:
        inputs["teacher_scores"] = teacher_scores

    def build(staging: Staging) -> Mapping[str, Any]:
        whole = CrossEncoder.load(teacher.path)
        depth, room = whole.layers, whole.template
        tokenizer = whole.tokenizer
        if config.base != FROM_TEACHER:
            tokenizer = texts.plain_tokenizer(texts.load_tokenizer(place))
        table = read_pairs(data, pairs, tokenizer, max_query_tokens=room.max_query_tokens, max_tokens=room.max_tokens)
        if config.base != FROM_TEACHER:
            whole = CrossEncoder.start(
                place,
                thresholds=first_thresholds(table),
                max_tokens=room.max_tokens,
                max_query_tokens=room.max_query_tokens,
                seed=config.loop.seed,
            )
        keep = config.keep_layers or surgery.spaced(whole.layers, config.layers)
        student = surgery.student(whole, keep).to(scoring.device())
        del whole

        losses = Weights(ordinal=config.hard_ordinal_weight, pairwise=config.hard_pairwise_weight)
        lessons: Lessons | None = None
        taught: tuple[int, ...] = ()
        if teacher_scores is not None:
            losses = Weights(
                ordinal=config.hard_ordinal_weight,
                pairwise=config.hard_pairwise_weight,
                soft=config.soft_weight,
                temperature=config.temperature,
                margin=config.margin_weight,
                hidden=config.hidden_weight,
            )
            lessons = Lessons.read(teacher, teacher_scores, table)
            taught = _layer_map(config, depth, len(keep))
        task = CrossTask(
            student,
            table,
            config.loop,
            losses,
            max_list=candidates.max_list,
            lessons=lessons,
            layer_map=taught,
        )
        label = "ranker" if lessons else "plain student"
        progress = learn(task, label=label, checkpoint=staging.checkpoint)
        student.save(staging.folder)
        return {**progress.metrics(scoring.MEASURE, "pairs"), "keep_layers": list(keep), "layer_map": list(taught)}

    return artifacts.make(
        workspace,
        "ranker",
        version=VERSION,
        config={**to_dict(config), "max_list": candidates.max_list},
        inputs=inputs,
        build=build,
    )


def taught_by(config: RankerConfig, teacher: Artifact) -> tuple[tuple[int, ...], int]:
    """Which teacher layers the ranker is matched to, and how wide it is: what `teacher_scores.make` must keep.

    Raises:
        ConfigError: a layer map longer than the student.
        MissingError: the ranker's base model cannot be had.
    """
    depth, hidden = weights.shape(teacher.path / "model")
    if config.base == FROM_TEACHER:
        base_depth, width = depth, hidden
    else:
        base_depth, width = weights.shape(weights.folder(config.base))
    layers = len(config.keep_layers or surgery.spaced(base_depth, config.layers))
    return _layer_map(config, depth, layers), width


def _layer_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers for the student layers 1, 2, …; none where the Patient KD term has no weight."""
    if not config.hidden_weight:
        return ()
    if len(config.layer_map) > layers:
        raise ConfigError(
            f"ranker.layer_map names {len(config.layer_map)} teacher layers; the student has {layers}, so name fewer"
        )
    return config.layer_map or surgery.layer_map(depth, layers)
