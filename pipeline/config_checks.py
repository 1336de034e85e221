"""Checks of the values of a recipe, which its sections share, and how their fields are declared."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ConfigDict

from pipeline.errors import ConfigError

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""Makes the text below a field its description in the JSON Schema."""

ADDED = "added"
"""The mark of a field that `added` declares."""

T = TypeVar("T")


def added(default: T) -> T:
    """A field that a section got after artifacts had been made from it.

    Manifests and fingerprints leave it out while it has its default, so the artifacts made before are used again. A
    later change of the default must raise the version of the stages that read it.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


def positive(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be above 0")


def weights(section: str, **values: float) -> None:
    """Raises `ConfigError` if a weight is below 0, or all of them are 0."""
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be 0, for none, or more")
    if not any(values.values()):
        raise ConfigError(f"{section}: every loss has weight 0, so there is nothing to learn; give one a weight")


def share(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{section}.{name} is {value}; it is a share, between 0 and 1")


def check_fields(names: Sequence[str], *, vectors: bool) -> None:
    """Raises `ConfigError` if a name cannot be that of a field that is indexed apart, or stands there twice."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(
                f"index.fields has '{name}'; a field that is indexed apart needs a name of letters, digits and _, so "
                "map the column to one"
            )
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"index.fields names {repeated[0]} twice; name each field once")
    if vectors and not names:
        raise ConfigError("index.field_vectors is true and index.fields names no field; name them, or leave it out")


def check_watermark(*, watermark: str, deletions: str, deleted: str, overlap: float, query: str) -> None:
    """Raises `ConfigError` if the keys by which a source's changes are found do not fit together."""
    if watermark and not deletions:
        raise ConfigError(
            f"watermark is {watermark}, and deletions does not say how rows that are gone are found; set it to "
            '"flag", "table" or "scan", or to "none" where rows never go'
        )
    if not watermark and (deletions or deleted or overlap):
        raise ConfigError("deletions, deleted and overlap need a watermark; name its column, or leave them out")
    if (deletions in ("flag", "table")) != bool(deleted):
        raise ConfigError(
            f"deletions is {deletions!r} and deleted {deleted!r}; deleted is the column of a flag, or "
            "the table of ids that are gone, and empty otherwise"
        )
    if overlap < 0:
        raise ConfigError(f"overlap is {overlap:g}; it must be 0 or more")
    if watermark and query:
        raise ConfigError("a watermark needs a table or a view, not a query; make a view of the query")


def check_path(path: str) -> None:
    """Raises `ConfigError` if the path of a source is empty, which would mean the working folder."""
    if not path.strip():
        raise ConfigError("a source of data has an empty path; name its file or folder, or the address of a database")
