"""A shallow model cut from a deep one: chosen layers with their weights, everything else unchanged."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from transformers import PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import family_of

Model = TypeVar("Model", bound=PreTrainedModel)


def spaced(depth: int, keep: int) -> tuple[int, ...]:
    """`keep` of the layers 1 to `depth`, evenly spaced, the last included: 2, 4, …, 12 for 6 of 12.

    Raises:
        ConfigError: more than there are, or none.
    """
    if not 1 <= keep <= depth:
        raise ConfigError(f"{keep} layers cannot be kept of {depth}; keep between 1 and {depth}")
    return tuple(round(depth * number / keep) for number in range(1, keep + 1))


def layer_map(depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers matched to student layers 1 … layers − 1; the student's last is taught by the scores.

    4, 8, 12, 16, 20 for 24 → 6, and 2, 4, 6, 8, 10 for 12 → 6: the skip scheme of Sun et al., EMNLP 2019,
    arXiv:1908.09355.
    """
    return spaced(depth, layers)[:-1]


def other_layers(depth: int, keep: Sequence[int]) -> tuple[int, ...]:
    """The same number of layers as `keep` has, as few of them shared as possible: 1, 3, …, 11 beside 2, 4, …, 12.

    Raises:
        ConfigError: all layers are kept, so there is no other choice.
    """
    rest = [layer for layer in range(1, depth + 1) if layer not in keep]
    if not rest:
        raise ConfigError(f"all {depth} layers are kept, so no student of other layers can be cut; keep fewer")
    if len(rest) >= len(keep):
        return tuple(rest[number - 1] for number in spaced(len(rest), len(keep)))
    return tuple(sorted([*rest, *sorted(keep)[len(rest) :]]))


def keep_layers(model: Model, keep: Sequence[int]) -> Model:
    """A copy of the model with only these layers, counted from 1, in the order given.

    Layers that share their weights (ALBERT) are one: which are kept makes no difference, only how many.

    Raises:
        ConfigError: no layer, a layer beyond the model's depth, an ALBERT whose layers are not all one, or a family
            that is not known.
    """
    config: Any = model.config
    depth = int(config.num_hidden_layers)
    if not keep or any(not 1 <= layer <= depth for layer in keep):
        raise ConfigError(f"layers {tuple(keep)} cannot be kept of a model that has layers 1 to {depth}")
    shallow = copy.deepcopy(model)
    family_of(config).cut(shallow, keep)
    return shallow


def student(teacher: CrossEncoder, keep: Sequence[int]) -> CrossEncoder:
    """A copy of the cross-encoder with only these layers; head, thresholds and template are its own.

    Raises:
        ConfigError: for the same reasons as `keep_layers`.
    """
    shallow = CrossEncoder(
        keep_layers(teacher.model, keep), teacher.hub_tokenizer, teacher.template, teacher.thresholds.detach().tolist()
    )
    shallow.fresh = teacher.fresh
    return shallow
