"""The files of a ready-made model and what a caller says about them; reads no weights and needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.outside import OutsideFolder

DECIDING = (".json", ".safetensors", ".txt", ".model")
"""Endings of the files in a model's folder that decide about its scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyMadeOptions:
    """The caller's answers to what a folder leaves open."""

    label: str = ""
    """Name or number of the label of relevance, for a head of several."""
    query_prompt: str | None = None
    document_prompt: str | None = None
    """Texts that stand before queries and documents; None takes those of the folder."""
    max_tokens: int = 0
    """Maximum length of an input; 0 takes that of the folder."""
    widths: tuple[int, ...] = ()
    """Matryoshka widths at which vectors may be cut off, beside those that the folder names."""
    passages: int = 0
    """Maximum number of passages of a document that does not fit beside its query, or, in an index, into the encoder's
    input; below 2 such a document is cut at its end."""

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, for a fingerprint."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None, 0, ())}


def at(folder: Path) -> OutsideFolder:
    """A model's folder as it is now; the files that count are those that decide about its scores."""
    return OutsideFolder.at(folder, DECIDING)
