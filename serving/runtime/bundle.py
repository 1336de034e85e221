"""The description of an exported model: `bundle.json`, as `pipeline.export.bundle` writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.tokens import PairTemplate, TextTemplate

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The fields of `bundle.json`."""

    role: Literal["ranker", "encoder"]
    digest: str
    templates: Mapping[str, PairTemplate | TextTemplate]
    """pair for a ranker; query and document for an encoder."""
    thresholds: tuple[float, ...]
    """Thresholds of a ranker's grades: P(grade ≥ k) = sigmoid(score - thresholds[k - 1])."""
    dimensions: int
    widths: tuple[int, ...]
    """Numbers of first dimensions at which an encoder's vector may be cut off, the full width included."""
    inputs: tuple[str, ...]
    output: str
    precisions: Mapping[str, Mapping[str, Any]]
    chosen: Mapping[str, str]

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
    full_width = fields.get("dimensions") or 1
    widths = tuple(sorted({*(int(width) for width in fields.get("widths") or ()), full_width}))
    if widths[0] < 1 or widths[-1] > full_width:
        raise ValueError(f"widths {widths} of {full_width} dimensions")
    return widths
