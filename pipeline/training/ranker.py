"""The ranker stage: a shallow cross-encoder distilled from the teacher, or the plain student without its scores.

Inputs are `data`, `pairs`, the teacher and its scores; the result is exported for serving and judged in the report.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import CandidatesConfig, RankerConfig
from pipeline.errors import ConfigError
from pipeline.models import base_models, low_rank, model_card, model_folders, pruning, surgery, width_pruning
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training import ranker_shape
from pipeline.training.int8_training import learn_rounded
from pipeline.training.loop import scoring
from pipeline.training.loop.batches import pad, pair_inputs, scoring_batches
from pipeline.training.loop.checkpoint import Progress
from pipeline.training.loop.loop import autocast
from pipeline.training.loop.pair_tokens import Pairs, pair_lengths, read_pairs
from pipeline.training.losses.cross_encoder_terms import (
    TAUGHT_TERMS,
    TOKEN_TERMS,
    LossWeights,
)
from pipeline.training.pretrain import SCRATCH
from pipeline.training.tasks.cross_encoder import CrossTask, learn
from pipeline.training.tasks.initial_model import InputLength, untrained
from pipeline.training.tasks.objective import Objective
from pipeline.training.tasks.teacher_targets import TeacherTargets, as_taught

STAGE = Stage(
    "ranker",
    version=2,
    inputs={
        "data": "data",
        "pairs": "pairs",
        "teacher": ("teacher", "ranker"),
        "teacher_scores": "teacher_scores",
        "base": "pretrained",
    },
    section="ranker",
)

FROM_TEACHER, FROM_BASE = "teacher", "base"
GIVEN = (FROM_BASE, SCRATCH)
"""Values of `ranker.base` for which the caller gives the model."""

IMPORTANCE_PAIRS, IMPORTANCE_BATCH_TOKENS = 1000, 4096
"""Training pairs on which the importance of feed-forward units is estimated, and padded tokens of one batch."""

OTHER_PASSAGES = (
    "the teacher reads long documents in passages, and the student learns from the best of them; its base has another "
    "tokenizer, so it would read other passages: take a base with the teacher's tokenizer, or set "
    "teacher.passages.most to 0"
)
"""The message where teacher and student would read other passages."""


@STAGE
def make(
    workspace: Path,
    config: RankerConfig,
    candidates: CandidatesConfig,
    *,
    data: Artifact,
    pairs: Artifact,
    teacher: Artifact,
    teacher_scores: Artifact | None,
    base: Artifact | str = "",
) -> Artifact:
    """The `ranker` artifact: `model/` and `head.json` of a CrossEncoder, with metrics before and after training.

    Args:
        workspace: the folder that holds `artifacts/`.
        config: the recipe's section `ranker` or one of `assistants`.
        candidates: its `max_list` limits the documents of a query in one step.
        data: documents and queries.
        pairs: graded pairs, perhaps with unlabelled ones.
        teacher: the cross-encoder whose layers are kept if `config.base` is `teacher`, and whose input lengths are.
        teacher_scores: its scores of `pairs`; None trains with the losses over grades alone.
        base: the model that the student is cut from if `config.base` is `base` or `scratch`: what the teacher started
            from, with `config.general_tokens` what `general` made of it, or a new model.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: a layer to keep or to learn from does not exist, or a loss cannot apply to these models.
        ArtifactError: the scores are of another teacher or other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    if config.general_tokens:
        config = config.from_base()  # The base that is given was cut to these layers before.
    origin = _origin(config, teacher, base)
    start = base_models.StartingModel.of(origin)
    inputs: dict[str, Input] = {"data": data, "pairs": pairs, "teacher": teacher}
    if config.base != FROM_TEACHER:
        inputs["base"] = start.input
    if teacher_scores is not None:
        inputs["teacher_scores"] = teacher_scores
    settings = _settings(config, teacher_scores is not None)
    sources = _StudentSources(start=start, data=data, pairs=pairs, teacher=teacher, teacher_scores=teacher_scores)

    def build(staging: Staging) -> Mapping[str, Any]:
        task, keep = _untrained_task(config, candidates, sources, staging)
        progress = _learned(config, task, staging, label=sources.role)
        student, match = task.model, task.objective.match
        low_rank.merge(student)
        metrics = {
            **progress.metrics(scoring.MEASURE, "pairs"),
            "keep_layers": list(keep),
            "layer_map": list(match.first or match.tokens),
        }
        if config.prune_vocabulary:
            metrics["vocabulary"] = pruning.to_corpus(student, pruning.corpus_of(data))
        student.save(staging.folder)
        record = model_card.TrainingRecord(
            base=origin, inputs=inputs, config=settings, metrics=metrics, measure=scoring.MEASURE
        )
        model_card.write(staging.folder / "model", sources.role, student, record)
        return metrics

    return STAGE.make(workspace, config={**settings, **candidates.step_settings()}, inputs=inputs, build=build)


