"""The description of an exported model: `bundle.json`, as `pipeline.export.bundle` writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.tokens import PairTemplate, TextTemplate

FORMAT = 1
"""Version of the layout of `bundle.json` that this program reads; `pipeline.export.bundle.FORMAT` is what it writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The fields of `bundle.json`."""

    role: Literal["ranker", "encoder"]
    digest: str
    """32 hex digits that change with anything that an output depends on, except the chosen precision."""
    templates: Mapping[str, PairTemplate | TextTemplate]
    """Kind of input → its special tokens and maximum length: pair for a ranker; query and document for an encoder."""
    thresholds: tuple[float, ...]
    """Thresholds of a ranker's grades: P(grade ≥ k) = sigmoid(score - thresholds[k - 1])."""
    dimensions: int
    """Width of an encoder's vectors; 1 for a ranker."""
    widths: tuple[int, ...]
    """Widths at which an encoder's vector may be cut off, ascending, the full one included; 1 alone for a ranker."""
    inputs: tuple[str, ...]
    """Names of the ONNX graph's inputs, such as input_ids."""
    output: str
    """Name of the ONNX graph's output."""
    precisions: Mapping[str, Mapping[str, Any]]
    """Precision → its file, and its size, quality and speed as measured at the export."""
    chosen: Mapping[str, str]
    """Device, cpu or cuda → the precision that the export chose for it."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Bundle":
        """The bundle of an artifact.

        Raises:
            ArtifactError: its `bundle.json` is not what this version writes.
        """
        path = artifact.file("bundle.json")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']}, this version reads {FORMAT}")
            if fields["role"] == "ranker":
                templates: dict[str, PairTemplate | TextTemplate] = {"pair": PairTemplate.from_dict(fields["template"])}
            else:
                roles = ("query", "document")
                templates = {role: TextTemplate.from_dict(fields[f"{role}_template"]) for role in roles}
            return cls(
                role=fields["role"],
                digest=fields["digest"],
                templates=templates,
                thresholds=tuple(fields.get("thresholds") or ()),
                dimensions=fields.get("dimensions") or 1,
                widths=_widths(fields),
                inputs=tuple(fields["inputs"]),
                output=fields["output"],
                precisions=fields["precisions"],
                chosen=fields["chosen"],
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a readable bundle ({error!r}); export the model again") from error


def _widths(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The widths in the fields of `bundle.json`, and the full one; raises ValueError where one is out of range."""
    full_width = fields.get("dimensions") or 1
    widths = tuple(sorted({*(int(width) for width in fields.get("widths") or ()), full_width}))
    if widths[0] < 1 or widths[-1] > full_width:
        raise ValueError(f"widths {widths} are not all between 1 and {full_width}, the dimensions")
    return widths
