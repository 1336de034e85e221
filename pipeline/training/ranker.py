"""The ranker stage: a shallow cross-encoder distilled from the teacher, or the plain student without its scores.

Inputs are `data`, `pairs`, the teacher and its scores; the result is exported for serving and judged in the report.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.artifacts import Artifact, Input, Staging
from pipeline.config import CandidatesConfig, RankerConfig
from pipeline.errors import ConfigError
from pipeline.models import base_models, model_card, pruning, surgery, tokenizers, width_pruning
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import Need, family_of
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import scoring
from pipeline.training.loop.batches import pad, pair_inputs, scoring_batches
from pipeline.training.loop.pair_tokens import Pairs, pair_lengths, read_pairs
from pipeline.training.losses.cross_encoder_terms import (
    TAUGHT_TERMS,
    TOKEN_TERMS,
    LossWeights,
    Match,
)
from pipeline.training.tasks.cross_encoder import CrossTask, learn, untrained
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

IMPORTANCE_PAIRS, IMPORTANCE_BATCH_TOKENS = 1000, 4096
"""Training pairs on which the importance of feed-forward units is estimated, and padded tokens of one batch."""

OTHER_PASSAGES = (
    "the teacher reads long documents in passages, and the student learns from the best of them; its base has another "
    "tokenizer, so it would read other passages: take a base with the teacher's tokenizer, or set "
    "teacher.passages.most to 0"
)

HARD = "hard_"
"""Prefix of the config keys of the losses over grades."""


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
        base: the model that the teacher started from; the student is cut from it if `config.base` is `base`.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: a layer to keep or to learn from does not exist, or a loss cannot apply to these models.
        ArtifactError: the scores are of another teacher or other pairs.
        TrainingError: nothing to train on, or the loss is not a number.
    """
    origin = _origin(config, teacher, base)
    start = base_models.StartingModel.of(origin)
    inputs: dict[str, Input] = {"data": data, "pairs": pairs, "teacher": teacher}
    if config.base != FROM_TEACHER:
        inputs["base"] = start.input
    if teacher_scores is not None:
        inputs["teacher_scores"] = teacher_scores

    def build(staging: Staging) -> Mapping[str, Any]:
        large = CrossEncoder.load(teacher.path)
        with start.opened(staging) as folder:
            source, table = _source(config, large, data, pairs, folder)
        if teacher_scores is not None:
            table = _as_taught(table, teacher_scores, source, large)
        keep = _kept(config, source.layers)
        student = _narrowed(config, surgery.student(source, keep).to(scoring.device()), table)
        passages = config.passages.passages(large.template.passages)
        student.template = dataclasses.replace(student.template, passages=passages)
        if teacher_scores is None:
            objective = Objective(weights=LossWeights.of_config(config, HARD).without_teacher())
        else:
            targets = TeacherTargets.read(teacher, teacher_scores, table)
            peer = None
            if config.mutual_weight:
                other = surgery.student(source, _second_student_layers(source.shape, keep)).to(scoring.device())
                peer = _narrowed(config, other, table)
            objective = _objective(config, student, large, targets, peer)
        task = CrossTask(
            student, table, config.loop, objective, max_list=candidates.max_list, click_weight=candidates.click_weight
        )
        match = objective.match
        del source, large, objective  # The task holds what it needs of them.
        label: model_card.Role = "plain student" if teacher_scores is None else "ranker"
        progress = learn(task, label=label, staging=staging)
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
            inputs={name: artifact for name, artifact in inputs.items() if isinstance(artifact, Artifact)},
            config=_settings(config, teacher_scores is not None),
            metrics=metrics,
            measure=scoring.MEASURE,
        )
        return metrics

    return STAGE.make(
        workspace,
        config={**_settings(config, teacher_scores is not None), **candidates.step_settings()},
        inputs=inputs,
        build=build,
    )


def taught_by(config: RankerConfig, teacher: Artifact, base: Artifact | str = "") -> tuple[tuple[int, ...], int]:
    """The teacher layers that the ranker is matched to and the ranker's width, as `teacher_scores.make` takes them.

    Args:
        config: the ranker's section.
        teacher: the trained teacher.
        base: the model that the teacher started from.

    Raises:
        ConfigError: a layer map longer than the student or beyond the teacher.
        MissingError: the ranker's base model cannot be had.
    """
    depth = base_models.shape(teacher.path / "model").layers
    source = base_models.shape(base_models.folder(_origin(config, teacher, base)))
    return _layer_map(config, depth, len(_kept(config, source.layers))), source.hidden