@dataclass(frozen=True, kw_only=True, slots=True)
class _StudentSources:
    """The models and pairs that a student is made from."""

    start: base_models.StartingModel
    """The model that the student is cut from."""
    data: Artifact
    pairs: Artifact
    teacher: Artifact
    teacher_scores: Artifact | None
    """Scores of the pairs by the teacher; None for the plain student."""

    @property
    def role(self) -> model_card.Role:
        """The name of the student in logs and in its model card."""
        return "plain student" if self.teacher_scores is None else "ranker"


def _untrained_task(
    config: RankerConfig, candidates: CandidatesConfig, sources: _StudentSources, staging: Staging
) -> tuple[CrossTask, Sequence[int]]:
    """The student before training, with its pairs and losses, and the layers of its origin that it keeps.

    The model that it is cut from is released with the end of this function, and the teacher unless a loss reads it.
    """
    teacher = CrossEncoder.load(sources.teacher.path)
    with sources.start.opened(staging) as folder:
        origin, table = _source(config, teacher, sources.data, sources.pairs, folder)
    if sources.teacher_scores is not None:
        table = _as_taught(table, sources.teacher_scores, origin, teacher)
    keep = ranker_shape.kept(config, origin.layers)
    student = _cut(config, origin, keep, table)
    passages = config.passages.passages(teacher.template.passages)
    student.template = dataclasses.replace(student.template, passages=passages)
    if sources.teacher_scores is None:
        objective = Objective(weights=LossWeights.of_config(config, ranker_shape.HARD).without_teacher())
    else:
        targets = TeacherTargets.read(sources.teacher, sources.teacher_scores, table)
        peer = None
        if config.mutual_weight:
            peer = _cut(config, origin, ranker_shape.second_student_layers(origin.shape, keep), table)
        objective = _objective(config, student, teacher, targets, peer)
    task = CrossTask(
        student, table, config.loop, objective, max_list=candidates.max_list, click_weight=candidates.click_weight
    )
    return task, keep


def _cut(config: RankerConfig, origin: CrossEncoder, layers: Sequence[int], table: Pairs) -> CrossEncoder:
    """A student of these layers of the model that it is cut from, in the shape that its section asks for."""
    return _narrowed(config, surgery.student(origin, layers).to(scoring.device()), table)


def _learned(config: RankerConfig, task: CrossTask, staging: Staging, *, label: str) -> Progress:
    """Trains the student; with `int8_share` the last part of the training rounds its matrices to int8."""
    if config.int8_share:
        return learn_rounded(task, config.int8_share, label=label, staging=staging)
    return learn(task, label=label, staging=staging)


def taught_by(config: RankerConfig, teacher: Artifact, base: Artifact | str = "") -> tuple[tuple[int, ...], int]:
    """The teacher layers that the ranker is matched to and the ranker's width, as `teacher_scores.make` takes them.

    Args:
        config: the ranker's section.
        teacher: the trained teacher.
        base: what the teacher started from, or the new model of a ranker from scratch.

    Raises:
        ConfigError: a layer map longer than the student or beyond the teacher.
        MissingError: the ranker's base model cannot be had.
    """
    depth = base_models.shape(teacher.path / "model").layers
    source = base_models.shape(model_folders.folder(_origin(config, teacher, base)))
    return ranker_shape.layer_map(config, depth, len(ranker_shape.kept(config, source.layers))), source.hidden


def plain(config: RankerConfig) -> RankerConfig:
    """The config of the plain student: the same shape, cut from the teacher's own base."""
    return config.from_base() if config.base == FROM_TEACHER else config


