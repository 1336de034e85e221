"""Sets of losses written as text, for an ablation: `plain`, `soft+margin`, `hard=0+soft=1+hidden=0.2`, `soft@base`.

A term is the name of one of the ranker's weights without `_weight`. A term with a number has that weight, one without
has the recipe's. `all` stands for every term by which the recipe's ranker learns from its teacher. The losses on grades
stay as the recipe has them: `hard` names a set without any other term, and `hard=0` takes them away.

A student is cut from the model that the recipe names, as a rule the teacher; with `@base` after the set it is cut from
the base that the teacher was trained from. `plain` is `hard@base`: a student that learns nothing from a teacher.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pipeline.config import RankerConfig, weights_of
from pipeline.errors import ConfigError

HARD = "hard"
ALL = "all"
PLAIN = "plain"

_SUFFIX = "_weight"
_HARD = "hard_"
_BASE = "base"


@dataclass(frozen=True, slots=True)
class LossSet:
    """One way to train a student."""

    name: str
    """The set's text in the recipe, such as `soft+margin`."""
    config: RankerConfig
    terms: int
    """Number of losses with a weight above 0."""
    from_teacher: bool
    """Whether any of the losses reads the teacher's outputs."""


def terms(config: RankerConfig) -> dict[str, float]:
    """Weight of each loss by which the ranker learns from its teacher."""
    weights = weights_of(config).items()
    return {name.removesuffix(_SUFFIX): weight for name, weight in weights if not name.startswith(_HARD)}


def _weight(text: str, number: str) -> float:
    """The weight that a term of a set gives after `=`.

    Raises:
        ConfigError: not a finite number from 0 up.
    """
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"ablation.sets '{text}': '{number}' is no weight; write one from 0 up, as in soft=0.5")
    return value


def parse(text: str, config: RankerConfig) -> LossSet:
    """The ranker of the recipe with only the losses that the text names.

    Raises:
        ConfigError: an unknown term, a term twice, a weight that is no number from 0 up, or a term without one whose
            weight in the recipe is 0.
    """
    known = terms(config)
    written, at, origin = text.replace(" ", "").replace(PLAIN, f"{HARD}@{_BASE}").partition("@")
    if at and origin != _BASE:
        raise ConfigError(f"ablation.sets '{text}': '@{origin}' is no start; write @{_BASE}, or nothing")
    weights = dict.fromkeys(known, 0.0)
    factor = 1.0
    written_terms = [term.partition("=") for term in written.split("+")]
    names = [name for name, _, _ in written_terms]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"ablation.sets '{text}': has {repeated[0]} twice; write each loss once")
    for name, equals, number in written_terms:
        value = _weight(text, number) if equals else None
        if name == HARD:
            factor = 1.0 if value is None else value
        elif name == ALL and value is None:
            weights |= {loss: weight for loss, weight in known.items() if weight}
        elif name not in known:
            raise ConfigError(f"ablation.sets '{text}': no loss is called '{name}'; known are {', '.join(known)}")
        elif value is None and not known[name]:
            raise ConfigError(f"ablation.sets '{text}': ranker.{name}_weight is 0; give a weight, as in {name}=0.5")
        else:
            weights[name] = known[name] if value is None else value
    changes: dict[str, Any] = {f"{name}{_SUFFIX}": weight for name, weight in weights.items()}
    hard: dict[str, Any] = {
        name: weight * factor for name, weight in weights_of(config).items() if name.startswith(_HARD)
    }
    student = dataclasses.replace(config, **changes, **hard)
    from_teacher = sum(weight > 0 for weight in weights.values())
    return LossSet(
        text,
        student.from_base() if at else student,
        from_teacher + sum(weight > 0 for weight in hard.values()),
        from_teacher > 0,
    )
