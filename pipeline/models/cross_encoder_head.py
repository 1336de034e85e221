"""The file `head.json` of a saved cross-encoder, and the one score that its classification head gives."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.disk import write_atomically
from pipeline.errors import ArtifactError
from pipeline.models.low_rank import FactorRanks
from pipeline.tokens import PairTemplate


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEncoderHead:
    """The contents of `head.json`: all that a cross-encoder is beside the weights and tokenizer in `model/`."""

    thresholds: list[float]
    """(grades,) strictly ascending, mean zero."""
    template: PairTemplate
    label: int | None = None
    """The label of relevance of a ready-made head of several; None for a head that gives one score."""
    ranks: FactorRanks = field(default_factory=FactorRanks)
    """The ranks of the matrices that are exported as two factors."""

    @classmethod
    def read(cls, folder: Path) -> "CrossEncoderHead":
        """The head of the cross-encoder in a folder.

        Raises:
            ArtifactError: head.json is not readable.
        """
        path = folder / "head.json"
        try:
            head = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                thresholds=ascending(head["thresholds"]),
                template=PairTemplate.from_dict(head["template"]),
                label=None if head.get("label") is None else int(head["label"]),
                ranks=FactorRanks(**{name: int(rank) for name, rank in head.get("ranks", {}).items()}),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not readable ({error!r}); train the model again") from error

    def write(self, folder: Path) -> None:
        """Writes head.json; keys that say nothing are left out, so files of older versions stay equal."""
        head: dict[str, Any] = {"thresholds": self.thresholds, "template": self.template.to_dict()}
        if self.label is not None:
            head["label"] = self.label
        if self.ranks:
            head["ranks"] = {name: rank for name, rank in dataclasses.asdict(self.ranks).items() if rank}
        write_atomically(folder / "head.json", json.dumps(head, indent=1) + "\n", json.loads)


def ascending(thresholds: Any) -> list[float]:
    """The thresholds of a head as they were read.

    Raises:
        ValueError: they are no list of finite, strictly ascending numbers.
    """
    numbers = isinstance(thresholds, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in thresholds
    )
    if not numbers or any(second <= first for first, second in pairwise(thresholds)):
        raise ValueError(f"thresholds {thresholds} are not finite, ascending numbers")
    return [float(value) for value in thresholds]


def one_score(logits: Tensor, label: int | None) -> Tensor:
    """(batch,) one raw score of a head's output.

    Args:
        logits: (batch, labels).
        label: the label of relevance, whose log-odds against all others are taken: their sigmoid is its softmax
            probability. None takes the only one.
    """
    if label is None:
        return logits[:, 0]
    other_labels = [number for number in range(logits.shape[1]) if number != label]
    return logits[:, label] - logits[:, other_labels].logsumexp(1)
