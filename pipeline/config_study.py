"""The recipe's sections of comparisons between students: the ablation of losses and the study of compressions."""

from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import DOCUMENTED, added, check_not_negative, check_positive
from pipeline.errors import ConfigError
from pipeline.text import printable

Precision = Literal["fp32", "fp16", "int8", "w8"]
"""A number format of an exported model."""


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class AblationConfig:
    """The grid that `relevance ablate` compares; retraining does not read it."""

    sets: tuple[str, ...] = ("plain", "hard", "soft", "margin", "hidden", "soft+margin", "all")
    """Sets of losses of the ranker (`pipeline.training.losses.ablation_sets`); the first is the baseline."""
    unlabelled_ratios: tuple[float, ...] = ()
    """Ratios of unlabelled to labelled pairs that each set of losses is trained with; empty takes
    `candidates.unlabelled`."""
    seeds: int = 3
    """Number of students of each kind; they differ in the order of their training data."""
    measure: str = ""
    """Measure that decides on the winner, on the valid queries; the headline nDCG when empty."""

    def __post_init__(self) -> None:
        check_positive("ablation", seeds=self.seeds)
        if not self.sets:
            raise ConfigError("ablation.sets is empty; name sets of losses, such as hard and soft+margin")
        for name, values in (("sets", self.sets), ("unlabelled_ratios", self.unlabelled_ratios)):
            if len(set(values)) < len(values):
                raise ConfigError(f"ablation.{name} {list(values)}: one stands there twice; name each once")
        if any(ratio < 0 for ratio in self.unlabelled_ratios):
            raise ConfigError(
                f"ablation.unlabelled_ratios {list(self.unlabelled_ratios)}: pairs for each labelled one, so 0 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class VariantConfig:
    """A method to train the ranker, as a change of the recipe."""

    name: str
    """Name in the table."""
    set: tuple[str, ...]
    """Changes as `--set` takes them, such as `ranker.layers=2`. They may touch the sections ranker, assistants and
    external_teacher, and the unlabelled pairs of candidates: what comes after the teacher."""

    def __post_init__(self) -> None:
        if not (self.name.strip() and self.set):
            raise ConfigError("study.variants: each needs a name and at least one change in `set`")
        if printable(self.name) != self.name or self.name.strip() != self.name:
            raise ConfigError(
                f"study.variants {self.name!r}: a name is one line of characters that can be printed, without a space "
                "at its ends"
            )
        keys = [change.partition("=")[0].strip() for change in self.set]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise ConfigError(f"study.variants '{self.name}': sets {repeated[0]} twice; set it once")


@dataclass(frozen=True, kw_only=True, slots=True, config=DOCUMENTED)
class StudyConfig:
    """The methods to compress the ranker that `relevance study` compares; retraining does not read it."""

    methods: tuple[str, ...] = ()
    """Names of known methods (`relevance study RECIPE --list`); empty takes all that can apply to the recipe's models.
    The plain student and the recipe's own ranker always take part."""
    variants: tuple[VariantConfig, ...] = ()
    """Further methods, as changes of the recipe."""
    search_cost: float = added(0.0)
    """Bound for a search of depth and feed-forward width by successive halving, as a share of the multiplications that
    the recipe's ranker does for a token: the best shape within it takes part as `searched`. 0 for no search."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Precisions in which each student is exported and judged: a row of the table each. fp32 is one of them."""
    seeds: int = 1
    """Number of students of each method; they differ in the order of their training data."""
    max_minutes: float = 0.0
    """Time after which no further student is begun; 0 for no bound. What is missing then is named, takes no part in the
    verdicts, and is made by the next run."""

    def __post_init__(self) -> None:
        check_positive("study", seeds=self.seeds)
        check_not_negative("study", "no search", search_cost=self.search_cost)
        check_not_negative("study", "no bound", max_minutes=self.max_minutes)
        if "fp32" not in self.precisions:
            raise ConfigError("study.precisions lacks fp32, which the others are held against; add it")
        for name, values in (
            ("methods", self.methods),
            ("precisions", self.precisions),
            ("variants", tuple(variant.name for variant in self.variants)),
        ):
            if len(set(values)) < len(values):
                raise ConfigError(f"study.{name} {list(values)}: one stands there twice; name each once")
