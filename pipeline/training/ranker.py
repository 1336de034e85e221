"""The ranker: a shallow cross-encoder distilled from the teacher. Without a teacher's scores, the plain student.

From `data`, `pairs`, the teacher and its scores; exported for serving, judged in the report.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig, RankerConfig
from pipeline.errors import ConfigError
from pipeline.models import base_models, model_card, pruning, surgery, tokenizers
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import scoring
from pipeline.training.loop.batches import read_pairs
from pipeline.training.losses.cross_encoder_terms import (
    SCORE_TERMS,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    LossWeights,
    Match,
)
from pipeline.training.tasks.cross_encoder import CrossTask, learn, untrained
from pipeline.training.tasks.teacher_targets import TeacherTargets

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
    """The `ranker` artifact: `model/` and `head.json` of a CrossEncoder; metrics of the valid split before and after.

    Args:
        teacher: gives its layers where `config.base` says so, and in any case the lengths of the input.
        teacher_scores: what it said about `pairs`; None trains with the hard losses alone.
        base: what the teacher started from; the student is cut from it where `config.base` says so.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: a layer to keep or to learn from that is not there, or a loss that cannot apply to these two.
        ArtifactError: scores of another teacher or other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    origin = _origin(config, teacher, base)
    inputs: dict[str, Artifact | str] = {"data": data, "pairs": pairs, "teacher": teacher}
    if config.base != FROM_TEACHER:
        inputs["base"] = base_models.digest(origin)
    if teacher_scores is not None:
        inputs["teacher_scores"] = teacher_scores

    def build(staging: Staging) -> Mapping[str, Any]:
        large = CrossEncoder.load(teacher.path)
        room: dict[str, Any] = {
            "max_tokens": large.template.max_tokens,
            "max_query_tokens": large.template.max_query_tokens,
        }
        if config.base == FROM_TEACHER:
            whole, table = large, read_pairs(data, pairs, large.tokenizer, **room)
        else:
            whole, table = untrained(base_models.folder(origin), data, pairs, **room, seed=config.loop.seed)
        keep = _kept(config, whole.layers)
        student = surgery.student(whole, keep).to(scoring.device())
        losses = weights_of(config)
        lessons, peer, match = None, None, Match()
        if teacher_scores is None:
            losses = losses.untaught()
        else:
            lessons = TeacherTargets.read(teacher, teacher_scores, table)
            match = _match(config, student.shape, large.shape)
            if losses.mutual:
                peer = surgery.student(whole, _others(whole.shape, keep)).to(scoring.device())
        if losses.of(TOKEN_TERMS):
            _same_input(student.tokenizer, large.tokenizer, alike=student.template == large.template)
            large.to(scoring.device())
        task = CrossTask(
            student,
            table,
            config.loop,
            losses,
            max_list=candidates.max_list,
            lessons=lessons,
            match=match,
            teacher=large if losses.of(TOKEN_TERMS) else None,
            peer=peer,
        )
        del whole, large
        label: model_card.Role = "ranker" if lessons else "plain student"
        progress = learn(task, label=label, checkpoint=staging.checkpoint)
        metrics = {
            **progress.metrics(scoring.MEASURE, "pairs"),
            "keep_layers": list(keep),
            "layer_map": list(match.first or match.tokens),
        }
        if config.prune_vocabulary:
            metrics["vocabulary"] = pruning.to_corpus(student, pruning.corpus_of(data))
        student.save(staging.folder)
        model_card.write(
            staging.folder / "model",
            label,
            student,
            base=origin,
            inputs={name: one for name, one in inputs.items() if isinstance(one, Artifact)},
            config=_settings(config, teacher_scores is not None),
            metrics=metrics,
            measure=scoring.MEASURE,
        )
        return metrics

    return STAGE.make(
        workspace,
        config={**_settings(config, teacher_scores is not None), "max_list": candidates.max_list},
        inputs=inputs,
        build=build,
    )


def taught_by(config: RankerConfig, teacher: Artifact, base: Artifact | str = "") -> tuple[tuple[int, ...], int]:
    """Which teacher layers the ranker is matched to, and how wide it is: what `teacher_scores.make` must keep.

    Args:
        base: as for `make`.

    Raises:
        ConfigError: a layer map longer than the student or beyond the teacher.
        MissingError: the ranker's base model cannot be had.
    """
    depth = base_models.shape(teacher.path / "model").layers
    whole = base_models.shape(base_models.folder(_origin(config, teacher, base)))
    return _layer_map(config, depth, len(_kept(config, whole.layers))), whole.hidden


def cut(config: RankerConfig, whole: base_models.ModelShape, teacher: base_models.ModelShape) -> base_models.ModelShape:
    """The shape of the ranker that `make` would cut from a model of this shape for this teacher.

    Raises:
        ConfigError: a layer to keep or to learn from that is not there, or a loss that cannot apply to these two.
    """
    keep = _kept(config, whole.layers)
    made = dataclasses.replace(whole, layers=len(keep), tokenizer=None if config.prune_vocabulary else whole.tokenizer)
    match = _match(config, made, teacher)
    if match.first and made.hidden > teacher.hidden:
        raise ConfigError(
            f"ranker.hidden_weight is {config.hidden_weight}: the student is {made.hidden} wide and its teacher "
            f"{teacher.hidden}, and the states of a narrower teacher cannot be matched; set it to 0"
        )
    if config.mutual_weight:
        _others(whole, keep)
    if weights_of(config).of(TOKEN_TERMS) and whole.tokenizer and teacher.tokenizer:
        ours, theirs = map(
            tokenizers.plain_tokenizer, map(tokenizers.load_tokenizer, (whole.tokenizer, teacher.tokenizer))
        )
        _same_input(ours, theirs)
    return made


