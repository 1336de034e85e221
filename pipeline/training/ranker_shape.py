"""The student that a ranker's section describes: the layers it keeps, those it is matched to, and what is refused.

All of it follows from the configs of two models, so `preflight` tells before the first training.
"""

import dataclasses
import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pipeline.config import RankerConfig, weights_of
from pipeline.errors import ConfigError
from pipeline.models import base_models, low_rank, surgery, tokenizers, width_pruning
from pipeline.models.families import Need, family_of
from pipeline.training.losses.cross_encoder_terms import TOKEN_TERMS, LossWeights, Match

HARD = "hard_"
"""Prefix of the config keys of the losses over grades."""

MULTIPLE = 8
"""Feed-forward units are a multiple of this, so that matrix products stay fast."""


def products(shape: base_models.ModelShape, layers: int, units: int) -> int:
    """The products of a ranker for each token: attention's four matrices and the two of the feed-forward part.

    The last layer is left out: a ranker computes it for one token of a text alone.
    """
    return (layers - 1) * (4 * shape.hidden**2 + 2 * shape.hidden * units)


def units_within(shape: base_models.ModelShape, layers: int, allowed: float) -> int:
    """The most feed-forward units with which a ranker of two or more layers takes at most `allowed` products.

    The number is a multiple of `MULTIPLE` or all units of the model, and 0 or less where attention alone takes more.
    """
    room = (allowed / (layers - 1) - 4 * shape.hidden**2) / (2 * shape.hidden)
    return shape.intermediate if room >= shape.intermediate else int(room) // MULTIPLE * MULTIPLE


def cut(
    config: RankerConfig, source: base_models.ModelShape, teacher: base_models.ModelShape
) -> base_models.ModelShape:
    """The shape of the ranker that `make` would cut from a model of shape `source` for this teacher.

    Raises:
        ConfigError: a layer to keep or to learn from does not exist, or a loss cannot apply to these models.
    """
    keep = kept(config, source.layers)
    weights = LossWeights.of_config(config, HARD)
    _check_states(config)
    _check_offers(config, source, teacher, keep)
    tokenizer = None if config.prune_vocabulary else source.tokenizer
    if config.intermediate:
        width_pruning.check(config.intermediate, source.intermediate, shared=source.shared)
    if config.feed_forward_rank:
        units = config.intermediate or source.intermediate
        low_rank.check("feed_forward_rank", config.feed_forward_rank, source.hidden, units)
    if config.embedding_rank >= source.hidden:
        raise ConfigError(
            f"ranker.embedding_rank is {config.embedding_rank}: the embeddings are {source.hidden} wide, so "
            "factors would be no smaller; take less"
        )
    if config.max_tokens and weights.of(TOKEN_TERMS):
        raise ConfigError(
            f"ranker.max_tokens is {config.max_tokens}: {', '.join(f'ranker.{name}_weight' for name in TOKEN_TERMS)} "
            "compare tokens with the teacher's, so student and teacher must read equally many; set it to 0"
        )
    student = dataclasses.replace(
        source, layers=len(keep), intermediate=config.intermediate or source.intermediate, tokenizer=tokenizer
    )
    match = matched_layers(config, student, teacher)
    if match.first and student.hidden > teacher.hidden:
        raise ConfigError(
            f"ranker.hidden_weight is {config.hidden_weight}: the student is {student.hidden} wide and its teacher "
            f"{teacher.hidden}, and the states of a narrower teacher cannot be matched; set it to 0"
        )
    if config.mutual_weight:
        second_student_layers(source, keep)
    if weights.of(TOKEN_TERMS) and source.tokenizer and teacher.tokenizer:
        ours, theirs = map(
            tokenizers.plain_tokenizer, map(tokenizers.load_tokenizer, (source.tokenizer, teacher.tokenizer))
        )
        same_input(ours, theirs)
    return student


def _check_states(config: RankerConfig) -> None:
    """Checks that a student that learns from the teacher's states alone has states to compare.

    Raises:
        ConfigError: it has one layer, whose states are left to the scores.
    """
    if not config.matches_states and not any(
        weight for name, weight in weights_of(config).items() if name != "hidden_weight"
    ):
        raise ConfigError(
            f"ranker.hidden_weight is {config.hidden_weight} and all other losses have weight 0: the student has one "
            "layer, whose states are not compared; name a teacher's layer in ranker.layer_map, or give another loss a "
            "weight"
        )


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
    if config.general_tokens and len(keep) == source.layers:
        raise ConfigError(
            f"ranker.general_tokens: the student keeps all {source.layers} layers of its base, so there is nothing to "
            "learn from it; set it to 0, or keep fewer"
        )
    if config.general_tokens and source.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ConfigError(
            f"ranker.general_tokens: a {source.model_type} model has no form that guesses masked tokens; set it to 0"
        )
    if config.feed_forward_rank and "narrow" not in ours.offers:
        raise ConfigError(
            f"ranker.feed_forward_rank: the feed-forward matrices of a {source.model_type} model are gated or shared, "
            "and cannot be factorised one by one; set it to 0"
        )


def kept(config: RankerConfig, depth: int) -> tuple[int, ...]:
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


def second_student_layers(source: base_models.ModelShape, keep: Sequence[int]) -> tuple[int, ...]:
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


def matched_layers(config: RankerConfig, student: base_models.ModelShape, teacher: base_models.ModelShape) -> Match:
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
        first=layer_map(config, teacher.layers, student.layers),
        tokens=_token_map(config, teacher.layers, student.layers),
        relation=relation,
        heads=heads,
    )


def same_input(student: Tokenizer, teacher: Tokenizer, *, alike: bool = True) -> None:
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


def layer_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers for the student layers 1, 2, …; none where the Patient KD term has no weight."""
    listed = _checked_map(config, depth, layers)
    if not config.hidden_weight:
        return ()
    _check_depth(config, "hidden", depth, layers)
    return listed or surgery.layer_map(depth, layers)


def _token_map(config: RankerConfig, depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers for the terms over tokens, which compare the last layers too; none where none has a weight."""
    for name in ("attention", "token_hidden"):
        if getattr(config, f"{name}_weight"):
            _check_depth(config, name, depth, layers)
    if not (config.attention_weight or config.token_hidden_weight):
        return ()
    return _checked_map(config, depth, layers) or surgery.spaced(depth, layers)


def _check_depth(config: RankerConfig, loss: str, depth: int, layers: int) -> None:
    """Checks that a student deeper than its teacher names the layers that a loss compares.

    Raises:
        ConfigError: it does not.
    """
    if layers > depth and not config.layer_map:
        raise ConfigError(
            f"ranker.{loss}_weight: the student has {layers} layers and its teacher {depth}, so they cannot be matched "
            "one by one; name teacher layers in ranker.layer_map, or set it to 0"
        )


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