def _settings(config: RankerConfig, has_teacher: bool) -> dict[str, object]:
    """The settings that a student depends on: without a teacher's scores not the weights of learning from them."""
    settings = to_dict(config)
    del settings["plain"]
    if not has_teacher:
        for name in (
            "temperature",
            "mutual_weight",
            "bm25_teacher",
            *(f"{term}_weight" for term in (*TAUGHT_TERMS, *TOKEN_TERMS)),
        ):
            settings.pop(name, None)  # An added weight of 0 does not stand there.
    return settings


def _origin(config: RankerConfig, teacher: Artifact, base: Artifact | str) -> Artifact | str:
    """The model that the student is cut from.

    Raises:
        ConfigError: it is the teacher's base or a new model, which is not given.
    """
    if config.base in GIVEN and not base:
        raise ConfigError(f"ranker.base is {config.base}: give the model that it stands for")
    if config.base == FROM_TEACHER:
        return teacher
    return base if config.base in GIVEN else config.base


def _source(
    config: RankerConfig, teacher: CrossEncoder, data: Artifact, pairs: Artifact, origin: Path
) -> tuple[CrossEncoder, Pairs]:
    """The model that the student is cut from, and the pairs in its tokens, cut as the teacher cuts them."""
    template = teacher.template
    max_tokens = config.max_tokens or template.max_tokens
    if config.base == FROM_TEACHER:
        longest = max(max_tokens, template.document_tokens)
        table = read_pairs(
            data, pairs, teacher.tokenizer, max_tokens=longest, max_query_tokens=template.max_query_tokens
        )
        return teacher, table
    length = InputLength(
        max_tokens=max_tokens,
        max_query_tokens=template.max_query_tokens,
        document_tokens=template.document_tokens,
    )
    return untrained(origin, data, pairs, length, seed=config.loop.seed)


def _as_taught(table: Pairs, teacher_scores: Artifact, source: CrossEncoder, teacher: CrossEncoder) -> Pairs:
    """The pairs with the passages that the teacher found best.

    Raises:
        ConfigError: the student reads other tokens than the teacher, so that they are no passages of its own.
    """
    passage_pairs = as_taught(table, teacher_scores)
    if passage_pairs is not table and not ranker_shape.same_tokens(source.tokenizer, teacher.tokenizer):
        raise ConfigError(OTHER_PASSAGES)
    return passage_pairs


def _narrowed(config: RankerConfig, student: CrossEncoder, table: Pairs) -> CrossEncoder:
    """The student with the input length, the feed-forward units, dropout and factors that its section asks for."""
    if config.max_tokens:  # The passages of the source may be too long for it; they are set afterwards.
        student.template = dataclasses.replace(student.template, max_tokens=config.max_tokens, passages=None)
    if config.intermediate:
        rows = table.indices("train")[:IMPORTANCE_PAIRS]
        lengths = pair_lengths(table, student.template)[rows]
        batches = (
            pad(pair_inputs(table, rows[some], student.template), scoring.device()).all
            for some in scoring_batches(lengths, IMPORTANCE_BATCH_TOKENS)
        )
        with autocast(config.loop.precision, scoring.device()):
            width_pruning.narrow(student, config.intermediate, batches)
    for module in student.modules():
        if config.dropout and isinstance(module, nn.Dropout):
            module.p = config.dropout
    ranks = low_rank.FactorRanks(config.feed_forward_rank, config.embedding_rank)
    low_rank.check_model(student, ranks)
    low_rank.factorise(student, ranks)
    return student


def _objective(
    config: RankerConfig,
    student: CrossEncoder,
    teacher: CrossEncoder,
    targets: TeacherTargets,
    peer: CrossEncoder | None,
) -> Objective:
    """The losses of a distilled student and what they learn from.

    Raises:
        ConfigError: a loss that cannot apply to these two models.
    """
    weights = LossWeights.of_config(config, ranker_shape.HARD)
    match = ranker_shape.matched_layers(config, student.shape, teacher.shape)
    if weights.of(TOKEN_TERMS):
        ours, theirs = (dataclasses.replace(model.template, passages=None) for model in (student, teacher))
        ranker_shape.same_input(student.tokenizer, teacher.tokenizer, alike=ours == theirs)
        teacher.to(scoring.device())
    return Objective(weights=weights, targets=targets, match=match, teacher=teacher, peer=peer)
