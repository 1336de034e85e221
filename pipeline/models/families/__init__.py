"""The families of encoders that training, export and serving know, one line each; see `family.ModelFamily`."""

from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.families.albert import Albert
from pipeline.models.families.bert import Bert
from pipeline.models.families.deberta import DebertaV2
from pipeline.models.families.distilbert import Distilbert
from pipeline.models.families.electra import Electra
from pipeline.models.families.ernie import Ernie
from pipeline.models.families.eurobert import Eurobert
from pipeline.models.families.family import EVERYTHING, AttentionParts, ModelFamily, Need
from pipeline.models.families.modernbert import Modernbert
from pipeline.models.families.mpnet import Mpnet
from pipeline.models.families.nomic_bert import NomicBert
from pipeline.models.families.own_forward import OwnForward
from pipeline.models.families.roberta import Roberta
from pipeline.models.families.xlnet import Xlnet

__all__ = ["EVERYTHING", "FAMILIES", "AttentionParts", "ModelFamily", "Need", "OwnForward", "family_of", "known_types"]

FAMILIES: tuple[ModelFamily, ...] = (
    Bert(),
    Roberta(),
    Albert(),
    Electra(),
    Distilbert(),
    Mpnet(),
    DebertaV2(),
    Modernbert(),
    Ernie(),
    NomicBert(),
    Eurobert(),
    Xlnet(),
)


def known_types(need: Need | None = None) -> tuple[str, ...]:
    """All values of `model_type` that belong to a family, or to one that offers what is needed."""
    offering = [family for family in FAMILIES if need is None or need in family.offers]
    return tuple(name for family in offering for name in family.model_types)


def family_of(model_type: str | Any, where: str = "") -> ModelFamily:
    """The family of a model; `OwnForward`, which can only teach, for one of no family that can classify.

    Args:
        model_type: `model_type` of its config.json, or a transformers config.
        where: the folder or setting that names the model, for the message.

    Raises:
        ConfigError: no family has this type, and transformers has no head for classification for it.
    """
    name = model_type if isinstance(model_type, str) else str(model_type.model_type)
    for family in FAMILIES:
        if name in family.model_types:
            return family
    if OwnForward.can_read(name):
        return OwnForward(name)
    raise ConfigError(
        f"{where}{': ' if where else ''}a {name} model; take an encoder of the kinds {', '.join(known_types())}"
    )