def plain(config: RankerConfig) -> RankerConfig:
    """The plain student: the same shape without the teacher, so cut from what the teacher was trained from."""
    return config.from_base() if config.base == FROM_TEACHER else config


def _settings(config: RankerConfig, taught: bool) -> dict[str, object]:
    """What a student depends on: without a teacher's scores not the weights of learning from them."""
    found = to_dict(config)
    del found["plain"]
    if not taught:
        for name in ("temperature", "mutual_weight", *(f"{term}_weight" for term in (*TAUGHT_TERMS, *TOKEN_TERMS))):
            del found[name]
    return found


def _origin(config: RankerConfig, teacher: Artifact, base: Artifact | str) -> Artifact | str:
    """What the student is cut from.

    Raises:
        ConfigError: it is the teacher's base, and that is not known.
    """
    if config.base == FROM_BASE and not base:
        raise ConfigError("ranker.base is base: name what the teacher was trained from")
    return {FROM_TEACHER: teacher, FROM_BASE: base}.get(config.base, config.base)


def weights_of(config: RankerConfig) -> LossWeights:
    """The weights of a recipe, by the names of the terms."""
    of_grades = {name: getattr(config, f"hard_{name}_weight") for name in SCORE_TERMS}
    of_teacher = {name: getattr(config, f"{name}_weight") for name in (*TAUGHT_TERMS, *TOKEN_TERMS, "mutual")}
    return LossWeights(**of_grades, **of_teacher, temperature=config.temperature, hinge_margin=config.hinge_margin)


def _kept(config: RankerConfig, depth: int) -> tuple[int, ...]:
    """Layers of the model that the ranker is cut from, counted from 1.

    Raises:
        ConfigError: that model does not have them.
    """
    if any(not 1 <= layer <= depth for layer in config.keep_layers):
        raise ConfigError(
            f"ranker.keep_layers {list(config.keep_layers)}: the model that it is cut from has layers 1 to {depth}"
        )
    if not config.keep_layers and config.layers > depth:
        raise ConfigError(
            f"ranker.layers is {config.layers}: the model that it is cut from has {depth}; keep at most that many"
        )
    return config.keep_layers or surgery.spaced(depth, config.layers)


def _others(whole: base_models.ModelShape, keep: Sequence[int]) -> tuple[int, ...]:
    """Layers of the second student, which is cut from the same model.

    Raises:
        ConfigError: there are no others.
    """
    if whole.shared:
        raise ConfigError(
            "ranker.mutual_weight: an albert model's layers are one, so a second student would be the first again and "
            "neither would learn from the other; set it to 0"
        )
    return surgery.other_layers(whole.layers, keep)


def _match(config: RankerConfig, student: base_models.ModelShape, teacher: base_models.ModelShape) -> Match:
    """Which layers are compared.

    Raises:
        ConfigError: a term whose weight is set cannot apply to these two.
    """
    heads = config.relation_heads or student.heads
    relation = config.relation_layer or teacher.layers
    if config.attention_weight and student.heads != teacher.heads:
        raise ConfigError(
            f"ranker.attention_weight: the student has {student.heads} attention heads, the teacher {teacher.heads}, "
            "so they cannot be compared one by one; set it to 0 and use ranker.relation_weight, which can"
        )
    if config.relation_weight and (student.hidden % heads or teacher.hidden % heads):
        raise ConfigError(
            f"ranker.relation_heads: {heads} do not divide both the student's width {student.hidden} and the teacher's "
            f"{teacher.hidden}; choose a number that does"
        )
    if config.relation_weight and relation > teacher.layers:
        raise ConfigError(f"ranker.relation_layer is {relation}; the teacher has layers 1 to {teacher.layers}")
    return Match(
        first=_layer_map(config, teacher.layers, student.layers),
        tokens=_token_map(config, teacher.layers, student.layers),
        relation=relation,
        heads=heads,
    )


def _same_input(student: Tokenizer, teacher: Tokenizer, *, alike: bool = True) -> None:
    """
    Args:
        alike: whether both put the special tokens of a pair at the same places.

    Raises:
        ConfigError: the two do not read the same tokens at the same places.
    """
    ours, theirs = (json.loads(one.to_str()) for one in (student, teacher))
    if not alike or any(ours[part] != theirs[part] for part in ("normalizer", "pre_tokenizer", "model")):
        raise ConfigError(
            "the student's base has another tokenizer than the teacher, so their tokens cannot be compared; set "
            f"{', '.join(f'ranker.{name}_weight' for name in TOKEN_TERMS)} to 0, or take a base with the teacher's"
        )


def _checked_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """`layer_map` as the recipe has it.

    Raises:
        ConfigError: longer than the student, or a layer that the teacher does not have.
    """
    if len(config.layer_map) > layers:
        raise ConfigError(
            f"ranker.layer_map names {len(config.layer_map)} teacher layers; the student has {layers}, so name fewer"
        )
    if any(not 1 <= layer <= depth for layer in config.layer_map):
        raise ConfigError(f"ranker.layer_map {list(config.layer_map)}: the teacher has layers 1 to {depth}")
    return config.layer_map


def _layer_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers for the student layers 1, 2, …; none where the Patient KD term has no weight."""
    listed = _checked_map(config, depth, layers)
    return (listed or surgery.layer_map(depth, layers)) if config.hidden_weight else ()


def _token_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """Likewise for the terms over tokens, whose last layer is compared too."""
    if not (config.attention_weight or config.token_hidden_weight):
        return ()
    return _checked_map(config, depth, layers) or surgery.spaced(depth, layers)
