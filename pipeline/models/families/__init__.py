"""The families of encoders that training, export and serving know, one line each; see `family.ModelFamily`."""

from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.families.albert import Albert
from pipeline.models.families.bert import Bert
from pipeline.models.families.family import AttentionParts, ModelFamily
from pipeline.models.families.roberta import Roberta

__all__ = ["FAMILIES", "AttentionParts", "ModelFamily", "family_of", "known_types"]

FAMILIES: tuple[ModelFamily, ...] = (
    Bert(),
    Roberta(),
    Albert(),
)


def known_types() -> tuple[str, ...]:
    """All values of `model_type` that belong to a family."""
    return tuple(name for family in FAMILIES for name in family.model_types)


def family_of(model_type: str | Any, where: str = "") -> ModelFamily:
    """The family of a model.

    Args:
        model_type: `model_type` of its config.json, or a transformers config.
        where: the folder or setting that names the model, for the message.

    Raises:
        ConfigError: no family has this type.
    """
    name = model_type if isinstance(model_type, str) else str(model_type.model_type)
    for family in FAMILIES:
        if name in family.model_types:
            return family
    raise ConfigError(
        f"{where}{': ' if where else ''}a {name} model; take an encoder of the kinds {', '.join(known_types())}"
    )