def cut(
    config: RankerConfig, source: base_models.ModelShape, teacher: base_models.ModelShape
) -> base_models.ModelShape:
    """The shape of the ranker that `make` would cut from a model of shape `source` for this teacher.

    Raises:
        ConfigError: a layer to keep or to learn from does not exist, or a loss cannot apply to these models.
    """
    keep = _kept(config, source.layers)
    _check_offers(config, source, teacher, keep)
    tokenizer = None if config.prune_vocabulary else source.tokenizer
    if config.intermediate:
        width_pruning.check(config.intermediate, source.intermediate, shared=source.shared)
    if config.max_tokens and LossWeights.of_config(config, HARD).of(TOKEN_TERMS):
        raise ConfigError(
            f"ranker.max_tokens is {config.max_tokens}: {', '.join(f'ranker.{name}_weight' for name in TOKEN_TERMS)} "
            "compare tokens with the teacher's, so student and teacher must read equally many; set it to 0"
        )
    student = dataclasses.replace(
        source, layers=len(keep), intermediate=config.intermediate or source.intermediate, tokenizer=tokenizer
    )
    match = _match(config, student, teacher)
    if match.first and student.hidden > teacher.hidden:
        raise ConfigError(
            f"ranker.hidden_weight is {config.hidden_weight}: the student is {student.hidden} wide and its teacher "
            f"{teacher.hidden}, and the states of a narrower teacher cannot be matched; set it to 0"
        )
    if config.mutual_weight:
        _second_student_layers(source, keep)
    if LossWeights.of_config(config, HARD).of(TOKEN_TERMS) and source.tokenizer and teacher.tokenizer:
        ours, theirs = map(
            tokenizers.plain_tokenizer, map(tokenizers.load_tokenizer, (source.tokenizer, teacher.tokenizer))
        )
        _same_input(ours, theirs)
    return student


def _check_offers(
    config: RankerConfig, source: base_models.ModelShape, teacher: base_models.ModelShape, keep: Sequence[int]
) -> None:
    """Checks that the families of student and teacher have what the losses and the cut need.

    Raises:
        ConfigError: one does not; names the key.
    """
    ours, theirs = family_of(source.model_type), family_of(teacher.model_type)
    needs: list[tuple[str, Need]] = [(f"{name}_weight", "tokens") for name in TOKEN_TERMS]
    needs += [(f"{name}_weight", "attention") for name in ("attention", "relation")]
    needs.append(("hidden_weight", "states"))
    for key, need in needs:
        lacking = [shape for shape, family in ((teacher, theirs), (source, ours)) if need not in family.offers]
        if lacking and getattr(config, key):
            raise ConfigError(
                f"ranker.{key}: a {lacking[0].model_type} model offers no {need} to compare; set it to 0, or take "
                "another base"
            )
    if len(keep) < source.layers and "cut" not in ours.offers:
        raise ConfigError(
            f"ranker.layers: no layers of a {source.model_type} model can be left out; take another ranker.base"
        )
    if config.intermediate and config.intermediate != source.intermediate and "narrow" not in ours.offers:
        raise ConfigError(
            f"ranker.intermediate: the feed-forward units of a {source.model_type} model are not to be left out one by "
            "one; set it to 0"
        )


def plain(config: RankerConfig) -> RankerConfig:
    """The config of the plain student: the same shape, cut from the teacher's own base."""
    return config.from_base() if config.base == FROM_TEACHER else config


def _settings(config: RankerConfig, has_teacher: bool) -> dict[str, object]:
    """The settings that a student depends on: without a teacher's scores not the weights of learning from them."""
    settings = to_dict(config)
    del settings["plain"]
    if not has_teacher:
        for name in ("temperature", "mutual_weight", *(f"{term}_weight" for term in (*TAUGHT_TERMS, *TOKEN_TERMS))):
            settings.pop(name, None)  # An added weight of 0 does not stand there.
    return settings


