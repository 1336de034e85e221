"""Manifests: the description of an artifact in the `manifest.json` of its folder.

A fingerprint is a hash of the kind, the stage's version, its config and its inputs' fingerprints. A manifest carries a
checksum of its own text; in one from before that field only the fingerprint is checked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

_UNSEALED = "0" * 64
"""Text in the place of a manifest's checksum while the checksum is computed."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The description of an artifact: its kind, its inputs and its files."""

    kind: str
    fingerprint: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name of each input → its fingerprint."""
    files: Mapping[str, FileRecord]
    """Path inside the folder, with forward slashes → size and sha256."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    created: str = ""
    checksum: str = ""
    """sha256 of the manifest's own text, with 64 zeros in this place; empty in manifests from before this field."""

    def to_json(self) -> str:
        """The text of `manifest.json`, with its checksum."""
        fields = {**asdict(self), "checksum": _UNSEALED}
        text = json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        return text.replace(_UNSEALED, hashlib.sha256(text.encode()).hexdigest(), 1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest with this text.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: not the text of a manifest, or a changed one.
        """
        fields = json.loads(text)
        fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
        manifest = cls(**fields)
        manifest._check(text)
        return manifest

    def _check(self, text: str) -> None:
        if self.checksum:
            unsealed = text.replace(self.checksum, _UNSEALED, 1)
            if hashlib.sha256(unsealed.encode()).hexdigest() != self.checksum:
                raise ValueError("its text is not what was written")
        if fingerprint(self.kind, self.version, self.config, self.inputs) != self.fingerprint:
            raise ValueError("its fingerprint is not that of its kind, version, config and inputs")
        for name, record in self.files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name} lies outside the folder")
            if not re.fullmatch(r"[0-9a-f]{64}", record.sha256) or record.bytes < 0:
                raise ValueError(f"the record of {name} is not a size and a sha256")


def fingerprint(kind: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """32 hex digits that change when the kind, the stage's version, its config or an input does."""
    text = json.dumps([kind, version, config, dict(inputs)], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
