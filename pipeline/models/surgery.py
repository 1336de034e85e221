"""A shallow model cut from a deep one: chosen layers with their weights, everything else unchanged."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder

Model = TypeVar("Model", bound=PreTrainedModel)


def spaced(depth: int, keep: int) -> tuple[int, ...]:
    """`keep` of the layers 1 to `depth`, evenly spaced, the last included: 2, 4, …, 12 for 6 of 12.

    Raises:
        ConfigError: more than there are, or none.
    """
    if not 1 <= keep <= depth:
        raise ConfigError(f"{keep} layers cannot be kept of {depth}; keep between 1 and {depth}")
    return tuple(round(depth * place / keep) for place in range(1, keep + 1))


def layer_map(depth: int, layers: int) -> tuple[int, ...]:
    """Teacher layers matched to student layers 1 … layers − 1; the student's last is taught by the scores.

    4, 8, 12, 16, 20 for 24 → 6, and 2, 4, 6, 8, 10 for 12 → 6: the skip scheme of Sun et al., EMNLP 2019,
    arXiv:1908.09355.
    """
    return spaced(depth, layers)[:-1]


def other_layers(depth: int, keep: Sequence[int]) -> tuple[int, ...]:
    """As many layers as `keep` has, as few of them as can be the same: 1, 3, …, 11 beside 2, 4, …, 12.

    Raises:
        ConfigError: all layers are kept, so there is no other choice.
    """
    rest = [layer for layer in range(1, depth + 1) if layer not in keep]
    if not rest:
        raise ConfigError(f"all {depth} layers are kept, so no student of other layers can be cut; keep fewer")
    if len(rest) >= len(keep):
        return tuple(rest[place - 1] for place in spaced(len(rest), len(keep)))
    return tuple(sorted([*rest, *sorted(keep)[len(rest) :]]))


def keep_layers(model: Model, keep: Sequence[int]) -> Model:
    """A copy of the model with only these layers, counted from 1, in the order given.

    The layers of an ALBERT are one: which are kept makes no difference, only how many.

    Raises:
        ConfigError: no layer, a layer beyond the model's depth, or an ALBERT whose layers are not all one.
    """
    config: Any = model.config
    depth = int(config.num_hidden_layers)
    if not keep or any(not 1 <= layer <= depth for layer in keep):
        raise ConfigError(f"layers {tuple(keep)} cannot be kept of a model that has layers 1 to {depth}")
    made = copy.deepcopy(model)
    made.config.num_hidden_layers = len(keep)
    encoder: Any = made.base_model.encoder
    if config.model_type == "albert":
        if (config.num_hidden_groups, config.inner_group_num) != (1, 1):
            raise ConfigError("only an albert whose layers are all one can be cut, not one of several groups")
        return made
    encoder.layer = nn.ModuleList(copy.deepcopy(encoder.layer[layer - 1]) for layer in keep)
    return made


def student(whole: CrossEncoder, keep: Sequence[int]) -> CrossEncoder:
    """A copy of the cross-encoder with only these layers; head, thresholds and template are its own.

    Raises:
        ConfigError: as `keep_layers`.
    """
    made = CrossEncoder(
        keep_layers(whole.model, keep), whole.hub_tokenizer, whole.template, whole.thresholds.detach().tolist()
    )
    made.fresh = whole.fresh
    return made