def _origin(config: RankerConfig, teacher: Artifact, base: Artifact | str) -> Artifact | str:
    """The model that the student is cut from.

    Raises:
        ConfigError: it is the teacher's base, which is not given.
    """
    if config.base == FROM_BASE and not base:
        raise ConfigError("ranker.base is base: give the base that the teacher was trained from")
    return {FROM_TEACHER: teacher, FROM_BASE: base}.get(config.base, config.base)


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
    return untrained(
        origin,
        data,
        pairs,
        max_tokens=max_tokens,
        max_query_tokens=template.max_query_tokens,
        seed=config.loop.seed,
        document_tokens=template.document_tokens,
    )


def _as_taught(table: Pairs, teacher_scores: Artifact, source: CrossEncoder, teacher: CrossEncoder) -> Pairs:
    """The pairs with the passages that the teacher found best.

    Raises:
        ConfigError: the student reads other tokens than the teacher, so that they are no passages of its own.
    """
    passage_pairs = as_taught(table, teacher_scores)
    if passage_pairs is not table and not same_tokens(source.tokenizer, teacher.tokenizer):
        raise ConfigError(OTHER_PASSAGES)
    return passage_pairs


def _narrowed(config: RankerConfig, student: CrossEncoder, table: Pairs) -> CrossEncoder:
    """The student with the input length and the feed-forward units that its section asks for."""
    if config.max_tokens:  # The passages of the source may be too long for it; they are set afterwards.
        student.template = dataclasses.replace(student.template, max_tokens=config.max_tokens, passages=None)
    if config.intermediate:
        rows = table.indices("train")[:IMPORTANCE_PAIRS]
        lengths = pair_lengths(table, student.template)[rows]
        batches = (
            pad(pair_inputs(table, rows[some], student.template), scoring.device()).all
            for some in scoring_batches(lengths, IMPORTANCE_BATCH_TOKENS)
        )
        width_pruning.narrow(student, config.intermediate, batches)
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
    weights = LossWeights.of_config(config, HARD)
    match = _match(config, student.shape, teacher.shape)
    if weights.of(TOKEN_TERMS):
        ours, theirs = (dataclasses.replace(model.template, passages=None) for model in (student, teacher))
        _same_input(student.tokenizer, teacher.tokenizer, alike=ours == theirs)
        teacher.to(scoring.device())
    return Objective(weights=weights, targets=targets, match=match, teacher=teacher, peer=peer)


def _kept(config: RankerConfig, depth: int) -> tuple[int, ...]:
    """The layers, from 1, that are kept of the model that the ranker is cut from.

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


def _second_student_layers(source: base_models.ModelShape, keep: Sequence[int]) -> tuple[int, ...]:
    """The layers of the second student, which is cut from the same model.

    Raises:
        ConfigError: no other layers exist.
    """
    if source.shared:
        raise ConfigError(
            "ranker.mutual_weight: the model's layers share one set of weights, so a second student would be the first "
            "again and neither would learn from the other; set it to 0"
        )
    return surgery.other_layers(source.layers, keep)


def _match(config: RankerConfig, student: base_models.ModelShape, teacher: base_models.ModelShape) -> Match:
    """The layers of student and teacher that are compared.

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
    """Checks that student and teacher read the same tokens at the same positions.

    Args:
        student: tokenizer of the student.
        teacher: tokenizer of the teacher.
        alike: whether both put the special tokens of a pair at the same positions.

    Raises:
        ConfigError: they do not.
    """
    if not alike or not same_tokens(student, teacher):
        raise ConfigError(
            "the student's base has another tokenizer than the teacher, so their tokens cannot be compared; set "
            f"{', '.join(f'ranker.{name}_weight' for name in TOKEN_TERMS)} to 0, or take a base with the teacher's"
        )


def same_tokens(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether two tokenizers make the same tokens of a text."""
    ours, theirs = (json.loads(tokenizer.to_str()) for tokenizer in (first, second))
    return all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer", "model"))


def _checked_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """The recipe's `layer_map`.

    Raises:
        ConfigError: it is longer than the student, or names a layer that the teacher does not have.
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
    """Teacher layers for the terms over tokens, which compare the last layers too; none where none has a weight."""
    if not (config.attention_weight or config.token_hidden_weight):
        return ()
    return _checked_map(config, depth, layers) or surgery.spaced(depth, layers)
